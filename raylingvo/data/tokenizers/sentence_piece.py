"""SentencePiece models, by the library of that name."""

from __future__ import annotations

import array
import contextlib
import dataclasses
import gc
import re
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np

from raylingvo.data.tokenizers import _files
from raylingvo.data.tokenizers.base import Text, TokenizerWithGivenIds, to_bytes
from raylingvo.errors import RequestError

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

# The library starts a thread for each batch, which takes 50 us: as long as 20 sentences.
_BATCH = 20
# The library has one seed for the process.
_SEED_LOCK = threading.Lock()
# Before, a thread could be seeded once only.
_SEEDABLE = (0, 2, 3)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SentencePieceTokenizer(TokenizerWithGivenIds):
    """The pieces that a SentencePiece model finds, of white space too.

    spm_model: its `.model` file. Its special ids, where it has them, must be those that are given here.
    nbest_size, alpha: how pieces are drawn at random: 0 or 1: not at all; more: from so many best segmentations, each
    with a probability proportional to that of the model to the power of alpha; negative: from all. alpha is the
    probability to leave a merge out if the model is BPE. Drawing takes three times as long.
    Source: Kudo, Subword regularization, ACL 2018; Provilkov et al., BPE-dropout, ACL 2020.

    Draws repeat for the same seed and version of the library, in any thread; see `encode_flat`.

    Behind the end comes <unk>, as Lingvo has it, not </s>. A sentence that is cut loses </s>. Decoding drops <s> and
    </s>, and writes unknown ones as the model has it, usually U+2047.
    """

    spm_model: str
    nbest_size: int = 0
    alpha: float = 1.0

    _leaves_room_for_eos = False

    def __post_init__(self) -> None:
        if self.alpha <= 0.0:
            raise ValueError(f"alpha must be > 0 (got {self.alpha})")

    @property
    def vocab_size(self) -> int:
        return self._processor.get_piece_size()

    @property
    def pad_id(self) -> int:
        return self.unk_id

    @property
    def _processor(self) -> SentencePieceProcessor:
        processor = _files.load(self.spm_model, _parse)
        found = {"unk": processor.unk_id(), "sos": processor.bos_id(), "eos": processor.eos_id()}
        for name, id_ in found.items():
            expected = getattr(self, f"{name}_id")
            if id_ not in (expected, -1):
                raise RequestError(
                    f"target_{name}_id={expected}, but {self.spm_model} has {processor.id_to_piece(id_)} at {id_}; "
                    f"set target_{name}_id={id_}"
                )
        return processor

    @property
    def is_random(self) -> bool:
        return self.nbest_size not in (0, 1)

    def fingerprint(self) -> str:
        import sentencepiece

        return f"{super().fingerprint()}sentencepiece {sentencepiece.__version__};"

    def _paths(self) -> Sequence[str]:
        return (self.spm_model,)

    def _tokens(self, strings: Sequence[Text], seed_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        flat = array.array("i")
        with _no_garbage_collection():
            rows = self._sampled(strings, seed_N) if self.is_random else self._best(strings)
            for row in rows:
                flat.fromlist(row)  # half the time of np.fromiter
        return np.frombuffer(flat, np.int32), np.fromiter(map(len, rows), np.int64, len(rows))

    def _best(self, strings: Sequence[Text]) -> list[list[int]]:
        encode = self._processor.encode
        if len(strings) < _BATCH:
            return [encode(to_bytes(string), out_type=int) for string in strings]
        try:
            return encode(cast(list[str], list(strings)), out_type=int)
        except (TypeError, RuntimeError, UnicodeEncodeError):
            # Lone surrogates, which versions of the library refuse in different ways.
            return encode([to_bytes(string) for string in strings], out_type=int)

    def _sampled(self, strings: Sequence[Text], seed_N: np.ndarray) -> list[list[int]]:
        import sentencepiece

        version = sentencepiece.__version__
        if tuple(map(int, re.findall(r"\d+", version)[:3])) < _SEEDABLE:
            raise RequestError(
                f"nbest_size={self.nbest_size} needs sentencepiece >= 0.2.3 for repeatable draws (got {version}); "
                "run: pip install -U sentencepiece"
            )
        encode, reseed = self._processor.encode, sentencepiece.set_random_generator_seed
        nbest_size, alpha = max(self.nbest_size, -1), self.alpha
        rows = []
        with _SEED_LOCK:
            for string, seed in zip(strings, (seed_N >> np.uint64(33)).tolist(), strict=True):
                reseed(seed)
                rows.append(
                    encode(to_bytes(string), out_type=int, enable_sampling=True, nbest_size=nbest_size, alpha=alpha)
                )
        return rows

    def _pieces_of(self, row: list[int]) -> list[str]:
        return [self._processor.id_to_piece(id_) for id_ in self._known(row)]

    def _decode(self, rows: list[list[int]]) -> list[str]:
        known = list(map(self._known, rows))
        return self._processor.decode(known) if known else []

    def _known(self, row: list[int]) -> list[int]:
        size, unk = self._processor.get_piece_size(), self.unk_id
        return [i if 0 <= i < size else unk for i in row]


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Python looks for cycles whenever many objects have been made: of many rows a fifth of the time, and in vain."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _parse(content: bytes, name: str) -> SentencePieceProcessor:
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor()
    try:
        processor.load_from_serialized_proto(content)
    except RuntimeError as e:
        raise RequestError(f"{name} is not a SentencePiece model: {str(e).partition(chr(10))[0]}") from None
    return processor
