import io

import pytest

from raylingvo.monitor.live_plain import PlainView


class Shown:
    """A view, its clock, and what it has written since one last asked."""

    def __init__(self):
        self.now = 0.0
        self._stream = io.StringIO()
        self.view = PlainView(self._stream, clock=lambda: self.now)

    def lines(self):
        lines = self._stream.getvalue().splitlines()
        self._stream.seek(0)
        self._stream.truncate()
        return lines


@pytest.fixture
def shown(status):
    """A view that has shown `status` once."""
    shown = Shown()
    shown.view.update(status)
    return shown


def test_the_first_status_introduces_the_run(shown):
    assert shown.lines() == [
        "run ab12: image.digits.LeNet5, dashboard http://127.0.0.1:8265",
        "trainer training",
        "step 205/2000  11.6 steps/s  2980 examples/s  loss 0.2575",
        "eval test @ 150: accuracy 0.9415  loss 0.2012  acc5 0.9978  num_preds 360 (lag 0.3 s, 0 steps)",
    ]


def test_nothing_changed_nothing_said(shown, status):
    shown.lines()
    for shown.now in (1.0, 10.0, 100.0):
        shown.view.update(status)
    assert shown.lines() == []


def test_a_trainer_line_every_five_seconds_at_most(shown, status):
    shown.lines()
    for shown.now in (1.0, 2.0, 4.9, 5.0, 5.1, 9.9, 10.0):
        status["trainer"]["step"] += 1
        shown.view.update(status)
    assert [line.split()[1] for line in shown.lines()] == ["209/2000", "212/2000"]


def test_every_new_evaluation_has_its_line_at_once(shown, status):
    shown.lines()
    evaler, decoder = status["readers"]
    evaler |= {"step": 151, "metrics": {"accuracy": 0.5}, "lag_steps": 1}
    shown.view.update(status)
    decoder |= {"step": 150, "metrics": {"correct_top1": 0.75}}
    shown.view.update(status)
    assert shown.lines() == [
        "eval test @ 151: accuracy 0.5000 (lag 0.3 s, 1 step)",
        "decode test @ 150: correct_top1 0.7500",
    ]


def test_the_end_is_shown_whatever_the_clock_says(shown, status):
    shown.lines()
    status["trainer"] |= {"state": "finished", "step": 2000}
    shown.view.update(status)
    shown.view.close()
    shown.view.close()
    assert shown.lines() == ["step 2000/2000  11.6 steps/s  2980 examples/s  loss 0.2575", "trainer finished"]


def test_close_shows_progress_that_waited_for_its_turn(shown, status):
    shown.lines()
    status["trainer"]["step"] = 206
    shown.view.update(status)
    assert shown.lines() == []
    shown.view.close()
    assert [line.split()[1] for line in shown.lines()] == ["206/2000"]


def test_a_trainer_that_has_not_reported_has_no_numbers(status):
    shown = Shown()
    status["trainer"] |= {
        "state": "compiling",
        "step": 0,
        "steps_per_second": None,
        "examples_per_second": None,
        "loss": None,
    }
    status["readers"] = []
    status["dashboard"] = None
    shown.view.update(status)
    assert shown.lines() == ["run ab12: image.digits.LeNet5", "trainer compiling"]


def test_what_is_out_of_the_ordinary_is_said(shown, status):
    shown.lines()
    status["trainer"] |= {"step": 300, "input_wait_fraction": 0.5, "skipped_updates": 2, "rollbacks": 1, "restarts": 1}
    status["readers"][0]["state"] = "failed"
    shown.now = 5.0
    shown.view.update(status)
    shown.view.update(status)
    line, failed = shown.lines()
    assert line.endswith("loss 0.2575  input wait 50%  2 skipped updates  1 rollback  1 restart")
    assert failed == "Evaler(test) failed"


def test_events_are_lines(shown):
    shown.lines()
    shown.view.event("checkpoint 500 written")
    assert shown.lines() == ["checkpoint 500 written"]
