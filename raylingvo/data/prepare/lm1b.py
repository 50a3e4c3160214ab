"""The one-billion-word benchmark, from its archive or shards to Parquet files of sentences.

Source: http://www.statmt.org/lm-benchmark, Chelba et al., https://arxiv.org/abs/1312.3005. Splits as in Lingvo's
lm.one_billion_wds: train is shards 1 to 99 of 100 (30,301,028 sentences), test shard 0 of the 50 of the held-out data
(6,075), dev its shard 1 (6,206). The SHA-256 is that of Lingvo's download_lm1b.py and of TensorFlow Datasets.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from pathlib import Path

from raylingvo.data.prepare import _download, _parquet
from raylingvo.data.prepare._sources import ARCHIVE_SUFFIXES, Source, members, opened
from raylingvo.errors import RequestError
from raylingvo.monitor.progress import progress_bar

ARCHIVE = "1-billion-word-language-modeling-benchmark-r13output.tar.gz"
URLS = ("https://www.statmt.org/lm-benchmark/", "http://www.statmt.org/lm-benchmark/")
SHA256 = "01ba60381110baf7f189dfd2b8374de371e8c9a340835793f190bdae9e90a34e"

# File name -> (split, number of the shard). news.en-00000-of-00100 is the whole of the held-out data.
_SHARDS = {
    **{f"news.en-{i:05}-of-00100": ("train", i) for i in range(1, 100)},
    "news.en.heldout-00001-of-00050": ("dev", 1),
    "news.en.heldout-00000-of-00050": ("test", 0),
}


def prepare(from_path: Path | None, root: Path) -> list[str]:
    """Writes `lm1b/{train,dev,test}.parquet` under `root`, all or none; a line for each.

    Column `text`, string: a sentence, tokenized with spaces by its authors, in the order of the shards. Row groups of
    4,096.

    from_path: the archive 1-billion-word-language-modeling-benchmark-r13output.tar.gz; or a folder that has it, or the
    101 shards news.en-* and news.en.heldout-0000[01]-of-00050 in any folder below. None: downloads the archive, 1.8 GB,
    and verifies its checksum. Raises RequestError, naming the file, if one is missing, damaged or there twice, or there
    is no network.
    """
    if from_path is not None:
        return _prepare(from_path, root / "lm1b")
    archive = _download.Published(name=ARCHIVE, urls=tuple(url + ARCHIVE for url in URLS), checksum=f"sha256:{SHA256}")
    otherwise = f"get {ARCHIVE} elsewhere and run: raylingvo data prepare lm1b --from PATH"
    with _download.folder([archive], root / "downloads" / "lm1b", otherwise) as path:
        return _prepare(path / ARCHIVE, root / "lm1b")


def _prepare(from_path: Path, folder: Path) -> list[str]:
    import pyarrow as pa

    schema = pa.schema([("text", pa.string())])
    with contextlib.ExitStack() as stack:
        shards = stack.enter_context(contextlib.closing(_shards(from_path)))
        splits = {
            split: stack.enter_context(_parquet.write(folder / f"{split}.parquet", schema, _parquet.TEXT_ROWS))
            for split in ("train", "dev", "test")
        }
        seen: dict[str, str] = {}
        for name, source in shards:
            if name in seen:
                raise RequestError(f"--from {from_path}: {seen[name]} or {source.where}? Name a folder that has one")
            seen[name] = source.where
            split, number = _SHARDS[name]
            splits[split].part(number)
            for line in source.lines():
                splits[split].append(line)
        if missing := [name for name in _SHARDS if name not in seen]:
            more = f" and {len(missing) - 1} more of {len(_SHARDS)} shards" if len(missing) > 1 else ""
            raise RequestError(f"--from {from_path}: no {missing[0]}{more}, in folders below or in {ARCHIVE}")
    return [rows.line("sentences") for rows in splits.values()]


def _shards(from_path: Path) -> Generator[tuple[str, Source]]:
    """Name and content of each shard that is there, in any order."""
    if from_path.is_dir():
        files = [file for file in sorted(from_path.rglob("news.en*")) if file.name in _SHARDS and file.is_file()]
        if files or not (from_path / ARCHIVE).is_file():
            yield from _from_files(files)
            return
        from_path = from_path / ARCHIVE
    if not from_path.name.endswith(ARCHIVE_SUFFIXES):
        raise RequestError(f"--from {from_path} must be {ARCHIVE}, or a folder with it or its shards news.en-*")
    with contextlib.closing(members(from_path)) as listed:
        for path, source in listed:
            if path.name in _SHARDS:
                yield path.name, source


def _from_files(files: list[Path]) -> Generator[tuple[str, Source]]:
    sizes = [file.stat().st_size for file in files]
    with progress_bar("reading news.en-*", sum(sizes), in_bytes=True) as report:
        before = 0
        for file, size in zip(files, sizes, strict=True):
            with opened(file, lambda done, before=before: report(before + done)) as source:
                yield file.name, source
            before += size
