"""Progress: a line in a pipe, a bar in a terminal, nothing on stdout."""

from raylingvo.monitor.progress import progress_bar


def test_a_pipe_gets_one_line(capsys):
    with progress_bar("reading [x]") as show:
        show(1, 2)
        show(2, None)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "reading [x]\n")


def test_a_terminal_gets_a_bar(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress_bar("reading") as show:
        show(1, 2)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "reading" in captured.err
    assert "50%" in captured.err
