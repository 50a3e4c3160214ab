"""Sentence pairs, from two files of which line i of one translates line i of the other, to Parquet files of pairs."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import re
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path, PurePath
from typing import IO

from raylingvo.data.prepare import _parquet
from raylingvo.data.prepare._sources import ARCHIVE_SUFFIXES, MAX_LINE_BYTES, Source, members, opened
from raylingvo.errors import RequestError
from raylingvo.monitor.progress import Report, progress_bar

Rows = Iterator[tuple[str, str]]

_SEGMENT = re.compile(r"<seg[^>]*>(.*?)</seg>", re.IGNORECASE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """An English file and a German one, as they are published.

    names: (English, German) spellings, best first; each may be gzipped and end in .gz, and with a folder before it, it
    counts only in a folder of that name. Those that end in .sgm have a sentence in each <seg>. archives: names of the
    .tar.gz files that hold them, best first.
    """

    names: tuple[tuple[str, str], ...]
    archives: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
    """A Parquet file to make of `pairs`, one after the other.

    keep: what to keep of all their rows. notes: called when they have been read; appended to the line that reports the
    file.
    """

    name: str
    pairs: tuple[Pair, ...]
    keep: Callable[[Rows], Rows] = lambda rows: rows
    notes: Callable[[], str] = lambda: ""


def prepare_pairs(from_path: Path, splits: Sequence[Split], folder: Path) -> list[str]:
    """Writes `<split>.parquet` in `folder`, with the columns `en` and `de`, for all splits or none; a line for each.

    from_path: a folder, searched with those in it, or a file in such a folder. Rows keep the order of their files. A
    last row without text on both sides, which some releases have, is no row. Raises RequestError if a file is missing,
    damaged, ambiguous or not UTF-8, or a pair has different numbers of lines.
    """
    import pyarrow as pa

    schema = pa.schema([("en", pa.string()), ("de", pa.string())])
    files = _Files(from_path)
    # All are found before any is read: that takes minutes.
    found = [[files.find(pair) for pair in split.pairs] for split in splits]
    written: list[_parquet.Rows] = []
    with ExitStack() as stack:
        for split, pairs in zip(splits, found, strict=True):
            file = folder / f"{split.name}.parquet"
            rows = stack.enter_context(_parquet.write(file, schema, _parquet.TEXT_ROWS))
            written.append(rows)
            with contextlib.closing(_read(pairs, folder)) as published:
                for en, de in split.keep(published):
                    rows.append(en, de)
            if not rows.count:
                raise RequestError(f"--from {from_path}: no pair of sentences for {file}")
    return [rows.line("pairs") + split.notes() for rows, split in zip(written, splits, strict=True)]


@dataclasses.dataclass(frozen=True)
class _Text:
    """One file of a pair, to be opened. size: of what `open` reports, in bytes."""

    where: str
    size: int
    open: Callable[[Report | None], AbstractContextManager[Source]]

    def sentences(self, source: Source) -> Iterator[str]:
        return _segments(source) if self.where.removesuffix(".gz").endswith(".sgm") else source.lines()


# A pair that was found: gives its two files, of which those from an archive live in a folder for temporary files, and
# until the stack is closed.
_Found = Callable[[Path, ExitStack], tuple[_Text, _Text]]


class _Files:
    """What is in the user's folder."""

    def __init__(self, from_path: Path) -> None:
        self._from_path = from_path
        self._by_name: dict[str, list[Path]] = {}
        # Beside a file there may be anything: folders there are not searched.
        for file in sorted(from_path.rglob("*") if from_path.is_dir() else from_path.parent.glob("*")):
            self._by_name.setdefault(file.name, []).append(file)

    def find(self, pair: Pair) -> _Found:
        half = ""
        for english, german in pair.names:
            en, de = self._one(english), self._one(german)
            if en and de:
                return functools.partial(_plain, en, de)
            if en or de:
                half = f", only {en or de}"
        for name in pair.archives:
            if archive := self._one(name):
                return functools.partial(_unpack, archive, pair)
        spellings = " or ".join(f"{english} with {german}" for english, german in pair.names)
        raise RequestError(
            f"--from {self._from_path}: no {spellings} (.gz or not){half}; and no {' or '.join(pair.archives)}"
        )

    def _one(self, name: str) -> Path | None:
        end = PurePath(name).parts
        spellings = [end] if name.endswith(ARCHIVE_SUFFIXES) else [end, (*end[:-1], f"{end[-1]}.gz")]
        for parts in spellings:
            files = [file for file in self._by_name.get(parts[-1], []) if file.parts[-len(parts) :] == parts]
            files = [file for file in files if file.is_file()]
            if len(files) > 1:
                raise RequestError(
                    f"--from {self._from_path}: {files[0]} or {files[1]}? Name a folder that has one of them"
                )
            if files:
                return files[0]
        return None


