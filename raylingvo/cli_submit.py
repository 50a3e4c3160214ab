"""The command `raylingvo submit`, and what makes a command line one for the cluster that it is on."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TextIO

import typer

from raylingvo.cli_shared import Json, print_json, say
from raylingvo.errors import RequestError

_STARTS_RAY = (["run"], ["tune", "sweep"])  # without --address each starts a Ray of its own


def joining(arguments: Sequence[str]) -> list[str]:
    """The command line, with `--address auto` where it would otherwise not join the cluster of its machine."""
    arguments = list(arguments)
    for command in _STARTS_RAY:
        given = any(argument == "--address" or argument.startswith("--address=") for argument in arguments)
        if arguments[: len(command)] == command and not given:
            return [*command, "--address", "auto", *arguments[len(command) :]]
    return arguments


def submit(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="-- COMMAND...", help="such as run EXPERIMENT --logdir DIR")
    ] = None,
    cluster: Annotated[
        Path | None, typer.Option(metavar="FILE", help="the cluster that `ray up FILE` has started")
    ] = None,
    address: Annotated[
        str | None, typer.Option(metavar="URL", help="of a cluster's dashboard, such as http://127.0.0.1:8265")
    ] = None,
    directory: Annotated[
        Path, typer.Option("--working-dir", metavar="DIR", help="the folder that the job takes along, to work in")
    ] = Path(),
    excludes: Annotated[
        list[str] | None,
        typer.Option("--exclude", metavar="PATTERN", help="leave this behind; as in .gitignore; may be repeated"),
    ] = None,
    environment: Annotated[
        list[str] | None, typer.Option("--env", metavar="NAME=VALUE", help="of the job; may be repeated")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="leave the job to the cluster")] = False,
    follow: Annotated[
        str | None, typer.Option(metavar="JOB", help="follow a job that was submitted before, instead")
    ] = None,
    as_json: Json = False,
) -> None:
    """Sends a command of raylingvo to a cluster, with this folder, follows it, and ends as it does.

    Ctrl-C leaves the job to the cluster.
    """
    arguments = arguments or []
    if (follow is None) == (not arguments):
        raise RequestError("submit: give -- and a command, such as -- run EXPERIMENT --logdir DIR, or --follow JOB")
    if follow is not None and detach:
        raise RequestError("submit: one of --follow and --detach, not both")
    _check(arguments)
    variables = _variables(environment or [])
    if not directory.is_dir():
        raise RequestError(f"--working-dir {directory}: there is no such folder")
    from raylingvo.actors import submit as jobs

    place = jobs.Place(cluster, address)
    stream = sys.stderr if as_json else sys.stdout
    try:
        outcome = jobs.submit(
            place,
            joining(arguments),
            directory.resolve(),
            excludes or (),
            variables,
            job=follow,
            detach=detach,
            write=lambda text: _give_on(text, stream),
            say=lambda line: say(f"raylingvo: {line}"),
        )
    except BrokenPipeError:  # as after `| head`
        raise typer.Exit from None
    if outcome.message:
        say(f"raylingvo: {outcome.message}")
    if as_json:
        print_json({"job": outcome.job, "status": outcome.status, "exit_status": outcome.exit_status})
    elif detach:
        stop = place.ray_job(f"stop {outcome.job}")
        print(f"job {outcome.job}: in the cluster\n  follow  {place.follow(outcome.job)}\n  stop    {stop}")
    raise typer.Exit(outcome.exit_status or 0)


def _give_on(text: str, stream: TextIO) -> None:
    try:
        print(text, end="", file=stream, flush=True)
    except OSError:
        # Python would try to write the rest when it ends, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        raise


def _check(arguments: Sequence[str]) -> None:
    """Raises RequestError for what would not outlive the job: its folder is one of Ray's, that Ray deletes."""
    for index, argument in enumerate(arguments):
        option, equals, path = argument.partition("=")
        if option != "--logdir":
            continue
        path = path if equals else "".join(arguments[index + 1 : index + 2])
        if not Path(path).is_absolute():
            raise RequestError(
                f"--logdir {path}: must be absolute, and on a disk that all machines of the cluster share: "
                "the job's own folder is deleted after it"
            )


def _variables(assignments: Sequence[str]) -> dict[str, str]:
    variables = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not (name and equals):
            raise RequestError(f"--env {assignment}: must be NAME=VALUE")
        variables[name] = value
    return variables
