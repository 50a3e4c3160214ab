"""Pictures of the attention of translations to their sources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import jax
import numpy as np
from flax import nnx

from raylingvo.data.sequences import Column, Ragged, pad
from raylingvo.data.tokenizers import Tokenizer
from raylingvo.models.mt.model import TranslationModule
from raylingvo.models.pictures import DecodedRow, Pictures
from raylingvo.models.task import Batch
from raylingvo.monitor.alignment_plot import MAX_TOKENS, Alignment, draw_alignments

# B examples, S and T tokens of a source and of a target, L positions of either.

_SHORTEST = 32  # L, so that only long examples have programs of their own


class Alignments(Pictures):
    """One PNG, `alignments`: the best hypothesis of each example, and where the attention of each of its words lies.

    It is what the model gives as `source_probs` for the hypothesis as if that were a reference: to rounding, what the
    search had at each step. Examples without a hypothesis are left out.
    """

    def __init__(self, source: Tokenizer, target: Tokenizer):
        self._source, self._target = source, target

    def inputs(self, rows: Sequence[DecodedRow]) -> Batch:
        """src_ids, tgt_ids, tgt_labels i32[B, L], src_paddings, tgt_paddings f32[B, L]; B = `num_examples`."""
        # Of a source all is needed. Of a target, what is drawn does not depend on what follows.
        sides = [list(map(_source_ids, rows)), [_best_ids(row)[:MAX_TOKENS] for row in rows]]
        length = max(_SHORTEST, *(1 << (len(ids) - 1).bit_length() for side in sides for ids in side if len(ids)))
        columns = (
            Column(name="src", pad_id=self._source.pad_id),
            Column(name="tgt", pad_id=self._target.pad_id, sos_id=self._target.sos_id),
        )
        # The last one again, so that there are always as many.
        fill = self.num_examples - len(rows)
        return pad(columns, [_ragged([*side, *[side[-1]] * fill]) for side in sides], length)

    def arrays(self, model: nnx.Module, inputs: Batch) -> jax.Array:
        """f32[B, L, L], from targets to sources."""
        return cast(TranslationModule, model)(inputs).source_probs

    def draw(self, arrays: np.ndarray, rows: Sequence[DecodedRow]) -> Mapping[str, bytes]:
        shown = self.alignments(arrays, rows)
        return {"alignments": draw_alignments(shown)} if shown else {}

    def alignments(self, probs_BxLxL: np.ndarray, rows: Sequence[DecodedRow]) -> list[Alignment]:
        """What is drawn: of each row that has a hypothesis."""
        found = []
        for row, probs_LxL in zip(rows, probs_BxLxL, strict=False):
            source_S, target_T = _source_ids(row), _best_ids(row)
            if len(target_T):
                title = f"example {row.batch['id'][row.row]}" if "id" in row.batch else f"row {row.row}"
                source, target = self._source.pieces(source_S), self._target.pieces(target_T)
                probs_TxS = probs_LxL[: min(len(target), MAX_TOKENS), : len(source)]
                found.append(Alignment(title, source, target, probs_TxS))
        return found


def _source_ids(row: DecodedRow) -> np.ndarray:
    """i32[S], the end included."""
    return np.asarray(row.batch["src_ids"][row.row])[np.asarray(row.batch["src_paddings"][row.row]) == 0]


def _best_ids(row: DecodedRow) -> np.ndarray:
    """i32[T], the end included; of length 0 if there is no hypothesis."""
    ids_kxT, len_k = row.decoded["ids"][row.row], row.decoded["lens"][row.row]
    best = int(np.argmax(len_k > 0))
    return ids_kxT[best, : len_k[best]]


def _ragged(rows: Sequence[np.ndarray]) -> Ragged:
    return Ragged(np.concatenate(rows).astype(np.int32), np.array(list(map(len, rows)), np.int64))
