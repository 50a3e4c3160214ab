"""The task of translation: the words of a target, one after another, from a source (Lingvo: tasks/mt/model.py)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from raylingvo.data.sequences import Column, Ragged, pad
from raylingvo.data.tokenizers import Tokenizer
from raylingvo.errors import RequestError
from raylingvo.metrics.corpus_scores import CorpusScores
from raylingvo.metrics.translation import translation_scores
from raylingvo.models.layers.losses import check_label_smoothing, cross_entropy, weighted_mean
from raylingvo.models.mt.alignments import Alignments
from raylingvo.models.mt.decoding import Decoding, search
from raylingvo.models.mt.model import TranslationModel, TranslationModule
from raylingvo.models.task import Batch, Task, WeightedMetrics

# B pairs, S source positions, T target positions, D features; k hyps of a source.

_EMPTY = "empty source"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Translation(Task):
    """The probability of each word of a target, after those before it, given the source.

    Batches: src_ids i32[B, S], src_paddings f32[B, S], tgt_ids, tgt_labels i32[B, T], tgt_paddings f32[B, T], weight
    f32[B] of ones and zeros, id i64[B]; packed rows also src_segment_ids, src_segment_pos, tgt_segment_ids,
    tgt_segment_pos. On the host there may be src_text and tgt_text, the texts as they were read, and what
    `encode_lines` adds.

    label_smoothing: probability that training takes from the label and gives to all other words alike.
    label_smoothed_eval: log_pplx of an evaluation is of the smoothed labels too, as Lingvo's is: with 0.1 and 32,000
      words it is 1.362 at least, and exp(log_pplx) is no perplexity. False: of the labels as they are.
    per_word_avg_loss: training minimises the mean over words; False: the sum over words, divided by the sentences.
    source_tokenizer, target_tokenizer: those of the datasets; for texts in outputs, and for `decode --input`.
    """

    model: TranslationModel
    source_tokenizer: Tokenizer
    target_tokenizer: Tokenizer
    decoding: Decoding = Decoding()
    label_smoothing: float = 0.1
    label_smoothed_eval: bool = True
    per_word_avg_loss: bool = True

    def __post_init__(self) -> None:
        check_label_smoothing(self.label_smoothing)

    def init(self, rngs: nnx.Rngs) -> nnx.Module:
        """Raises RequestError if a tokenizer has ids that the model has no words for."""
        for side in ("source", "target"):
            tokenizer, words = getattr(self, f"{side}_tokenizer"), getattr(self.model, f"{side}_vocab_size")
            try:
                tokenizer.check()
            except RequestError:
                continue  # A vocabulary is missed when there is text for it; a model can be looked at without one.
            if tokenizer.vocab_size > words:
                raise RequestError(
                    f"task.model.{side}_vocab_size is {words}, but the tokenizer of the {side} has "
                    f"{tokenizer.vocab_size} ids: set it to {tokenizer.vocab_size}, or more"
                )
        return self.model.build(rngs)

    def loss(self, model: nnx.Module, batch: Batch, rng: jax.Array) -> tuple[jax.Array, WeightedMetrics]:
        """Cross-entropy in nats, f32[]. Metrics: those of `eval_metrics`."""
        metrics = self._metrics(cast(TranslationModule, model), batch, self.label_smoothing, rng)
        return metrics["loss"][0], metrics

    def eval_metrics(self, model: nnx.Module, batch: Batch) -> WeightedMetrics:
        """loss, log_pplx, fraction_of_correct_next_step_preds, num_samples_in_batch; Lingvo's names.

        log_pplx: cross-entropy, a mean over words, ends of sentences included. loss: the same, or, without
        per_word_avg_loss, its sum over words divided by the number of sentences.
        """
        smoothing = self.label_smoothing if self.label_smoothed_eval else 0.0
        return self._metrics(cast(TranslationModule, model), batch, smoothing, None)

    def decode(self, model: nnx.Module, batch: Batch) -> dict[str, jax.Array]:
        """ids i32[B, k, T], lens i32[B, k], scores f32[B, k] of `decoding.Hyps`.

        Raises RequestError if sentences are packed.
        """
        if "src_segment_ids" in batch:
            raise RequestError("decoding needs a row for each sentence; set bucket_bounds instead of packed_lengths")
        tokenizer = self.target_tokenizer
        found = search(
            cast(TranslationModule, model), batch, self.decoding, sos_id=tokenizer.sos_id, eos_id=tokenizer.eos_id
        )
        return found._asdict()

    def postprocess(
        self, decoded: Mapping[str, np.ndarray], batch: Mapping[str, np.ndarray]
    ) -> tuple[list[tuple[str, dict[str, Any]]], WeightedMetrics]:
        """For each row "source", "reference" where there is one, and "hypotheses": "text", "score", "tokens" of each.

        Hypotheses come best first, `decoding.num_best` of them. "note": why an output is empty, or its source cut.
        Metric num_samples_in_batch.
        """
        rows = np.flatnonzero(np.asarray(batch["weight"]) > 0)
        sources = self._texts(self.source_tokenizer, batch, "src", rows)
        references = self._texts(self.target_tokenizer, batch, "tgt", rows) if "tgt_labels" in batch else None
        outputs = []
        for i, row in enumerate(rows.tolist()):
            output: dict[str, Any] = {"source": sources[i]}
            if references is not None:
                output["reference"] = references[i]
            note = self._note_on_line(batch, row)
            output["hypotheses"] = self._hypotheses({name: np.asarray(x)[row] for name, x in decoded.items()})
            if note == _EMPTY:
                output["hypotheses"] = [{"text": "", "score": 0.0, "tokens": []}]
            if not output["hypotheses"]:
                note = note or "no hypothesis ended: there are limits to their length"
            elif not note and not self._has_ended({name: np.asarray(x)[row] for name, x in decoded.items()}):
                note = "the best hypothesis has no end: there are limits to its length"
            if note:
                output["note"] = note
            outputs.append((str(int(batch["id"][row])) if "id" in batch else str(row), output))
        return outputs, {"num_samples_in_batch": (float(len(rows)), 1.0)}

    def corpus_scores(self, outputs: Sequence[Mapping[str, Any]]) -> CorpusScores:
        """Of the best hypotheses, where there are references: corpus_bleu (Lingvo's), sacrebleu, chrf."""
        known = [output for output in outputs if "reference" in output]
        best = [output["hypotheses"][0]["text"] if output["hypotheses"] else "" for output in known]
        return translation_scores(best, [output["reference"] for output in known])

    def pictures(self) -> Alignments:
        """`alignments`: where the attention of each word of the best hypotheses lies."""
        return Alignments(self.source_tokenizer, self.target_tokenizer)

    def encode_lines(self, lines: Sequence[str]) -> dict[str, np.ndarray]:
        """src_ids i32[B, S], src_paddings f32[B, S], src_length i32[B] before lines were cut, weight f32[B].

        With `decoding.forced_prefix` also prefix_ids i32[B, P] and prefix_lens i32[B], and prefix_length i32[B] before
        they were cut. S and P are of few sizes, since each is compiled anew.
        """
        how, starts = self.decoding, [""] * len(lines)
        if how.forced_prefix:
            lines, starts = [line.partition("\t")[0] for line in lines], [line.partition("\t")[2] for line in lines]
        rows = self.source_tokenizer.encode_ragged(lines)
        length_B = np.array([len(row) for row in rows], np.int32)
        end = int(self.source_tokenizer.append_eos)
        rows = [
            row
            if len(row) <= how.max_source_tokens
            else np.r_[row[: how.max_source_tokens - end], row[len(row) - end :]]
            for row in rows
        ]
        batch = _padded(Column(name="src", pad_id=self.source_tokenizer.pad_id), rows)
        batch |= {"src_length": length_B, "weight": np.ones(len(lines), np.float32)}
        if how.forced_prefix:
            tokenizer = dataclasses.replace(self.target_tokenizer, append_eos=False)
            prefixes = tokenizer.encode_ragged(starts)
            batch["prefix_length"] = np.array([len(row) for row in prefixes], np.int32)
            # There is room for the end of the sentence.
            prefixes = [prefix[: how.steps(len(row)) - 1] for prefix, row in zip(prefixes, rows, strict=True)]
            batch["prefix_ids"] = _padded(Column(name="", pad_id=0), prefixes)["ids"]
            batch["prefix_lens"] = np.array([len(row) for row in prefixes], np.int32)
        return batch

    def _metrics(
        self, module: TranslationModule, batch: Batch, label_smoothing: float, rng: jax.Array | None
    ) -> WeightedMetrics:
        scores = module.softmax.scores(module(batch, rng=rng).features, batch["tgt_labels"])
        xent_BxT = cross_entropy(scores, self.model.target_vocab_size, label_smoothing=label_smoothing)
        return self._of_words(xent_BxT, scores.best, batch)

    def _of_words(self, xent_BxT: jax.Array, best_BxT: jax.Array, batch: Batch) -> WeightedMetrics:
        weights_BxT = (1 - batch["tgt_paddings"]) * batch["weight"][:, None]
        log_pplx, words = weighted_mean(xent_BxT, weights_BxT)
        sentences = num_sentences(batch)
        loss = (log_pplx, words)
        if not self.per_word_avg_loss:
            loss = (log_pplx * words / jnp.maximum(sentences, 1), sentences)
        return {
            "loss": loss,
            "log_pplx": (log_pplx, words),
            "fraction_of_correct_next_step_preds": weighted_mean(best_BxT == batch["tgt_labels"], weights_BxT),
            "num_samples_in_batch": (sentences, jnp.ones(())),
        }

    def _hypotheses(self, decoded: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
        """Of one source."""
        found = np.flatnonzero(decoded["lens"] > 0)[: self.decoding.num_best or None]
        ids_nxT, len_n = decoded["ids"][found], decoded["lens"][found]
        last_n = ids_nxT[np.arange(len(found)), len_n - 1]
        text_len_n = len_n - (last_n == self.target_tokenizer.eos_id)
        texts = self.target_tokenizer.decode(ids_nxT, text_len_n)
        return [
            {
                "text": text,
                "score": float(decoded["scores"][i]),
                "tokens": self.target_tokenizer.pieces(ids_nxT[n, : text_len_n[n]]),
            }
            for n, (i, text) in enumerate(zip(found, texts, strict=True))
        ]

    def _has_ended(self, decoded: Mapping[str, np.ndarray]) -> bool:
        """Whether the best hyp of a source has; those of a beam all have."""
        best = np.flatnonzero(decoded["lens"] > 0)[0]
        return bool(decoded["ids"][best, decoded["lens"][best] - 1] == self.target_tokenizer.eos_id)

    def _note_on_line(self, batch: Mapping[str, np.ndarray], row: int) -> str:
        if "src_length" not in batch:
            return ""
        length, most = int(batch["src_length"][row]), self.decoding.max_source_tokens
        if length <= self.source_tokenizer.append_eos:
            return _EMPTY
        if length > most:
            return f"source cut to {most} of {length} tokens"
        given, kept = (
            (int(batch[name][row]) for name in ("prefix_length", "prefix_lens")) if "prefix_lens" in batch else (0, 0)
        )
        return f"start cut to {kept} of {given} tokens" if given > kept else ""

    def _texts(self, tokenizer: Tokenizer, batch: Mapping[str, np.ndarray], side: str, rows: np.ndarray) -> list[str]:
        """The text of each row as it was read, or else as the tokenizer makes it of its ids."""
        if f"{side}_text" in batch:
            return [str(batch[f"{side}_text"][row]) for row in rows]
        ids_BxT = np.asarray(batch[f"{side}_ids" if side == "src" else f"{side}_labels"])[rows]
        length_B = (np.asarray(batch[f"{side}_paddings"])[rows] == 0).sum(axis=1)
        if tokenizer.append_eos:
            ended = ids_BxT[np.arange(len(rows)), np.maximum(length_B - 1, 0)] == tokenizer.eos_id
            length_B = length_B - ended
        return tokenizer.decode(ids_BxT, length_B)


def num_sentences(batch: Batch) -> jax.Array:
    """f32[], the pairs of a batch whose weight is not 0, packed ones too."""
    found_B = batch["tgt_segment_ids"].max(axis=1) if "tgt_segment_ids" in batch else jnp.ones_like(batch["weight"])
    return jnp.where(batch["weight"] > 0, found_B, 0).sum(dtype=jnp.float32)


def _padded(column: Column, rows: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Rows of one of a few lengths: 8, 12, 16, 24, 32, 48, .."""
    longest = max(map(len, rows), default=1)
    power = 1 << max(longest - 1, 7).bit_length()
    length = power * 3 // 4 if longest <= power * 3 // 4 else power
    tokens = np.concatenate([np.empty(0, np.int32), *rows]).astype(np.int32)
    return pad([column], [Ragged(tokens, np.array([len(row) for row in rows], np.int64))], length)
