"""The command `raylingvo profile`: a closer look at a run that goes on."""

from __future__ import annotations

from typing import Annotated

import typer

from raylingvo.cli_shared import Json, print_json


def profile(
    run: Annotated[str, typer.Argument(metavar="RUN", help="its id, or how that begins; or its logdir")],
    steps: Annotated[int, typer.Option("--steps", metavar="N", min=1, help="how many")] = 10,
    address: Annotated[
        str | None, typer.Option(metavar="ADDR", help="its Ray; default: as its logdir says, or that of this machine")
    ] = None,
    as_json: Json = False,
) -> None:
    """Takes a JAX profile of the next steps of a run, which goes on meanwhile.

    A run in a cluster is found by its id; any run by its logdir.
    """
    from raylingvo.actors.profile_request import profile as take

    taken = take(run, steps, address)
    if as_json:
        print_json(taken)
        return
    begin = taken["from_step"]
    print(f"profile of steps {begin + 1} to {begin + taken['steps']} ({taken['seconds']:.2f} s): {taken['folder']}")
