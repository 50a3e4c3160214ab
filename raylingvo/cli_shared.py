"""What the files of the command line share: options, the experiment that is meant, and how they print."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from raylingvo.errors import RequestError

Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override a field, e.g. train.max_steps=500")
]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object on stdout; all else goes to stderr")]


def load_experiment(name: str, overrides: list[str] | None, config_file: Path | None = None) -> Any:
    from raylingvo import config, registry
    from raylingvo.experiment import Experiment

    assignments = config.parse_assignments(overrides or [])
    if config_file is None:
        if not name:
            raise RequestError("run needs an EXPERIMENT or --config FILE; `raylingvo list` shows what there is")
        return config.override(registry.get(name), assignments)
    try:
        text = config_file.read_text()
    except OSError as error:
        raise RequestError(f"--config {config_file}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise RequestError(f"--config {config_file}: is not text ({error})") from error
    registry.import_current_directory()
    try:
        experiment = config.load(text, Experiment)
    except RequestError as error:
        raise RequestError(f"--config {config_file}: {error}") from error
    if name and name != experiment.name:
        raise RequestError(f"--config {config_file} is of {experiment.name}, not of {name}")
    return config.override(experiment, assignments)


def print_json(value: Any) -> None:
    print(json.dumps(value, allow_nan=False))


def say(line: str) -> None:
    print(line, file=sys.stderr)
