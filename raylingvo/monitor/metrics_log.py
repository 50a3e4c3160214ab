"""The metrics of one role and dataset over a run: `metrics.jsonl`, and TensorBoard events beside it."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from time import time as now
from types import TracebackType
from typing import Any

from raylingvo.errors import RequestError
from raylingvo.monitor.atomic import naming, write_atomically
from raylingvo.monitor.events import EventsFile

METRICS_FILE = "metrics.jsonl"


class MetricsLog:
    """Appends metrics to `directory`, which is created; one writer at a time.

    The file keeps at most one line for a step. What a crash left of a half-written last line is dropped on opening,
    and so is every step after `last_step`: a Trainer that resumed from it will report those again. TensorBoard is
    told the same, so both show one history. Disk errors are raised as OSError and name the file (DiskError if the disk
    takes no more); a damaged file is refused by a RequestError, see `read_metrics`.
    """

    def __init__(self, directory: Path, *, last_step: int | None = None) -> None:
        self.directory = Path(directory)
        with naming(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
        self._path = self.directory / METRICS_FILE
        self._events: EventsFile | None = None
        self._closed = False
        found = _read(self._path)
        records = _parse(found, self._path)
        kept = _one_per_step(r for r in records if last_step is None or r["step"] <= last_step)
        if found != (text := _text(kept)).encode():
            write_atomically(self._path, text)
        if last_step is not None and any(r["step"] > last_step for r in records):
            self._open_events().restart(last_step + 1, now())
        self._newest = kept[-1]["step"] if kept else -1

    def write(self, step: int, metrics: Mapping[str, float], *, time: float | None = None) -> None:
        """Adds one line `{"step", "time", metric: value, ...}`, on disk when this returns.

        metrics: scalars (Python, numpy or JAX); a value that is not finite becomes null, as JSON has no NaN.
        time: Unix seconds; now if None. A second write for a step replaces the first.
        """
        if self._closed:
            raise ValueError(f"{self._path} is closed")
        if reserved := {"step", "time"} & metrics.keys():
            raise ValueError(f"metrics: {reserved.pop()!r} cannot be the name of a metric")
        record = {"step": int(step), "time": now() if time is None else time, **json_values(metrics)}
        if record["step"] > self._newest:
            _append(self._path, _text([record]).encode())
            self._open_events().write(record)
            self._newest = record["step"]
        else:
            self._insert(record)

    def write_pictures(self, step: int, pictures: Mapping[str, bytes], *, time: float | None = None) -> None:
        """Writes PNG files by their names, `directory/<name>-<step:08d>.png`, and shows them in TensorBoard.

        step: one that has been written. time: Unix seconds; now if None.
        """
        if self._closed:
            raise ValueError(f"{self._path} is closed")
        for name, png in pictures.items():
            write_atomically(self.directory / f"{name}-{step:08d}.png", png)
        if pictures:
            self._open_events().write_pictures(step, now() if time is None else time, pictures)

    def close(self) -> None:
        self._closed = True
        if self._events:
            self._events.close()
            self._events = None

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _insert(self, record: dict[str, Any]) -> None:
        records = _one_per_step([*read_metrics(self.directory), record])
        write_atomically(self._path, _text(records))
        # TensorBoard forgets everything from a restarted step on, so what came after is told again. (Pictures of the
        # step itself may be of what it replaces.)
        events = self._open_events()
        events.restart(record["step"], record["time"])
        for later in records:
            if later["step"] >= record["step"]:
                events.write(later)
                if later["step"] > record["step"] and (pictures := self._pictures(later["step"])):
                    events.write_pictures(later["step"], later["time"], pictures)

    def _pictures(self, step: int) -> dict[str, bytes]:
        """Those on disk."""
        ending = f"-{step:08d}.png"
        return {path.name.removesuffix(ending): path.read_bytes() for path in sorted(self.directory.glob(f"*{ending}"))}

    def _open_events(self) -> EventsFile:
        if self._events is None:
            self._events = EventsFile(self.directory)
        return self._events


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    """The records `{"step", "time", metric: value or None, ...}` of a metrics directory, sorted by step.

    Of several records of a step the last one counts. A half-written last line is left out; no file gives []. Raises
    RequestError, naming file and line, when another line is not a record: no crash explains that.
    """
    path = Path(directory) / METRICS_FILE
    return _one_per_step(_parse(_read(path), path))


def json_values(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Scalars (Python, numpy or JAX) as a log writes them: None for a value that is not finite."""
    values = {name: float(value) for name, value in metrics.items()}
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def json_tree(value: Any) -> Any:
    """A value of dicts, lists and scalars as JSON can say it: None for each number that is not finite."""
    if isinstance(value, Mapping):
        return {key: json_tree(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [json_tree(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _parse(content: bytes, path: Path) -> list[dict[str, Any]]:
    records = []
    lines = content.split(b"\n")
    if not lines[-1]:
        lines.pop()
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except ValueError as error:
            if number == len(lines):  # the writer was killed, or is still writing; zeros if the power failed
                break
            raise RequestError(f"{path}, line {number}: not JSON ({error})") from error
        if not (
            isinstance(record, dict)
            and isinstance(record.get("step"), int)
            and isinstance(record.get("time"), int | float)
        ):
            raise RequestError(f"{path}, line {number}: not an object with a step and a time (got {record!r})")
        records.append(record)
    return records


def _one_per_step(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    by_step = {record["step"]: record for record in records}
    return [by_step[step] for step in sorted(by_step)]


def _text(records: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)


def _append(path: Path, line: bytes) -> None:
    # A single unbuffered write: another process reads whole lines, and a kill cannot tear one.
    with naming(path):
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            written = os.write(file, line)
            if written < len(line):
                # Take the piece back, or the next line would be glued to it.
                os.ftruncate(file, os.fstat(file).st_size - written)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(file)
