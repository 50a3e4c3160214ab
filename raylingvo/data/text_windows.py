"""Windows of a running text: what a language model of fixed context is trained on."""

from __future__ import annotations

import dataclasses

import numpy as np

from raylingvo.data import paths
from raylingvo.data.dataset import FixedShapeDataset
from raylingvo.data.tokenizers import Tokenizer
from raylingvo.errors import RequestError

# B windows of T tokens.


@dataclasses.dataclass(frozen=True, eq=False)
class Windows:
    """The Source of this module. tokens: i32[N], the whole text; window i starts at token i * stride."""

    tokens: np.ndarray
    length: int
    stride: int
    as_packed: bool

    def __len__(self) -> int:
        """As many as it takes for every token but the first to be a label of one."""
        return 1 + -(-max(len(self.tokens) - 1 - self.length, 0) // self.stride)

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """ids and labels i32[B, T], paddings f32[B, T] (1 behind the end of the text), id i64[B] of `indices`.

        As packed rows also segment_ids i32[B, T], 1, and 0 where padded, and segment_pos i32[B, T], 0, 1, ..
        """
        position_BxT = indices[:, None] * self.stride + np.arange(self.length)
        last = len(self.tokens) - 1
        is_padded_BxT = position_BxT >= last
        fields = {
            "ids": self.tokens[np.minimum(position_BxT, last)],
            "labels": self.tokens[np.minimum(position_BxT + 1, last)],
            "paddings": is_padded_BxT.astype(np.float32),
            "id": indices,
        }
        if self.as_packed:
            places = np.broadcast_to(np.arange(self.length, dtype=np.int32), position_BxT.shape)
            fields |= {"segment_ids": (~is_padded_BxT).astype(np.int32), "segment_pos": places}
        return fields


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextWindows(FixedShapeDataset):
    """Windows of `length` tokens of one UTF-8 file, `stride` tokens apart; labels are the tokens one further on.

    path: relative to RAYLINGVO_DATA. stride: 1, every position starts a window; `length`, each token is predicted once.
    as_packed: with the fields of packed rows, each a single example. prepare: the recipe that writes the file, for the
    error message. The whole text is kept in memory, as tokens.
    """

    path: str
    tokenizer: Tokenizer
    length: int
    stride: int = 1
    as_packed: bool = False
    prepare: str = ""

    def __post_init__(self) -> None:
        for name in ("length", "stride"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1 (got {getattr(self, name)})")

        if self.stride > self.length:
            raise ValueError(f"stride must be <= length = {self.length}, or tokens are left out (got {self.stride})")
        if self.tokenizer.is_random:
            raise ValueError(f"tokenizer must draw nothing at random: ids are made once (got {self.tokenizer})")

    def check(self) -> None:
        if not paths.resolve(self.path).is_file():
            raise paths.not_found(self.path, self.prepare)
        self.tokenizer.check()

    def open(self) -> Windows:
        self.check()
        file = paths.resolve(self.path)
        try:
            text = file.read_bytes()
        except OSError as e:
            raise RequestError(f"cannot read {file}: {e.strerror}") from e
        tokens, _ = dataclasses.replace(self.tokenizer, append_eos=False).encode_flat([text])
        if len(tokens) < 2:
            raise RequestError(f"{file} must have at least two tokens (got {len(tokens)})")
        return Windows(tokens, self.length, self.stride, self.as_packed)
