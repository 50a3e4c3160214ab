"""Progress: a line in a pipe, a bar in a terminal, nothing on stdout."""

import pytest

from raylingvo.monitor.progress import progress_bar


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # to rich, a terminal
    monkeypatch.setenv("COLUMNS", "120")


@pytest.mark.parametrize("in_bytes", [False, True])
def test_a_pipe_gets_one_plain_line(capsys, in_bytes):
    label = "reading [bold]a[/bold].tar.gz " + "x" * 200
    with progress_bar(label, 100, in_bytes=in_bytes) as report:
        for done in range(100):
            report(done)
        report(2, None)
        report(2, 4)
    assert capsys.readouterr() == ("", f"{label}\n")


@pytest.mark.usefixtures("terminal")
def test_a_terminal_gets_a_bar_of_a_total_that_came_later(capsys):
    with progress_bar("reading [bold]a[/bold]") as report:
        report(1, 2)
        report(1, None)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "reading [bold]a[/bold]" in captured.err
    assert "50%" in captured.err


@pytest.mark.usefixtures("terminal")
def test_a_bar_of_bytes_ends_full(capsys):
    with progress_bar("reading a", 2_000_000, in_bytes=True) as report:
        report(2_000_000)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "reading a" in captured.err
    assert "2.0/2.0 MB" in captured.err


@pytest.mark.usefixtures("terminal")
def test_a_total_need_not_be_known(capsys):
    with progress_bar("reading a", in_bytes=True) as report:
        report(5)
    assert "5" in capsys.readouterr().err
