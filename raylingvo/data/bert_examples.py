"""MLPerf's examples for BERT as whole sequences: what was masked is put back, to be masked anew at each step."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from raylingvo.data.sequences import Column
from raylingvo.data.text import RecordSequences
from raylingvo.data.token_store import Parse


@dataclasses.dataclass(frozen=True, kw_only=True)
class BertExamples(RecordSequences):
    """Pairs of texts in tf.Examples of MLPerf's BERT benchmark (v1.1). Batches: `ids`, `paddings` and so on.

    A record has input_ids and input_mask, i64[length]; masked_lm_positions and masked_lm_ids, i64[76], and
    masked_lm_weights, f32[76]: where tokens were masked, and what they were. eos_id: the separator, [SEP], of which
    the one between the two texts is left out. pad_id: behind the end. (Lingvo: TFRecordBertInput.)
    """

    eos_id: int = 102
    pad_id: int = 0

    def _columns(self) -> Sequence[Column]:
        return (Column(name="", pad_id=self.pad_id),)

    def _parser(self) -> Parse:
        from raylingvo.data.tf_example import Feature, parse_examples

        integers = ("input_ids", "input_mask", "masked_lm_positions", "masked_lm_ids")
        features = {name: Feature(dtype="int64") for name in integers}
        features["masked_lm_weights"] = Feature(dtype="float32")

        def parse(records: list[Any]) -> list[list[np.ndarray]]:
            return [[self._whole(**example) for example in parse_examples(records, features)]]

        return parse

    def _whole(
        self,
        input_ids: Any,
        input_mask: Any,
        masked_lm_positions: Any,
        masked_lm_ids: Any,
        masked_lm_weights: Any,
    ) -> np.ndarray:
        ids, real = np.array(input_ids), np.asarray(input_mask) > 0
        masked = np.asarray(masked_lm_weights) > 0
        if not len(masked) == len(masked_lm_positions) == len(masked_lm_ids):
            sizes = f"{len(masked)}, {len(masked_lm_positions)} and {len(masked_lm_ids)}"
            raise ValueError(f"masked_lm_weights, _positions and _ids must be equally many (got {sizes})")
        positions = np.asarray(masked_lm_positions)[masked]
        if len(ids) != len(real) or ((positions < 0) | (positions >= len(ids))).any():
            raise ValueError(f"input_ids must have {len(real)} ids, and all masked positions (got {len(ids)})")
        ids[positions] = np.asarray(masked_lm_ids)[masked]
        ids = ids[real]
        separators = np.flatnonzero(ids == self.eos_id)
        return np.delete(ids, separators[:1]) if len(separators) > 1 else ids
