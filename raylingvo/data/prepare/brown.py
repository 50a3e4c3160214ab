"""The Brown corpus of American English, 1961, as plain sentences: the text of Lingvo's punctuator.

Source: NLTK's brown_tei.zip, https://github.com/nltk/nltk_data; the SHA-256, the rules and the split are those of
Lingvo's punctuator/tools/download_brown_corpus.py, whose test set has 2,466 sentences.
"""

from __future__ import annotations

import contextlib
import io
import random
import re
import string
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO
from xml.etree import ElementTree

from raylingvo.data.prepare import _download
from raylingvo.data.prepare._parquet import atomic
from raylingvo.errors import RequestError

PUBLISHED = _download.Published(
    name="brown_tei.zip",
    urls=("https://raw.githubusercontent.com/nltk/nltk_data/gh-pages/packages/corpora/brown_tei.zip",),
    checksum="sha256:335bec1ea6362751d5d5c46970137ebb01c80bf7d7d75558787729d275e0a687",
)
CORPUS = "brown_tei/Corpus.xml"
_SEED = 1234
_SENTENCES = "./{*}TEI/{*}text/{*}body/{*}p/{*}s"
_ALPHANUMERIC = frozenset(string.ascii_letters + string.digits)
_DOUBLED = re.compile(r"!!|\?\?|--|\*\*|;;|::|,,")  # how the corpus marks what ends a clause


def prepare(from_path: Path | None, root: Path) -> list[str]:
    """Writes `brown/{train,test}.txt` under `root`, both or neither; a line for each.

    A line is a sentence; no two are the same. 95 % of them, at random but always the same ones, are for training.

    from_path: brown_tei.zip, or a folder that has it. None: downloads it and verifies its checksum. Raises
    RequestError, naming the file, if it is missing or damaged, or there is no network.
    """
    if from_path is None:
        otherwise = f"get {PUBLISHED.name} elsewhere and run: raylingvo data prepare brown --from PATH"
        content = io.BytesIO(_download.content(PUBLISHED, otherwise))
        sentences = _read(content, PUBLISHED.name)
    else:
        archive = from_path / PUBLISHED.name if from_path.is_dir() else from_path
        try:
            with archive.open("rb") as content:
                sentences = _read(content, f"--from {archive}")
        except OSError as e:
            raise RequestError(f"cannot read --from {archive}: {e.strerror or e}") from e
    sentences = sorted(set(sentences))
    random.Random(_SEED).shuffle(sentences)
    border = int(len(sentences) * 0.95)
    parts = {"train": sentences[:border], "test": sentences[border:]}
    with contextlib.ExitStack() as stack:
        lines = []
        for split, part in parts.items():
            file = root / "brown" / f"{split}.txt"
            if not part:
                raise RequestError(f"{len(sentences)} sentences are too few to split into {file.parent}/*.txt")
            temporary = stack.enter_context(atomic(file))
            temporary.write_text("".join(f"{sentence}\n" for sentence in part), encoding="utf-8", newline="")
            lines.append(f"{file}: {len(part)} sentences")
    return lines


def _read(archive: BinaryIO, where: str) -> list[str]:
    try:
        with zipfile.ZipFile(archive) as files, files.open(CORPUS) as corpus:
            return list(_sentences(ElementTree.parse(corpus).getroot()))
    except KeyError as e:
        raise RequestError(f"{where} has no {CORPUS}") from e
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ElementTree.ParseError) as e:
        raise RequestError(f"{where} is damaged or cut short: {e}") from e


def _sentences(corpus: ElementTree.Element) -> Iterator[str]:
    for element in corpus.iterfind(_SENTENCES):
        tokens = [(token.tag.rpartition("}")[2], token.text or "") for token in element]
        sentence = tidied(joined(tokens))
        if sentence:
            yield sentence


def joined(tokens: list[tuple[str, str]]) -> str:
    """The text of words `w` and punctuation `c` in a row, each a pair of its kind and its characters.

    Words stand apart, and punctuation at the word before it, but for what opens: a quotation, a bracket, and any `'`
    behind a word (which is wrong where it closes; so are Lingvo's data). Dashes stand after a space and before one.
    """
    parts: list[str] = []
    apart = False  # whether there is a space before a word that follows
    for kind, text in tokens:
        if kind not in ("w", "c"):
            continue
        opens = kind == "c" and (text in ("``", "(", "[") or (text == "'" and apart))
        if apart and (kind == "w" or opens or text in ("-", "--")):
            parts.append(" ")
        parts.append('"' if kind == "c" and text in ("``", "''") else text)
        apart = not opens
    return "".join(parts)


def tidied(text: str) -> str:
    """A sentence without doubled marks, and without quotation marks or brackets around it, its first letter a capital.

    "" if it has no letters, quotation marks or brackets that are left open, or does not start with a letter or digit.
    """
    text = _DOUBLED.sub(lambda mark: mark[0][0], text)
    if set(string.ascii_letters).isdisjoint(text) or text.count('"') % 2:
        return ""
    if text.count("(") != text.count(")") or text.count("[") != text.count("]"):
        return ""
    if (text[0], text[-1]) in (('"', '"'), ("(", ")"), ("[", "]")):
        text = text[1:-1]
    return text[0].upper() + text[1:] if text[0] in _ALPHANUMERIC else ""
