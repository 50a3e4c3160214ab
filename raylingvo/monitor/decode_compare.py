"""Outputs of Decoders side by side, of steps of one run or of several runs, as plain data; page: decode_html.py."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from raylingvo.errors import RequestError
from raylingvo.monitor import text
from raylingvo.monitor.metrics_log import read_metrics
from raylingvo.monitor.runs import Run, differences, find_runs, flatten, load_run, metrics_of, short_names

Output = Mapping[str, Any]  # what `Task.postprocess` gave for one example


@dataclasses.dataclass(frozen=True, kw_only=True)
class Column:
    """The outputs of one step.

    metrics: of all of them, the most telling first. signatures: which variants of published ones they are.
    """

    name: str
    run: Run
    folder: Path  # the logdir, or one of its `variants`
    step: int
    metrics: Mapping[str, float | None]
    signatures: Mapping[str, str]
    outputs: Mapping[str, Output]  # by example


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """One example in all columns.

    common: what all of its outputs say alike, such as the source. own: the rest, by column; None where there is no
    output. scores: chrF of the best hypothesis by column, 0 to 100; None where there is no reference. difference: of
    the last score and the first.
    """

    key: str
    common: Output
    own: Sequence[Output | None]
    scores: Sequence[float | None]
    difference: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """settings: dotted key -> column's name -> value, of those that differ; a column without the key is left out."""

    dataset: str
    columns: Sequence[Column]
    settings: Mapping[str, Mapping[str, Any]]
    examples: Sequence[Example]

    def json(self) -> dict[str, Any]:
        """Without the outputs."""
        columns = [
            {"name": c.name, "run": c.run.id, "logdir": str(c.folder), "step": c.step, "metrics": dict(c.metrics)}
            for c in self.columns
        ]
        return {"dataset": self.dataset, "examples": len(self.examples), "columns": columns, "settings": self.settings}


def compare_outputs(paths: Sequence[Path], dataset: str | None = None, steps: Sequence[int] = ()) -> Comparison:
    """Reads what Decoders wrote.

    paths: logdirs, folders that contain some, and folders LOGDIR/variants/NAME. dataset: its name; may be left out if
    only one has outputs in all of them. steps: of one logdir, which ones, without them the first and the last; of
    several logdirs one for each in turn, or one for all, without them the last of each. Raises RequestError for what
    does not exist or is damaged.
    """
    folders = _folders(paths)
    dataset = _dataset(list(folders), dataset)
    names = dict(zip(folders, short_names(list(folders)), strict=True))
    columns = [
        _column(folders[folder], folder, dataset, step, f"{names[folder]} @ {step}")
        for folder, step in _places(list(folders), dataset, steps)
    ]
    return Comparison(
        dataset=dataset,
        columns=columns,
        settings=differences({column.name: _settings(column) for column in columns}),
        examples=_examples(columns),
    )


def best_text(output: Output) -> str | None:
    """The text of the best hypothesis, "" if a search found none; None if the output is of another kind."""
    hypotheses = output.get("hypotheses")
    if not isinstance(hypotheses, list) or not all(isinstance(h, dict) and "text" in h for h in hypotheses):
        return None
    return str(hypotheses[0]["text"]) if hypotheses else ""


def _folders(paths: Sequence[Path]) -> dict[Path, Run]:
    """Each once."""
    found: dict[Path, tuple[Path, Run]] = {}
    for path in map(Path, paths):
        if (path / "variant.json").is_file():
            runs = {path: load_run(path.resolve().parents[1])}
        else:
            runs = {run.logdir: run for run in find_runs([path])}
        for folder, run in runs.items():
            found.setdefault(folder.resolve(), (folder, run))
    return dict(found.values())


def _dataset(folders: Sequence[Path], dataset: str | None) -> str:
    decoded = {folder: list(_steps(folder)) for folder in folders}
    for folder, datasets in decoded.items():
        if not datasets:
            raise RequestError(f"LOGDIR {folder} has no decoder outputs; `raylingvo decode` makes them")
        if dataset is not None and dataset not in datasets:
            raise RequestError(f"--dataset {dataset}: no outputs in {folder}; there are of {', '.join(datasets)}")
    if dataset is not None:
        return dataset
    common = [name for name in decoded[folders[0]] if all(name in datasets for datasets in decoded.values())]
    if not common:
        each = "; ".join(f"{folder}: {', '.join(datasets)}" for folder, datasets in decoded.items())
        raise RequestError(f"LOGDIR: no dataset has outputs in all of them ({each})")
    if len(common) > 1:
        raise RequestError(f"--dataset NAME is needed: there are outputs of {', '.join(common)}")
    return common[0]


