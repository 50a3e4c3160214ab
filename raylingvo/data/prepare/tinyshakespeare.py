"""Tiny Shakespeare: 1,115,394 characters of plays, split into the first 90 % to train on and the last 10 %.

Source: https://github.com/karpathy/char-rnn, which published it; the split is that of https://github.com/karpathy/nanoGPT.
"""

from __future__ import annotations

from pathlib import Path

from raylingvo.data.prepare import _download
from raylingvo.data.prepare._parquet import atomic
from raylingvo.errors import RequestError

PUBLISHED = _download.Published(
    name="input.txt",
    urls=("https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",),
    checksum="sha256:86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
)


def prepare(from_path: Path | None, root: Path) -> list[str]:
    """Writes `tinyshakespeare/{train,dev}.txt` under `root`, each atomically; a line for each.

    from_path: the text, one file of UTF-8; any text will do. None: downloads the published one and verifies its
    checksum. Raises RequestError, naming the file, if it cannot be read, or there is no network.
    """
    if from_path is None:
        otherwise = (
            "get tinyshakespeare's input.txt elsewhere and run: raylingvo data prepare tinyshakespeare --from PATH"
        )
        content = _download.content(PUBLISHED, otherwise)
    else:
        try:
            content = from_path.read_bytes()
        except OSError as e:
            raise RequestError(f"cannot read --from {from_path}: {e.strerror}") from e
    try:
        text = content.decode()
    except UnicodeDecodeError as e:
        raise RequestError(f"--from {from_path} is not UTF-8: {e}") from e
    border = len(text) * 9 // 10
    parts = {"train": text[:border], "dev": text[border:]}
    if not all(parts.values()):
        raise RequestError(f"--from {from_path} has {len(text)} characters: too few to split")
    return [_write(root / "tinyshakespeare" / f"{split}.txt", part) for split, part in parts.items()]


def _write(file: Path, text: str) -> str:
    with atomic(file) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")
    return f"{file}: {len(text)} characters"
