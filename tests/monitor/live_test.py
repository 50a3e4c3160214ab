import io

from raylingvo.monitor.live import open_view
from raylingvo.monitor.live_plain import PlainView
from raylingvo.monitor.live_table import TableView


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_gets_a_table(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    with open_view(Terminal()) as view:
        assert isinstance(view, TableView)


def test_a_terminal_that_cannot_move_its_cursor_gets_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    with open_view(Terminal()) as view:
        assert isinstance(view, PlainView)


def test_a_pipe_gets_lines_even_when_colors_are_forced(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with open_view(io.StringIO()) as view:
        assert isinstance(view, PlainView)


def test_standard_error_is_the_default(capsys):
    with open_view() as view:
        view.event("checkpoint 500 written")
    captured = capsys.readouterr()
    assert captured.err == "checkpoint 500 written\n"
    assert captured.out == ""
