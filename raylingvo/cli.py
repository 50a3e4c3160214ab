"""The command line: each command parses, calls one function, and prints."""

from __future__ import annotations

import json
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from raylingvo.cli_shared import Json, Set, load_experiment, print_json, say
from raylingvo.cli_submit import submit
from raylingvo.cli_tune import tune_app
from raylingvo.cli_watch import profile
from raylingvo.errors import DiskError, RequestError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Runs named experiments in JAX: Trainer, Evalers and Decoders as Ray actors that share weights in memory.",
)
inspect_app = typer.Typer(no_args_is_help=True, help="Shows an experiment without running it.")
data_app = typer.Typer(no_args_is_help=True, help="Makes datasets, and looks into them.")
runs_app = typer.Typer(no_args_is_help=True, help="Looks at the logdirs of runs.")
app.add_typer(inspect_app, name="inspect")
app.add_typer(data_app, name="data")
app.add_typer(runs_app, name="runs")
app.add_typer(tune_app, name="tune")

Name = Annotated[str, typer.Argument(metavar="EXPERIMENT", help="such as image.digits.LeNet5; see `raylingvo list`")]
LogdirOption = Annotated[Path, typer.Option("--logdir", metavar="DIR", help="the folder of the run")]
Logdirs = Annotated[list[Path], typer.Argument(metavar="LOGDIR...", help="logdirs, or folders that contain some")]
Datasets = Annotated[
    list[str] | None, typer.Option("--dataset", metavar="NAME", help="may be repeated; default: as in the run")
]
Checkpoint = Annotated[str, typer.Option(metavar="latest|best|STEP|all", help="which checkpoints of the run")]
Average = Annotated[
    int,
    typer.Option(
        metavar="N", help="average the weights of the N newest checkpoints up to that one; of best: the N best"
    ),
]


def main() -> None:
    """The entry point. Exit status: 0 done, 1 the run failed, 2 the request was wrong, 130 interrupted."""
    try:
        status = app(prog_name="raylingvo", standalone_mode=False)
    except RequestError as error:
        say(f"raylingvo: {error}")
        status = 1 if isinstance(error, DiskError) else 2
    except KeyboardInterrupt:
        say("raylingvo: interrupted")
        status = 130
    except typer.Abort:
        status = 130
    except Exception as error:
        status = _say_usage_error(error)
        if status is None:
            raise
    sys.exit(status or 0)


def _say_usage_error(error: Exception) -> int | None:
    """Says in one line what typer has against the command line; the exit status. None: it is another error."""
    # No class to catch: depending on its version, typer raises click's exceptions or its own copies of them.
    format_message, context = getattr(error, "format_message", None), getattr(error, "ctx", None)
    if format_message is None:
        return None
    if message := " ".join(format_message().split()):  # empty: the help has been printed instead
        # Of an option that lacks its value typer does not tell of which command it is.
        say(f"raylingvo: {message} See: {'raylingvo' if context is None else context.command_path} --help")
    return 2


@app.command("list")
def list_command(
    pattern: Annotated[str, typer.Argument(help="a part of the name, or a glob")] = "", as_json: Json = False
) -> None:
    """Lists the registered experiments."""
    from raylingvo import registry

    found = registry.find(pattern)
    if as_json:
        print_json({"experiments": [{"name": name, "description": text} for name, text in found.items()]})
        return
    width = max(map(len, found))
    for name, text in found.items():
        print(f"{name:{width}}  {text}")


@inspect_app.command("config")
def inspect_config(name: Name, overrides: Set = None, as_json: Json = False) -> None:
    """Prints the experiment's full configuration as YAML, as `run --config` reads it."""
    from raylingvo import config

    experiment = load_experiment(name, overrides)
    if as_json:
        print_json({"experiment": experiment.name, "config": config.flatten(experiment)})
    else:
        print(config.dump(experiment), end="")


@inspect_app.command("model")
def inspect_model(name: Name, overrides: Set = None, as_json: Json = False) -> None:
    """Prints the model's variables and the number of weights."""
    from raylingvo import describe

    experiment = load_experiment(name, overrides)
    described = describe.model(experiment)
    if as_json:
        print_json({"experiment": experiment.name, **described})
    else:
        print("\n".join(described["lines"]))