def _plain(en: Path, de: Path, scratch: Path, stack: ExitStack) -> tuple[_Text, _Text]:
    del scratch, stack  # of _Found: only archives need them
    en_text, de_text = (_Text(str(file), file.stat().st_size, functools.partial(opened, file)) for file in (en, de))
    return en_text, de_text


def _read(pairs: Sequence[_Found], scratch: Path) -> Generator[tuple[str, str]]:
    for found in pairs:
        with ExitStack() as stack:
            en, de = found(scratch, stack)
            report = stack.enter_context(
                progress_bar(f"preparing {re.split('/|: ', en.where)[-1]}", en.size, in_bytes=True)
            )
            english, german = stack.enter_context(en.open(report)), stack.enter_context(de.open(None))
            yield from _aligned(en.where, en.sentences(english), de.where, de.sentences(german))


def _aligned(en: str, english: Iterator[str], de: str, german: Iterator[str]) -> Rows:
    empty = 0  # rows without text, which count once another follows
    for number, (e, g) in enumerate(itertools.zip_longest(english, german)):
        if e is None or g is None:
            longer, shorter, rest = (de, en, german) if e is None else (en, de, english)
            lines = number + 1 + sum(1 for _ in rest)
            raise RequestError(f"{longer} has {lines} lines, {shorter} has {number}: they are no translations by line")
        if not e and not g:
            empty += 1
            continue
        yield from itertools.repeat(("", ""), empty)
        empty = 0
        yield e, g


def _segments(source: Source) -> Iterator[str]:
    """The text of each <seg>, which may go over lines, with single spaces.

    As Moses' input-from-sgm.perl and sacreBLEU read them: entities stay as they are.
    """
    held = ""
    for line in source.lines():
        held = f"{held} {line}" if held else line
        end = 0
        for match in _SEGMENT.finditer(held):
            yield " ".join(match[1].split())
            end = match.end()
        held = held[end:] if "<seg" in held[end:].lower() else ""
        if len(held) > MAX_LINE_BYTES:
            break
    if held:
        raise RequestError(f"{source.where} is damaged or cut short: a <seg> without its </seg>")


def _unpack(archive: Path, pair: Pair, scratch: Path, stack: ExitStack) -> tuple[_Text, _Text]:
    """The two files in `archive`, in unnamed temporary files in `scratch`: they follow one another, we need both."""
    wanted = {PurePath(name).parts: name for names in pair.names for name in names}
    texts: dict[str, _Text] = {}
    with contextlib.closing(members(archive)) as listed:
        for path, source in listed:
            for parts, name in wanted.items():
                if path.parts[-len(parts) :] == parts and name not in texts:
                    texts[name] = _spool(source, scratch, stack)
                    break
    for english, german in pair.names:
        if english in texts and german in texts:
            return texts[english], texts[german]
    english, german = pair.names[0]
    raise RequestError(f"{archive} has no {english} and {german}")


def _spool(source: Source, scratch: Path, stack: ExitStack) -> _Text:
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        file = stack.enter_context(tempfile.TemporaryFile(dir=scratch))  # noqa: SIM115
        source.copy_to(file)
        size = file.tell()
    except OSError as e:
        raise RequestError(f"cannot write in {scratch}: {e}; RAYLINGVO_DATA names the folder for data") from e
    return _Text(source.where, size, lambda report: _reopened(file, source.where))


@contextlib.contextmanager
def _reopened(file: IO[bytes], where: str) -> Iterator[Source]:
    file.seek(0)
    yield Source(file, where)
