"""The commands of `raylingvo tune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raylingvo.cli_shared import Json, Set, load_experiment, print_json, say
from raylingvo.errors import RequestError

tune_app = typer.Typer(no_args_is_help=True, help="Searches for good hyper-parameters.")


@tune_app.command("sweep")
def tune_sweep(
    logdir: Annotated[Path, typer.Option("--logdir", metavar="DIR", help="the folder of the sweep")],
    name: Annotated[str, typer.Argument(metavar="EXPERIMENT", help="see `raylingvo list`")] = "",
    params: Annotated[
        list[str] | None,
        typer.Option(
            "--param",
            metavar="KEY=SPACE",
            help="uniform(a,b), loguniform(a,b), quniform(a,b,q), randint(a,b), normal(m,s), choice(..), grid(..)",
        ),
    ] = None,
    metric: Annotated[str | None, typer.Option(metavar="DATASET/NAME", help="such as test/accuracy")] = None,
    mode: Annotated[str | None, typer.Option(metavar="min|max", help="which values of the metric are good")] = None,
    samples: Annotated[int | None, typer.Option(metavar="N", help="trials; of each combination of a grid")] = None,
    scheduler: Annotated[
        str | None, typer.Option(metavar="NAME", help="fifo (default), asha, hyperband, median, pbt")
    ] = None,
    search: Annotated[str | None, typer.Option(metavar="NAME", help="random (default), grid, optuna")] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="of the parameters' values; default: 0")] = None,
    max_steps: Annotated[int | None, typer.Option(metavar="N", help="of a trial; default: the experiment's")] = None,
    grace_steps: Annotated[
        int | None, typer.Option(metavar="N", help="no trial is judged before; pbt: judged every N steps")
    ] = None,
    reduction_factor: Annotated[
        int | None, typer.Option(metavar="N", help="asha, hyperband: one in N goes on; default: 3")
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(metavar="N", help="trials at once; default: as many as there is room for")
    ] = None,
    max_failures: Annotated[
        int | None, typer.Option(metavar="N", help="more failed trials end the sweep; default: none do")
    ] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="run trials that failed again")] = False,
    resources: Annotated[
        list[str] | None,
        typer.Option("--resources", metavar="KEY=VALUE", help="of each trial, e.g. trainer.num_cpus=2"),
    ] = None,
    overrides: Set = None,
    config_file: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="a sweep.yaml with these options as keys")
    ] = None,
    address: Annotated[
        str | None, typer.Option(metavar="ADDR", help="join this Ray cluster; auto: the one of this machine")
    ] = None,
    as_json: Json = False,
) -> None:
    """Runs trials of an experiment with other parameters, or goes on with a sweep where it stopped."""
    from raylingvo import config
    from raylingvo.config import parse_assignments
    from raylingvo.tune.request import read_file
    from raylingvo.tune.summary import format_sweep
    from raylingvo.tune.sweep import SweepFailed
    from raylingvo.tune.sweep import sweep as run_sweep

    given = {
        "metric": metric,
        "mode": mode,
        "samples": samples,
        "scheduler": scheduler,
        "search": search,
        "seed": seed,
        "max_steps": max_steps,
        "grace_steps": grace_steps,
        "reduction_factor": reduction_factor,
        "concurrency": concurrency,
        "max_failures": max_failures,
    }
    asked = read_file(config_file) if config_file else {}
    asked |= {key: value for key, value in given.items() if value is not None}
    for key, assignments in (("params", params), ("resources", resources), ("set", overrides)):
        asked[key] = asked.get(key, {}) | parse_assignments(assignments or [])
    name = name or asked.pop("experiment", "")
    asked.pop("experiment", None)
    for key in ("metric", "mode"):
        if not asked.get(key):
            raise RequestError(f"a sweep needs --{key} {'DATASET/NAME' if key == 'metric' else 'min|max'}")
    if not name:
        raise RequestError("a sweep needs an EXPERIMENT, or `experiment` in its --config FILE")
    experiment = config.override(load_experiment(name, []), asked.pop("set"))
    try:
        result = run_sweep(
            experiment, asked.pop("params"), logdir=logdir, address=address, retry_failed=retry_failed, **asked
        )
    except SweepFailed as failure:
        result = failure.result
        say(f"raylingvo: {failure}")
    print_json(result.to_json()) if as_json else print(format_sweep(result))
    if result.status != "finished":
        raise typer.Exit(130 if result.status == "interrupted" else 1)
