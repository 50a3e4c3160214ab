"""A bar for people, a line for logs."""

from raylingvo.data.prepare._progress import progress


def test_a_pipe_gets_one_plain_line(capsys):
    with progress("reading [bold]a[/bold].tar.gz", 100) as report:
        for done in range(100):
            report(done)
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == "reading [bold]a[/bold].tar.gz\n"


def test_a_terminal_gets_a_bar_that_ends_full(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # to rich, a terminal
    monkeypatch.setenv("COLUMNS", "120")
    with progress("reading a", 2_000_000) as report:
        report(2_000_000)
    output = capsys.readouterr()
    assert output.out == ""
    assert "reading a" in output.err
    assert "2.0/2.0 MB" in output.err


def test_a_total_need_not_be_known(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress("reading a", None) as report:
        report(5)
    assert "5" in capsys.readouterr().err
