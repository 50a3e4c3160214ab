"""The leaderboard says what stands at any width, and plain lines say what changed, however often it is asked."""

import dataclasses
import io
import math

import pytest
import toy_sweep
from rich.console import Console

from raylingvo.tune.board import PlainBoard, RunningTrial, TableBoard, leaderboard, open_board

SHOW_CURSOR = "\x1b[?25h"
HIDE_CURSOR = "\x1b[?25l"
KEYS = ("learner.learning_rate", "model.encoder.dropout", "model.decoder.dropout", "model.norm", "model.depth")


def trial(number, *values, **fields):
    params = {key: round(0.001 * (number + i + 1), 6) for i, key in enumerate(KEYS)} | {"model.depth": 3}
    return toy_sweep.trial(number, *values, **{"params": params, "status": "pending"} | fields)


def sweep(*trials, **fields):
    return toy_sweep.sweep(*trials, spaces=dict.fromkeys(KEYS, "uniform(0, 1)"), started=1000.0, **fields)


@pytest.fixture
def standing():
    """Twelve finished trials, the higher the number the better, two that run, and one of each other kind."""
    return sweep(
        *(trial(i, 3.0 - i / 10, status="finished") for i in range(12)),
        trial(12, 9.0, status="running"),
        trial(13, 0.5, math.nan, status="running"),
        trial(14, status="failed", error="ValueError: no"),
        trial(15),
    )


RUNNING = {
    12: RunningTrial(step=15, max_steps=500, steps_per_second=11.6, phase="training"),
    13: RunningTrial(step=25, max_steps=500, steps_per_second=None, phase="compiling"),
}


def drawn(sweep, running, width):
    console = Console(width=width, file=io.StringIO())
    console.print(leaderboard(sweep, running, width, 1083.0))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_the_table_has_the_facts_at_any_width(standing, width):
    lines = drawn(standing, RUNNING, width)
    assert max(map(len, lines)) <= width
    text = " ".join(lines)
    for fact in (
        "toy.Toy",
        "min test/loss",
        "scheduler asha",
        "search random",
        "0:01:23",
        "best: trial 0013, loss 0.5",
    ):
        assert fact in text
    assert "1 pending, 2 running, 12 finished, 1 failed of 40" in text
    head = next(i for i, line in enumerate(lines) if line.startswith("rank"))
    rows = [line.split() for line in lines[head + 1 : head + 12]]
    assert [row[1] for row in rows] == ["0013", *(f"{i:04d}" for i in range(11, 2, -1)), "0012"]
    assert rows[0][:6] == ["1", "0013", "compiling", "25/500", "0.5000", "nan"]
    assert rows[1][:6] == ["2", "0011", "finished", "10", "1.9000", "1.9000"]
    assert rows[-1][:4] == ["14", "0012", "training", "15/500"] and rows[-1][-1] == "11.6"


def test_parameters_that_differ_are_shown_as_far_as_there_is_room(standing):
    assert "encoder.dropout  decoder.dropout  norm" in " ".join(drawn(standing, RUNNING, 150))
    assert "depth" not in " ".join(drawn(standing, RUNNING, 150)[4:])  # it is the same everywhere
    assert drawn(standing, RUNNING, 80)[-1] == "not shown for want of room: 2 parameters"
    assert drawn(sweep(trial(0, 1.0)), {}, 150)[3].split()[-2:] == ["depth", "steps/s"]


def test_before_there_is_anything():
    assert drawn(sweep(), {}, 80) == [
        "toy.Toy  min test/loss  scheduler asha  search random  0:01:23",
        "trials: none yet",
        "best: none yet",
    ]
    (row,) = drawn(sweep(trial(0, status="running")), {}, 80)[4:5]
    assert row.split()[:6] == ["-", "0000", "running", "0", "-", "-"]


def terminal():
    return Console(force_terminal=True, width=100, height=40, file=io.StringIO(), _environ={"TERM": "xterm"})


def test_drawing_events_and_closing(standing):
    console = terminal()
    now = 1000.0
    with TableBoard(console, clock=lambda: now) as board:
        board.update(standing, RUNNING)
        board.event("resumed [really]")
        board.update(dataclasses.replace(standing, status="finished", ended=8200.0), {})  # too soon for a frame
        assert "2:00:00" not in console.file.getvalue()
    output = console.file.getvalue()
    assert "2:00:00  finished" in output
    assert output.rindex("0013") > output.index("resumed [really]")
    assert output.index(HIDE_CURSOR) < output.rindex(SHOW_CURSOR)


def test_a_clock_that_is_set_back_does_not_stop_the_picture(standing):
    console = terminal()
    now = 5000.0
    board = TableBoard(console, clock=lambda: now)
    board.update(sweep(), {})
    now = 1000.0
    board.update(standing, RUNNING)
    assert "0013" in console.file.getvalue()
    board.close()


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("stream", "term", "kind"),
    [(Terminal, "xterm-256color", TableBoard), (Terminal, "dumb", PlainBoard), (io.StringIO, "xterm", PlainBoard)],
)
def test_a_terminal_gets_a_table_and_a_pipe_lines(monkeypatch, stream, term, kind):
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("FORCE_COLOR", "1")
    with open_board(stream()) as board:
        assert isinstance(board, kind)