def _places(folders: Sequence[Path], dataset: str, steps: Sequence[int]) -> list[tuple[Path, int]]:
    there = {folder: _steps(folder)[dataset] for folder in folders}
    if len(folders) == 1:
        (folder,) = folders
        wanted = [(folder, step) for step in steps or dict.fromkeys([there[folder][0], there[folder][-1]])]
    elif not steps:
        wanted = [(folder, there[folder][-1]) for folder in folders]
    elif len(steps) in (1, len(folders)):
        each = list(steps) * (len(folders) if len(steps) == 1 else 1)
        wanted = list(zip(folders, each, strict=True))
    else:
        raise RequestError(f"--step: one for all of the {len(folders)} logdirs, or one for each (got {len(steps)})")
    for folder, step in wanted:
        if step not in there[folder]:
            known = ", ".join(map(str, there[folder]))
            raise RequestError(f"--step {step}: no outputs of {dataset} in {folder}; there are of steps {known}")
    return list(dict.fromkeys(wanted))


def _steps(folder: Path) -> dict[str, list[int]]:
    """The steps of each dataset that have outputs, ascending."""
    found: dict[str, list[int]] = {}
    for path in sorted(folder.glob("decode_*/decoder_out-*.jsonl")):
        if number := re.fullmatch(r"decoder_out-(\d+)\.jsonl", path.name):
            found.setdefault(path.parent.name.removeprefix("decode_"), []).append(int(number[1]))
    return {name: sorted(steps) for name, steps in found.items()}


def _column(run: Run, folder: Path, dataset: str, step: int, name: str) -> Column:
    place = folder / f"decode_{dataset}"
    records = read_metrics(place)
    metrics = next((metrics_of(record) for record in records if record["step"] == step), {})
    return Column(
        name=name,
        run=run,
        folder=folder,
        step=step,
        metrics={key: metrics[key] for key in text.telling(text.quality(metrics))},
        signatures=_read_object(place / "signatures.json"),
        outputs=_read_outputs(place / f"decoder_out-{step:08d}.jsonl"),
    )


def _read_outputs(path: Path) -> dict[str, Output]:
    """By `id`; an example whose id has been before, as of several datasets one after another, by `id (2)` and so on."""
    found: dict[str, Output] = {}
    times: dict[str, int] = {}
    for number, line in enumerate(_read_text(path).split("\n")[:-1], 1):
        try:
            output = json.loads(line)
        except ValueError as error:
            raise RequestError(f"{path}, line {number}: not JSON ({error})") from error
        if not isinstance(output, dict):
            raise RequestError(f"{path}, line {number}: not an object (got {line[:40]})")
        key = str(output.pop("id", number))
        times[key] = times.get(key, 0) + 1
        found[key if times[key] == 1 else f"{key} ({times[key]})"] = output
    return found


def _read_object(path: Path) -> dict[str, Any]:
    """{} if there is no such file."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(_read_text(path))
    except ValueError as error:
        raise RequestError(f"{path} is not JSON ({error})") from error
    if not isinstance(found, dict):
        raise RequestError(f"{path} is not a JSON object (got {str(found)[:40]})")
    return found


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path} cannot be read: {' '.join(str(error).split())}") from error


def _settings(column: Column) -> dict[str, Any]:
    """The config of its run, flat, with what a variant changes; values as on a command line, to be the same there."""
    variant = _read_object(column.folder / "variant.json")
    settings = flatten(column.run.config) | variant.get("set", {})
    if "average" in variant:
        settings["average"] = variant["average"]
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in settings.items()}


def _examples(columns: Sequence[Column]) -> list[Example]:
    """Those of any column, in the order of the first that has them."""
    score = _sentence_score()
    examples = []
    for key in dict.fromkeys(key for column in columns for key in column.outputs):
        outputs = [column.outputs.get(key) for column in columns]
        there = [output for output in outputs if output is not None]
        common = {
            name: value
            for name, value in there[0].items()
            if name != "hypotheses" and all(name in output and output[name] == value for output in there)
        }
        scores = [None if output is None else score(output) for output in outputs]
        first, last = scores[0], scores[-1]
        own = [
            None if output is None else {name: value for name, value in output.items() if name not in common}
            for output in outputs
        ]
        difference = None if first is None or last is None or len(columns) < 2 else last - first
        examples.append(Example(key=key, common=common, own=own, scores=scores, difference=difference))
    return examples


def _sentence_score() -> Callable[[Output], float | None]:
    from sacrebleu.metrics.chrf import CHRF

    judge = CHRF()

    @functools.lru_cache(maxsize=1 << 16)
    def of_texts(hypothesis: str, reference: str) -> float:
        return judge.sentence_score(hypothesis, [reference]).score

    def score(output: Output) -> float | None:
        hypothesis, reference = best_text(output), output.get("reference")
        return None if hypothesis is None or not isinstance(reference, str) else of_texts(hypothesis, reference)

    return score
