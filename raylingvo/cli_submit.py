"""The command `raylingvo submit`, and what makes a command line one for the cluster that it is on."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

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

    with _ended_in_order(), jobs.connected(cluster, address) as connection:
        job = follow or connection.submit(joining(arguments), directory.resolve(), excludes or (), variables)
        answer: dict[str, Any] = {"job": job, "status": "running", "exit_status": None}
        again = f"raylingvo submit {connection.where} --follow {job}"
        if not detach:
            say(f"raylingvo: job {job}; Ctrl-C leaves it to the cluster")
            write = sys.stderr if as_json else sys.stdout
            try:
                ended = connection.follow(job, lambda text: print(text, end="", file=write, flush=True))
            except jobs.Silent as silence:
                say(f"raylingvo: {silence}; the job may go on; to follow it: {again}")
                answer |= {"status": "unknown", "exit_status": 1}
            except KeyboardInterrupt:
                say(f"raylingvo: the job goes on without you; to follow it: {again}")
                answer |= {"exit_status": 130}
            else:
                answer |= {"status": ended.status, "exit_status": ended.exit_status}
                if ended.message:
                    say(f"raylingvo: {ended.message}")
    if as_json:
        print_json(answer)
    elif detach:
        print(f"job {job}: in the cluster\n  follow  {again}\n  stop    ray job stop {job}")
    raise typer.Exit(answer["exit_status"] or 0)


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


@contextlib.contextmanager
def _ended_in_order() -> Iterator[None]:
    """Lets SIGTERM and SIGHUP end this command as Ctrl-C does: a forwarded port is not left open."""
    previous = {number: signal.signal(number, _interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _interrupt(_number: int, _frame: Any) -> None:
    raise KeyboardInterrupt
