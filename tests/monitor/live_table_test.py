import io

import pytest
from rich.console import Console

from raylingvo.monitor.live_table import TableView, status_table

SHOW_CURSOR = "\x1b[?25h"
HIDE_CURSOR = "\x1b[?25l"


def terminal(width=100):
    return Console(force_terminal=True, width=width, height=40, file=io.StringIO(), _environ={"TERM": "xterm"})


def drawn(status, width):
    console = Console(width=width, file=io.StringIO())
    console.print(status_table(status, width))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_the_table_has_the_facts_at_any_width(status, width):
    lines = drawn(status, width)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for fact in ("image.digits.LeNet5", "ab12", "0:01:23", "http://127.0.0.1:8265", "205/2000", "11.6", "2980"):
        assert fact in text
    for fact in ("loss 0.2575", "accuracy 0.9415", "0.3 s/0", "12/3", "2 queued", "1 restart"):
        assert fact in text
    assert lines[-1] == "snapshots held 4, 37.0 MB of 2.0 GB, 1 on disk"
    assert [line.split()[0] for line in lines[2:] if not line.startswith((" ", "snap"))] == [
        "Trainer",
        "Evaler(test)",
        "Decoder(test)",
    ]


def test_one_line_a_role_when_nothing_is_wrong_and_there_is_room(status):
    assert len(drawn(status, 120)) == 2 + 3 + 1


def test_there_is_a_bar_when_there_is_room(status):
    assert "━" not in "".join(drawn(status, 80))
    quarter, half = (
        "".join(drawn({**status, "trainer": {**status["trainer"], "step": step}}, 120)).count("━")
        for step in (500, 1000)
    )
    assert 0 < quarter < half


def test_before_any_report(status):
    status["trainer"] |= {"step": 0, "steps_per_second": None, "examples_per_second": None, "loss": None}
    status["readers"][0] |= {"step": None, "lag_seconds": None, "lag_steps": None, "metrics": {}}
    assert any(line.startswith("Trainer") and "0/2000" in line for line in drawn(status, 80))


def test_drawing_events_and_closing(status):
    console = terminal()
    with TableView(console) as view:
        view.update(status)
        view.event("checkpoint 500 written [really]")
    output = console.file.getvalue()
    assert "checkpoint 500 written [really]" in output
    assert output.rindex("accuracy") > output.index("checkpoint")  # the table is drawn again below the event
    assert output.index(HIDE_CURSOR) < output.rindex(SHOW_CURSOR)


def test_frames_are_spaced_and_the_last_status_is_always_drawn(status):
    now = 0.0
    console = terminal()
    view = TableView(console, clock=lambda: now)
    view.update(status)
    status["trainer"]["step"] = 333
    view.update(status)
    assert "333/2000" not in console.file.getvalue()
    status["trainer"]["step"] = 444
    now = 1.0
    view.update(status)
    assert "444/2000" in console.file.getvalue()
    status["trainer"]["step"] = 555
    view.update(status)
    view.close()
    assert "555/2000" in console.file.getvalue()


def test_an_exception_gives_the_terminal_back(status):
    console = terminal()
    with pytest.raises(ZeroDivisionError), TableView(console) as view:
        view.update(status)
        raise ZeroDivisionError
    assert console.file.getvalue().rindex(SHOW_CURSOR) > console.file.getvalue().rindex(HIDE_CURSOR)
