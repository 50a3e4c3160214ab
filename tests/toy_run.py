"""`raylingvo run` of a toy experiment as a process of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gates
import pytest
import toy

from raylingvo import config
from raylingvo.actors import memory
from raylingvo.experiment import Experiment, Reading, Snapshots


def experiment(gate: Path | None = None, **train: Any) -> Experiment:
    """60 steps, in a process that keeps its memory; held at the 35th batch that is read if there is a gate."""
    defaults = {"max_steps": 60, "report_every_steps": 7, "snapshots": Snapshots(every_steps=10)}
    plain = toy.experiment(
        data=toy.NumbersWhere(environment=memory.KEEP), reading=Reading(batch_size=20), **(defaults | train)
    )
    plain = dataclasses.replace(plain, decode={})
    if gate is None:
        return plain
    data = gates.GatedNumbers(gate=str(gate), at_call=35)
    return dataclasses.replace(plain, datasets={**plain.datasets, "train": data})


def arguments(wanted: Experiment, folder: Path) -> list[str]:
    """Of `raylingvo` for a run of an experiment in `folder`/run."""
    file = folder / "experiment.yaml"
    file.write_text(config.dump(wanted))
    return ["run", "--config", str(file), "--logdir", str(folder / "run"), "--json"]


@contextlib.contextmanager
def started(
    wanted: Experiment, folder: Path, *options: str, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """`raylingvo run` of an experiment in `folder`/run; in the environment of this process if none is given."""
    command = [sys.executable, "-m", "raylingvo", *arguments(wanted, folder), *options]
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**(environment or os.environ), "PYTHONPATH": os.pathsep.join(paths)}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, env=environment, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def read_until(stream: Any, part: str) -> None:
    lines = []
    for line in stream:
        lines.append(line)
        if part in line:
            return
    pytest.fail(f"no line with {part!r} in {lines}")