@inspect_app.command("datasets")
def inspect_datasets(name: Name, overrides: Set = None, as_json: Json = False) -> None:
    """Prints the experiment's datasets."""
    from raylingvo import describe

    experiment = load_experiment(name, overrides)
    rows = describe.datasets(experiment)
    if as_json:
        print_json({"experiment": experiment.name, "datasets": rows})
        return
    for row in rows:
        fields = ", ".join(f"{key} {value}" for key, value in row["fields"].items())
        uses = "+".join(row["used_by"]) or "unused"
        print(f"{row['name']}: {row['num_examples']:,} examples ({row['class']}; {uses}): {fields}")


@app.command()
def run(
    logdir: LogdirOption,
    name: Annotated[str, typer.Argument(metavar="EXPERIMENT", help="see `raylingvo list`")] = "",
    overrides: Set = None,
    config_file: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="a config.yaml, instead of a registered experiment")
    ] = None,
    address: Annotated[
        str | None, typer.Option(metavar="ADDR", help="join this Ray cluster; auto: the one of this machine")
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="leave the run to a Ray cluster: that of this machine, or of --address")
    ] = False,
    as_json: Json = False,
) -> None:
    """Runs an experiment, or goes on with it where it stopped."""
    import psutil

    from raylingvo.actors.run import RunFailed
    from raylingvo.actors.run import run as run_experiment

    experiment = load_experiment(name, overrides, config_file)
    started = psutil.Process().create_time()
    if detach:
        _run_detached(experiment, logdir, address, started, as_json)
        return
    try:
        result = run_experiment(experiment, logdir, address=address, started=started)
    except RunFailed as failure:
        _print_result(failure.result, as_json)
        say(failure.trace)
        say(f"raylingvo: {failure}")
        raise typer.Exit(1) from None
    _print_result(result, as_json)
    if result["status"] == "interrupted":
        raise typer.Exit(130)


def _run_detached(experiment: Any, logdir: Path, address: str | None, started: float, as_json: bool) -> None:
    from raylingvo.actors import detached

    result = detached.start(experiment, logdir, address=address, started=started)
    if as_json or result["status"] == "finished":
        _print_result(result, as_json)
        return
    print(f"{result['experiment']} (run {result['run']}): running in the cluster")
    print(f"  logdir  {result['logdir']}")
    where = f" --address {address}" if address else ""
    for command in ("status", "attach", "stop"):
        print(f"  {command:6}  raylingvo {command} {result['run']}{where}")


RunName = Annotated[str, typer.Argument(metavar="RUN", help="its id, or how that begins; or its logdir")]
Address = Annotated[str | None, typer.Option(metavar="ADDR", help="the Ray cluster; default: that of this machine")]


@app.command()
def status(run: RunName = "", address: Address = None, as_json: Json = False) -> None:
    """Shows the runs in a cluster that were started with --detach, or one run."""
    from raylingvo.actors import detached
    from raylingvo.monitor import cluster_view

    if run:
        shown = detached.status(run, address)
        print_json(shown) if as_json else cluster_view.print_run(shown)
        return
    rows = detached.list_running(address)
    print_json({"runs": rows}) if as_json else cluster_view.print_runs(rows)


@app.command()
def attach(run: RunName, address: Address = None, as_json: Json = False) -> None:
    """Shows a run that was started with --detach until it ends, and ends as it does. Ctrl-C leaves it alone."""
    from raylingvo.actors import detached
    from raylingvo.monitor.live import open_view

    with detached.open_run(run, address) as found:
        try:
            with open_view() as view:
                ending = found.attach(view)
        except KeyboardInterrupt:
            say(f"raylingvo: the run goes on without you; to see it again: raylingvo attach {run}")
            return
    _print_ending(ending, as_json)
    raise typer.Exit(ending.exit_status)