def test_standard_error_is_the_default(capsys):
    with open_board() as board:
        board.event("resumed")
    assert capsys.readouterr() == ("", "resumed\n")


class Shown:
    """A plain board, its clock, and what it has written since one last asked."""

    def __init__(self):
        self.now = 1000.0
        self._stream = io.StringIO()
        self.board = PlainBoard(self._stream, clock=lambda: self.now)

    def lines(self, *trials, **fields):
        if trials or fields:
            self.board.update(sweep(*trials, **fields), {})
        lines = self._stream.getvalue().splitlines()
        self._stream.seek(0)
        self._stream.truncate()
        return lines


ONE = (
    "learner.learning_rate=0.001 model.encoder.dropout=0.002 model.decoder.dropout=0.003 model.norm=0.004 model.depth=3"
)


def test_a_trial_from_start_to_end():
    shown = Shown()
    assert shown.lines(trial(0)) == ["sweep: toy.Toy  min test/loss  scheduler asha  search random"]
    assert shown.lines(trial(0, status="running")) == [f"trial 0000 started: {ONE}"]
    assert shown.lines(trial(0, 2.0, status="running")) == ["new best: trial 0000, loss 2.0000 @ 10"]
    assert shown.lines(trial(0, 2.0, 1.0, status="running")) == []
    assert shown.lines(trial(0, 2.0, 1.0, status="finished", stop_reason="max_steps")) == [
        "trial 0000 finished at step 20 (max_steps), best loss 1.0000 @ 20"
    ]
    shown.now += 60
    shown.lines(trial(0, 2.0, 1.0, status="finished"), status="finished", ended=1060.0, stop_reason="all done")
    shown.board.close()
    shown.board.close()
    assert shown.lines() == [
        "sweep finished after 0:01:00 (all done): 1 finished of 40",
        f"best: trial 0000, loss 1.0000 @ 20: {ONE}",
    ]


def test_nothing_changed_nothing_said(standing):
    shown = Shown()
    shown.lines(*standing.trials)
    for shown.now in (1001.0, 2000.0):
        assert shown.lines(*standing.trials) == []


def test_no_line_for_an_evaluation_however_the_lead_changes():
    shown = Shown()
    shown.lines(trial(0, status="running"), trial(1, status="running"))
    lines = []
    for i in range(1, 100):
        shown.now += 1.0
        values = [100.0 - j for j in range(i)]
        lines += shown.lines(
            trial(i % 2, *values, status="running"), trial(1 - i % 2, *values, 0.5 - i / 1000, status="running")
        )
    assert 2 <= len(lines) <= 4
    assert all(line.startswith("new best: trial 000") for line in lines)


def test_the_end_of_a_trial_that_leads_need_not_wait():
    shown = Shown()
    other = trial(2, 2.5, status="running")
    shown.lines(trial(0, 2.0, status="running"), trial(1, 3.0, status="running"))
    assert len(shown.lines(trial(0, 2.0), trial(1, 3.0, 1.0, status="running"), other)) == 1  # the other starts
    other = trial(2, 2.5, 2.4, status="running")
    assert shown.lines(trial(0, 2.0), trial(1, 3.0, 1.0, status="stopped"), other) == [
        "trial 0001 stopped at step 20, best loss 1.0000 @ 20",
        "new best: trial 0001, loss 1.0000 @ 20",
    ]


def test_failures_say_why():
    shown = Shown()
    shown.lines(status="running")
    started, failed = shown.lines(trial(0, math.nan, status="failed", error="ValueError: no"))
    assert started.startswith("trial 0000 started")
    assert failed == "trial 0000 failed at step 10, no finite loss: ValueError: no"
    shown.board.close()
    assert shown.lines()[-1] == "best: none"


def test_a_sweep_that_goes_on_does_not_tell_all_again():
    shown = Shown()
    before = [trial(0, 2.0, status="finished"), trial(1, 3.0, status="interrupted"), trial(2)]
    assert shown.lines(*before)[1:] == [
        "trials from before: 1 pending, 1 finished, 1 interrupted of 40",
        "new best: trial 0000, loss 2.0000 @ 10",
    ]
    before[1] = trial(1, 3.0, status="running")
    assert shown.lines(*before) == ["trial 0001 goes on from step 10"]


def test_who_continues_whom():
    shown = Shown()
    shown.lines(trial(3, status="running"))
    change = {"step": 10, "from_trial": 7, "params": {"learner.learning_rate": 0.5}}
    changed = trial(3, status="running", changes=(change,))
    assert shown.lines(changed) == ["trial 0003 continues trial 0007 at step 10: learner.learning_rate=0.5"]
    assert shown.lines(dataclasses.replace(changed, step=20)) == []
