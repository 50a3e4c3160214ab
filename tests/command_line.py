"""The command line in the process of a test: what a command prints where, and how it ends."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from raylingvo import cli


class Ended(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one object that is all of stdout."""
        assert self.out.count("\n") == 1
        return json.loads(self.out)

    @property
    def outputs(self) -> list[dict[str, Any]]:
        """An object for each line of stdout."""
        return [json.loads(line) for line in self.out.splitlines()]


Command = Callable[..., Ended]


def command_of(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *first: object) -> Command:
    """command(*arguments): runs `raylingvo FIRST ARGUMENTS` in this process."""

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["raylingvo", *map(str, (*first, *arguments))])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return Ended(int(ended.value.code or 0), *capsys.readouterr())

    return run