@app.command()
def stop(run: RunName, address: Address = None, as_json: Json = False) -> None:
    """Stops a run that was started with --detach, as Ctrl-C does: after a checkpoint, from which it can go on."""
    from raylingvo.actors import detached
    from raylingvo.monitor.live import open_view

    with detached.open_run(run, address) as found, open_view() as view:
        ending = found.stop("raylingvo stop", view)
    _print_ending(ending, as_json)
    raise typer.Exit(0 if ending.exit_status == 130 else ending.exit_status)


app.command()(submit)
app.command()(profile)


def _print_ending(ending: Any, as_json: bool) -> None:
    if ending.result is not None:
        _print_result(ending.result, as_json)
    if ending.trace:
        say(ending.trace)
    if ending.message:
        say(f"raylingvo: {ending.message}")


@app.command("eval")
def eval_command(
    logdir: LogdirOption,
    datasets: Datasets = None,
    checkpoint: Checkpoint = "latest",
    average: Average = 1,
    as_json: Json = False,
) -> None:
    """Evaluates checkpoints of a run that is over."""
    _read_checkpoints("eval", logdir, as_json, datasets=datasets or (), checkpoint=checkpoint, average=average)


@app.command()
def decode(
    logdir: LogdirOption,
    datasets: Datasets = None,
    checkpoint: Checkpoint = "latest",
    average: Average = 1,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="task.KEY=VALUE", help="another setting of the task, for this decoding"),
    ] = None,
    input_file: Annotated[
        str | None,
        typer.Option(
            "--input", metavar="FILE|-", help="decode the lines of this file, or of stdin as they come, instead"
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Decodes checkpoints of a run that is over, to LOGDIR/decode_<dataset>/decoder_out-<step>.jsonl.

    With --input: prints a JSON object for each line of text instead, in order, as soon as it is there.
    """
    from raylingvo.config import parse_assignments

    how = {"checkpoint": checkpoint, "average": average, "overrides": parse_assignments(overrides or [])}
    if input_file is None:
        _read_checkpoints("decode", logdir, as_json, datasets=datasets or (), **how)
        return
    if datasets:
        raise RequestError("decode: one of --input and --dataset, not both")
    from raylingvo.actors.line_reader import open_lines
    from raylingvo.actors.offline_lines import decode_lines

    outputs: list[dict[str, Any]] = []
    with open_lines(input_file) as lines:
        write = outputs.append if as_json else _print_output
        result = decode_lines(logdir, lines.take, write, **how, progress=say)
    if as_json:
        print_json({**result, "outputs": outputs})


@data_app.command("prepare")
def data_prepare(
    name: Annotated[str, typer.Argument(metavar="NAME", help="such as mnist")],
    from_path: Annotated[
        Path | None, typer.Option("--from", metavar="PATH", help="a local file or folder; default: download")
    ] = None,
) -> None:
    """Makes a dataset under RAYLINGVO_DATA."""
    from raylingvo.data.prepare import prepare

    for line in prepare(name, from_path):
        print(line)


class _VocabKind(StrEnum):
    SENTENCEPIECE = "sentencepiece"
    WPM = "wpm"
    WORDS = "words"


Pattern = Annotated[
    str,
    typer.Argument(metavar="PATTERN", help="a path, glob, comma list or name@SHARDS; `format:` may stand before it"),
]
Fields = Annotated[
    list[str] | None,
    typer.Option("--field", metavar="NAME", help="a column, key or number of a tab-separated field; may be repeated"),
]


@data_app.command("count")
def data_count(pattern: Pattern, as_json: Json = False) -> None:
    """Prints the number of records."""
    from raylingvo.data import stats

    number = stats.count(pattern)
    print_json({"pattern": pattern, "records": number}) if as_json else print(number)


@data_app.command("head")
def data_head(
    pattern: Pattern,
    number: Annotated[int, typer.Option("--number", "-n", metavar="N", min=1, help="how many")] = 5,
    as_json: Json = False,
) -> None:
    """Prints the first records, a JSON value each."""
    from raylingvo.data import stats

    records = stats.head(pattern, number)
    if as_json:
        print_json({"pattern": pattern, "records": records})
        return
    for record in records:
        print(json.dumps(record, ensure_ascii=False))


@data_app.command("stats")
def data_stats(
    pattern: Pattern,
    fields: Fields = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE:FILE", help="count tokens: wpm:FILE, sentencepiece:FILE, t2t:FILE, words:FILE, ascii"
        ),
    ] = None,
    target: Annotated[
        str, typer.Option(metavar="PATTERN", help="translations of the records, line by line: the longer one counts")
    ] = "",
    target_tokenizer: Annotated[
        str | None, typer.Option(metavar="TYPE:FILE", help="of the targets; default: --tokenizer")
    ] = None,
    tokens_per_batch: Annotated[
        int, typer.Option("--tokens", metavar="N", min=1, help="of a batch, for buckets")
    ] = 4096,
    num_buckets: Annotated[int, typer.Option("--buckets", metavar="N", min=1, help="how many to suggest")] = 12,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="a PNG of the lengths to write")] = None,
    as_json: Json = False,
) -> None:
    """Counts records, shows how long they are, and suggests length buckets."""
    from raylingvo.data import stats, stats_view
    from raylingvo.data.tokenizer_choice import tokenizer_from_text
    from raylingvo.monitor.progress import progress_bar

    with progress_bar("reading") as progress:
        result = stats.stats(
            pattern,
            fields=fields or (),
            tokenizer=tokenizer_from_text(tokenizer) if tokenizer else None,
            target=target,
            target_tokenizer=tokenizer_from_text(target_tokenizer) if target_tokenizer else None,
            tokens_per_batch=tokens_per_batch,
            num_buckets=num_buckets,
            progress=progress,
        )
    if out is not None:
        result["plot"] = str(stats.plot(result, out))
    print_json(result) if as_json else stats_view.print_stats(result)


@data_app.command("convert")
def data_convert(
    pattern: Pattern,
    target: Annotated[
        str,
        typer.Argument(metavar="FILE", help="to write, under RAYLINGVO_DATA, or a URL; its ending says the format"),
    ],
    format: Annotated[str, typer.Option(metavar="NAME", help="the format, if the ending does not say it")] = "",
    as_json: Json = False,
) -> None:
    """Writes records in another format."""
    from raylingvo.data.convert import convert, written_path
    from raylingvo.monitor.progress import progress_bar

    with progress_bar("converting") as progress:
        number = convert(pattern, target, format, progress)
    path = written_path(target)
    print_json({"records": number, "target": path}) if as_json else print(f"{path}: {number:,} records")


@data_app.command("vocab")
def data_vocab(
    pattern: Pattern,
    kind: Annotated[_VocabKind, typer.Option("--type", help="of vocabulary")],
    size: Annotated[int, typer.Option(metavar="N", min=4, help="how many pieces")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="the vocabulary to write, relative to RAYLINGVO_DATA")],
    fields: Fields = None,
    character_coverage: Annotated[
        float, typer.Option(metavar="SHARE", help="of all characters must be known; e.g. 0.9995 for Chinese")
    ] = 1.0,
    as_json: Json = False,
) -> None:
    """Makes a vocabulary of the text in some records."""
    from raylingvo.data import stats
    from raylingvo.data.paths import resolve
    from raylingvo.data.vocabulary import train_vocab
    from raylingvo.monitor.progress import progress_bar

    with progress_bar("training") as progress:
        lines = stats.texts(pattern, fields or ())
        path = train_vocab(
            kind.value,
            lines,
            size,
            resolve(str(out)),
            character_coverage=character_coverage,
            progress=lambda _doing, done, total: progress(done, total),
        )
    print_json({"vocabulary": str(path), "type": kind.value}) if as_json else print(path)


@data_app.command("bench")
def data_bench(
    name: Name,
    overrides: Set = None,
    batches: Annotated[int, typer.Option(metavar="N", min=1, help="how many to read")] = 200,
    as_json: Json = False,
) -> None:
    """Measures the training input of an experiment by itself."""
    from raylingvo.data import stats_view
    from raylingvo.data.bench import bench
    from raylingvo.monitor.progress import progress_bar

    experiment = load_experiment(name, overrides)
    train = experiment.train
    experiment.datasets[train.dataset].check()
    with progress_bar("reading") as progress:
        result = bench(experiment.datasets[train.dataset], train.batch_size, train.seed, batches, progress)
    result = {"experiment": experiment.name, "dataset": train.dataset, **result}
    print_json(result) if as_json else stats_view.print_bench(result)


@runs_app.command("list")
def runs_list(logdirs: Logdirs, as_json: Json = False) -> None:
    """Lists runs: status, step, last metrics."""
    from raylingvo.monitor import runs, runs_view

    rows = runs.list_rows(runs.find_runs(logdirs))
    print_json({"runs": rows}) if as_json else runs_view.print_table(runs_view.list_table(rows))


@runs_app.command("show")
def runs_show(logdir: Annotated[Path, typer.Argument(metavar="LOGDIR")], as_json: Json = False) -> None:
    """Shows one run."""
    from raylingvo.monitor import runs, runs_view

    shown = runs.show(runs.load_run(logdir))
    print_json(shown) if as_json else runs_view.print_table(runs_view.show_table(shown))


@runs_app.command("compare")
def runs_compare(
    logdirs: Logdirs,
    decode: Annotated[bool, typer.Option("--decode", help="write a page of decoded outputs side by side")] = False,
    dataset: Annotated[str | None, typer.Option(metavar="NAME", help="--decode: of which dataset")] = None,
    steps: Annotated[
        list[int] | None,
        typer.Option("--step", metavar="N", help="--decode: of one LOGDIR, which steps; of several, one for each"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="--decode: the page to write; default: decode.html")
    ] = None,
    as_json: Json = False,
) -> None:
    """Shows how the settings and the metrics of runs differ, or writes how their outputs do."""
    from raylingvo.monitor import runs, runs_view

    if decode:
        from raylingvo.monitor import decode_compare, decode_html

        outputs = decode_compare.compare_outputs(logdirs, dataset, steps or ())
        path = decode_html.write_page(outputs, out or Path("decode.html"))
        print_json({"out": str(path), **outputs.json()}) if as_json else print(path)
        return
    if dataset is not None or steps or out is not None:
        raise RequestError("runs compare: --dataset, --step and --out go with --decode")
    compared = runs.compare(runs.find_runs(logdirs))
    print_json(compared) if as_json else runs_view.print_table(runs_view.compare_table(compared))


@runs_app.command("plot")
def runs_plot(
    logdirs: Logdirs,
    out: Annotated[Path, typer.Option(metavar="FILE", help="the PNG to write")] = Path("runs.png"),
    metrics: Annotated[
        list[str] | None, typer.Option("--metric", metavar="NAME", help="e.g. test/accuracy; may be repeated")
    ] = None,
) -> None:
    """Draws the metrics of runs over each other, as a PNG."""
    from raylingvo.monitor import plots, runs

    print(plots.plot_runs(runs.find_runs(logdirs), out, metrics))


class _Kind(StrEnum):
    EVAL = "eval"
    DECODE = "decode"


def _read_checkpoints(kind: Any, logdir: Path, as_json: bool, **which: Any) -> None:
    from raylingvo.actors.offline import read_checkpoints
    from raylingvo.actors.variant import Variant
    from raylingvo.monitor.text import metrics_line

    result = read_checkpoints(kind, logdir, progress=say, **which)
    if as_json:
        print_json(result)
        return
    average = Variant(averaged=tuple(result.get("average", ())))
    for dataset, records in result["all"].items():
        for record in records:
            print(f"{kind} {dataset} @ {record['step']}{average}: {metrics_line(record)}")


def _print_result(result: dict[str, Any], as_json: bool) -> None:
    from raylingvo.monitor.summary import format_summary

    if as_json:
        print_json(result)
    else:
        print(format_summary(result))


def _print_output(output: dict[str, Any]) -> None:
    """At once; ends the command if nobody reads any more, as after `| head -1`."""
    try:
        # On a terminal for people; scripts get what any encoding can say.
        any_letter = sys.stdout.isatty() and sys.stdout.encoding.lower() in ("utf-8", "utf8")
        print(json.dumps(output, allow_nan=False, ensure_ascii=not any_letter), flush=True)
    except BrokenPipeError:
        # Python would try to write the rest when it ends, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit from None
