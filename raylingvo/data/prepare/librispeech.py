"""LibriSpeech, from its archives or the folders in them to a Parquet file of utterances for each part.

Source: https://www.openslr.org/12, Panayotov et al., ICASSP 2015. SHA-256 of the archives: those of torchaudio and of
TensorFlow Datasets.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path, PurePath
from typing import NamedTuple

from raylingvo.data.prepare import _download, _parquet
from raylingvo.data.prepare._sources import ARCHIVE_SUFFIXES, Source, members, opened
from raylingvo.errors import RequestError
from raylingvo.monitor.progress import progress_bar

MIRRORS = (
    "https://www.openslr.org/resources/12/",
    "https://us.openslr.org/resources/12/",
    "https://openslr.elda.org/resources/12/",
)
# The small ones first: who has not the time or the disk for all has these.
SHA256 = {
    "dev-clean": "76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3",
    "dev-other": "12661c48e8c3fe1de2c1caa4c3e135193bfb1811584f11f569dd12645aa84365",
    "test-clean": "39fde525e59672dc6d1551919b1478f724438a95aa55f874b576be21967e6c23",
    "test-other": "d09c181bba5cf717b3dee7d4d592af11a3ee3a09e08ae025c5506f6ebe961c29",
    "train-clean-100": "d4ddd1d5a6ab303066f14971d768ee43278a5f2a0aa43dc716b0e64ecbbbf6e2",
    "train-clean-360": "146a56496217e96c14334a160df97fffedd6e0a04e66b9c5af0d40be3c792ecf",
    "train-other-500": "ddb22f27f96ec163645d53215559df6aa36515f26e01dd70798188350adcb6d2",
}

# <part>/<speaker>/<chapter>/<speaker>-<chapter>-<utterance>.flac, and <speaker>-<chapter>.trans.txt beside them.
_PART = re.compile(r"(train|dev|test)(-[a-z0-9]+)+")
_FLAC = re.compile(r"([0-9]{1,9})-([0-9]{1,9})-[0-9]{1,9}\.flac")
_TRANSCRIPT = re.compile(r"([0-9]{1,9})-([0-9]{1,9})\.trans\.txt")
# The longest utterances have 35 s: 1.1 MB before compression. The longest chapters, some 40 MB.
_MAX_FLAC_BYTES = 16 << 20
_MAX_WAITING_BYTES = 1 << 30
_ROWS = 64  # about 13 MB
_SOURCE_KEY = b"raylingvo.source"


class _Chapter(NamedTuple):
    """Identifies a chapter; they sort by speaker, then by chapter."""

    part: str
    speaker: int
    chapter: int


class _Utterance(NamedTuple):
    id: str
    text: str
    flac: bytes
    where: str


_Chapters = Generator[tuple[_Chapter, list[_Utterance]]]


def prepare(from_path: Path | None, root: Path) -> list[str]:
    """Writes `librispeech/<part>.parquet` under `root`, each atomically, for train-clean-100, ...; a line for each.

    A row is an utterance, in the order of speakers, their chapters, and utterances. Row groups of up to 64. Columns:
        id: string, as 103-1240-0000.
        speaker, chapter: int32.
        text: string, the transcript in lower case (it is published in upper case; Lingvo's features have lower case).
        audio: binary, the FLAC file as it is published, mono.
        sample_rate: int32, in Hz (16,000 in all parts). num_samples: int64. Both as the FLAC header has them; the audio
            itself is not decoded.

    from_path: an archive as train-clean-100.tar.gz, or a folder with archives, or the unpacked LibriSpeech/, or a part
    of it as LibriSpeech/dev-clean; all parts that are there. Mini LibriSpeech (https://www.openslr.org/31), which has
    the same form, works too. None: downloads the seven parts, 61 GB, and verifies their checksums, one after the other;
    parts that were downloaded and written before stay as they are. Raises RequestError, naming the file, if one is
    damaged, a FLAC file has no transcript or a transcript no FLAC file, or there is no network.
    """
    folder = root / "librispeech"
    if from_path is None:
        return [_download_part(part, root, folder) for part in SHA256]
    if from_path.is_file():
        if not from_path.name.endswith(ARCHIVE_SUFFIXES):
            raise RequestError(f"--from {from_path} must be a .tar.gz of LibriSpeech, or a folder")
        return _write(_from_archive(from_path), from_path, folder)
    transcripts = _find_transcripts(from_path)
    unpacked = {chapter.part: {} for chapter in transcripts}
    for chapter, file in transcripts.items():
        unpacked[chapter.part][chapter] = file
    archives = [file for file in sorted(from_path.glob("*.tar.gz")) if _PART.fullmatch(file.name[: -len(".tar.gz")])]
    archives = [file for file in archives if file.name[: -len(".tar.gz")] not in unpacked]
    if not unpacked and not archives:
        raise RequestError(f"--from {from_path}: no <part>.tar.gz, and no <part>/<speaker>/<chapter>/*.trans.txt")
    sources = [(from_path, _from_tree(part, chapters)) for part, chapters in unpacked.items()]
    sources += [(archive, _from_archive(archive)) for archive in archives]
    return [line for path, chapters in sources for line in _write(chapters, path, folder)]


def _download_part(part: str, root: Path, folder: Path) -> str:
    checksum = f"sha256:{SHA256[part]}"
    file = folder / f"{part}.parquet"
    if _source(file) == checksum:
        return f"{file}: as downloaded before"
    name = f"{part}.tar.gz"
    published = _download.Published(name=name, urls=tuple(url + name for url in MIRRORS), checksum=checksum)
    otherwise = f"get {name} elsewhere and run: raylingvo data prepare librispeech --from PATH"
    with _download.folder([published], root / "downloads" / "librispeech", otherwise) as path:
        (line,) = _write(_from_archive(path / name), path / name, folder, checksum)
        return line


def _source(file: Path) -> str | None:
    """The checksum of the archive that a file was made from, if it was one that we downloaded."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not file.is_file():
        return None
    try:
        value = (pq.read_metadata(file).metadata or {}).get(_SOURCE_KEY)
    except (pa.ArrowException, OSError):
        return None  # not ours: to be replaced
    return value.decode() if value else None


def _write(chapters: _Chapters, from_path: Path, folder: Path, source: str = "") -> list[str]:
    """Writes the parts that `chapters` have, all or none. source: kept in the files, see `_source`."""
    import pyarrow as pa

    columns = [("id", pa.string()), ("speaker", pa.int32()), ("chapter", pa.int32()), ("text", pa.string())]
    columns += [("audio", pa.binary()), ("sample_rate", pa.int32()), ("num_samples", pa.int64())]
    schema = pa.schema(columns, {_SOURCE_KEY: source.encode()})
    compression = {name: "none" if name == "audio" else "zstd" for name in schema.names}  # FLAC is compressed
    parts: dict[str, _parquet.Rows] = {}
    seen: set[tuple[str, int, int]] = set()
    with ExitStack() as stack:
        stack.enter_context(closing(chapters))
        for (part, speaker, chapter), utterances in chapters:
            if (part, speaker, chapter) in seen:
                raise RequestError(f"{from_path} has {part}/{speaker}/{chapter} twice")
            seen.add((part, speaker, chapter))
            if part not in parts:
                write = _parquet.write(folder / f"{part}.parquet", schema, _ROWS, compression)
                parts[part] = stack.enter_context(write)
            parts[part].part((speaker, chapter))
            for utterance in sorted(utterances):
                sample_rate, num_samples = _stream_info(utterance.flac, utterance.where)
                parts[part].append(
                    utterance.id, speaker, chapter, utterance.text, utterance.flac, sample_rate, num_samples
                )
    if not parts:
        raise RequestError(f"{from_path} has no <part>/<speaker>/<chapter>/*.flac with a .trans.txt")
    return [parts[part].line("utterances") for part in sorted(parts)]


def _find_transcripts(from_path: Path) -> dict[_Chapter, Path]:
    """By part, speaker and chapter, in their order."""
    found: dict[_Chapter, Path] = {}
    # Absolute: a part may be named by `.`.
    for file in from_path.absolute().rglob("*.trans.txt"):
        if chapter := _chapter(file, _TRANSCRIPT, str(file)):
            if chapter in found:
                raise RequestError(f"--from {from_path}: {found[chapter]} or {file}? Name a folder that has one")
            found[chapter] = file
    folders = {file.parent for file in found.values()}
    for part in {folder.parents[1] for folder in folders}:
        for folder in part.glob("*/*"):
            if folder not in folders and any(folder.glob("*.flac")):
                raise RequestError(f"{folder} has FLAC files, but no .trans.txt")
    return dict(sorted(found.items()))


def _from_tree(part: str, transcripts: dict[_Chapter, Path]) -> _Chapters:
    with progress_bar(f"reading {part}", in_bytes=True) as report:
        done = 0
        for chapter, file in transcripts.items():
            with opened(file) as source:
                texts = _texts(source)
            flacs = {flac.stem: flac for flac in file.parent.glob("*.flac") if _FLAC.fullmatch(flac.name)}
            _check(file.parent, chapter, texts, flacs)
            utterances = []
            for id_, flac in flacs.items():
                with opened(flac) as source:
                    utterances.append(_Utterance(id_, texts[id_], source.read(_MAX_FLAC_BYTES), str(flac)))
                done += len(utterances[-1].flac)
                report(done)
            yield chapter, utterances


def _from_archive(archive: Path) -> _Chapters:
    """Chapters as they are complete: an archive lists the files of a chapter together, but in any order."""
    texts: dict[_Chapter, dict[str, str]] = {}
    flacs: dict[_Chapter, dict[str, tuple[bytes, str]]] = {}
    waiting = 0  # bytes of `flacs`
    with closing(members(archive)) as listed:
        for path, source in listed:
            if chapter := _chapter(path, _FLAC, source.where):
                content = source.read(_MAX_FLAC_BYTES)
                flacs.setdefault(chapter, {})[path.stem] = content, source.where
                waiting += len(content)
            elif chapter := _chapter(path, _TRANSCRIPT, source.where):
                texts[chapter] = _texts(source)
            else:
                continue
            if waiting > _MAX_WAITING_BYTES:
                raise RequestError(f"{archive} has the files of a chapter far apart: unpack it, and name the folder")
            if chapter in texts and len(flacs.get(chapter, ())) == len(texts[chapter]):
                text, flac = texts.pop(chapter), flacs.pop(chapter, {})
                _check(archive, chapter, text, flac)
                waiting -= sum(len(content) for content, _ in flac.values())
                yield chapter, [_Utterance(id_, text[id_], *flac[id_]) for id_ in flac]
    for chapter in sorted(texts.keys() | flacs.keys()):
        _check(archive, chapter, texts.get(chapter, {}), flacs.get(chapter, {}))


def _chapter(path: PurePath, pattern: re.Pattern[str], where: str) -> _Chapter | None:
    """The chapter of a file; None if its name is not of `pattern`."""
    if not (match := pattern.fullmatch(path.name)):
        return None
    folders = path.parts[-4:-1]
    if len(folders) < 3 or folders[1:] != match.groups() or not _PART.fullmatch(folders[0]):
        raise RequestError(f"{where} is not in a folder <part>/{match[1]}/{match[2]}, with <part> as dev-clean")
    return _Chapter(folders[0], int(match[1]), int(match[2]))


def _texts(source: Source) -> dict[str, str]:
    """The transcript by utterance, of a .trans.txt: lines of an id, a space and the text."""
    texts: dict[str, str] = {}
    for number, line in enumerate(source.lines(), 1):
        if not line.strip():
            continue
        id_, _, text = line.partition(" ")
        if not _FLAC.fullmatch(f"{id_}.flac") or not text.strip() or id_ in texts:
            raise RequestError(f"{source.where}: line {number} must be the id of a new utterance, a space and its text")
        texts[id_] = text.strip().lower()
    return texts


def _check(where: Path, chapter: _Chapter, texts: Mapping[str, object], flacs: Mapping[str, object]) -> None:
    for lacking, have, of in (("FLAC file", flacs, texts), ("transcript", texts, flacs)):
        if missing := sorted(of.keys() - have.keys()):
            raise RequestError(f"{where}: no {lacking} for {missing[0]} of {chapter.part}")


def _stream_info(flac: bytes, where: str) -> tuple[int, int]:
    """Sample rate and number of samples, of the STREAMINFO block: https://xiph.org/flac/format.html."""
    # The magic, the block's type (0) and length (34), 10 bytes about frames, then 20 + 3 + 5 + 36 bits: rate, channels
    # - 1, bits per sample - 1, samples.
    if len(flac) < 26 or flac[:4] != b"fLaC" or flac[4] & 0x7F or int.from_bytes(flac[5:8], "big") != 34:
        raise RequestError(f"{where} is not a FLAC file: it starts with {flac[:8].hex(' ') or 'nothing'}")
    bits = int.from_bytes(flac[18:26], "big")
    sample_rate, channels, num_samples = bits >> 44, (bits >> 41 & 7) + 1, bits & (1 << 36) - 1
    if not sample_rate or channels != 1 or not num_samples:
        raise RequestError(
            f"{where} must be mono audio (got {channels} channels, {num_samples} samples at {sample_rate} Hz)"
        )
    return sample_rate, num_samples
