"""Language models on packed rows, with GShard's losses and metrics (Lingvo: core/gshard_builder.py)."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Protocol, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from raylingvo.models.layers.losses import (
    ClassScores,
    LabelSmoothing,
    check_label_smoothing,
    cross_entropy,
    weighted_mean,
    z_loss,
)
from raylingvo.models.layers.softmax import Softmax
from raylingvo.models.lm.language_model import NextTokenModel
from raylingvo.models.task import Batch, Task, WeightedMetrics

# B rows, T tokens, D features.

_HASH = np.uint32(2654435761)  # odd, so that its powers are too


class PackedModule(Protocol):
    """What the tasks need of a network."""

    softmax: Softmax

    def with_aux_loss(self, batch: Batch, *, rng: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """Features [B, T, D] of ids, segment_ids and segment_pos, and the auxiliary loss f32[] of its experts."""
        ...


class _Targets(NamedTuple):
    """What is to be predicted. inputs: the batch that the network sees. weights: f32[B, T]."""

    inputs: Batch
    labels: jax.Array
    weights: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class _PackedTask(Task, abc.ABC):
    """What language models of both directions share.

    label_smoothing: eps, GShard's form: 1 - eps + eps / V for the label. z_loss: coefficient of the squared logarithm
    of the softmax's sum. aux_loss: coefficient of the experts' auxiliary loss, if there are any. loss_denominator:
    "tokens" that count, or all "slots" of the rows, padding too, as GShard trains with.
    """

    model: NextTokenModel
    label_smoothing: float = 0.0
    z_loss: float = 1e-4
    aux_loss: float = 0.01
    loss_denominator: Literal["tokens", "slots"] = "tokens"

    def __post_init__(self) -> None:
        check_label_smoothing(self.label_smoothing)
        for name in ("z_loss", "aux_loss"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be >= 0 (got {getattr(self, name)})")

    def init(self, rngs: nnx.Rngs) -> nnx.Module:
        return self.model.build(rngs)

    @abc.abstractmethod
    def _targets(self, batch: Batch, rng: jax.Array | None) -> _Targets:
        """What of the batch is to be predicted. Without an rng, what is drawn depends on each row alone."""

    def loss(self, model: nnx.Module, batch: Batch, rng: jax.Array) -> tuple[jax.Array, WeightedMetrics]:
        """Cross-entropy of smoothed labels, plus z-loss, over `loss_denominator`; plus the auxiliary loss. f32[]."""
        module_rng, targets_rng = jax.random.split(rng)
        metrics = self._metrics(model, self._targets(batch, targets_rng), batch, module_rng)
        return metrics["loss"][0], metrics

    def eval_metrics(self, model: nnx.Module, batch: Batch) -> WeightedMetrics:
        """Lingvo's names. All but counts are means; over tokens that count, unless it says otherwise.

        `loss` and what it is the sum of: soft_labels_xent (over `loss_denominator` in the loss itself),
        avg_z_loss_increment (over `loss_denominator`), aux_loss (times its coefficient). mean_xent, log_pplx: -log p of
        labels, in nats. acc1: labels that are the likeliest. whole_tgt_accuracy: rows, of those with tokens, in which
        all are. weight: tokens. batch_utilized_ratio: of the slots of rows. num_packed_examples: in all rows.
        """
        return self._metrics(model, self._targets(batch, None), batch, None)

    def decode(self, model: nnx.Module, batch: Batch) -> dict[str, jax.Array]:
        """log_prob f32[B], the sum over what a row is to predict; num_tokens f32[B]; num_correct f32[B]."""
        targets = self._targets(batch, None)
        scores, _ = self._scores(model, targets, None)
        correct_BxT = (scores.best == targets.labels) * targets.weights
        xent_BxT = jnp.where(targets.weights > 0, cross_entropy(scores, self.model.vocab_size), 0.0)
        return {
            "log_prob": -xent_BxT.sum(axis=1),
            "num_tokens": targets.weights.sum(axis=1),
            "num_correct": correct_BxT.sum(axis=1),
        }

    def postprocess(
        self, decoded: Mapping[str, np.ndarray], batch: Mapping[str, np.ndarray]
    ) -> tuple[list[tuple[str, dict[str, Any]]], WeightedMetrics]:
        """An output per row: log_prob, num_tokens, num_correct; metrics mean_xent and acc1 over their tokens."""
        real = np.flatnonzero(np.asarray(batch["weight"]) > 0)
        values = {name: np.asarray(x, np.float64) for name, x in decoded.items()}
        outputs = [
            (
                str(int(batch["id"][row])) if "id" in batch else str(row),
                {name: float(x[row]) for name, x in values.items()},
            )
            for row in real
        ]
        total = {name: float(x[real].sum()) for name, x in values.items()}
        tokens = total["num_tokens"]
        return outputs, {
            "mean_xent": (-total["log_prob"] / (tokens or 1), tokens),
            "acc1": (total["num_correct"] / (tokens or 1), tokens),
        }

    def _scores(self, model: nnx.Module, targets: _Targets, rng: jax.Array | None) -> tuple[ClassScores, jax.Array]:
        module = cast(PackedModule, model)
        # Rows that only fill a batch take no place at an expert.
        real_Bx1 = targets.inputs["weight"][:, None] > 0
        inputs = {**targets.inputs, "segment_ids": jnp.where(real_Bx1, targets.inputs["segment_ids"], 0)}
        features_BxTxD, aux_loss = module.with_aux_loss(inputs, rng=rng)
        return module.softmax.scores(features_BxTxD, targets.labels), aux_loss

    def _metrics(self, model: nnx.Module, targets: _Targets, batch: Batch, rng: jax.Array | None) -> WeightedMetrics:
        scores, aux_loss = self._scores(model, targets, rng)
        weights_BxT, V = targets.weights, self.model.vocab_size
        smoothing: LabelSmoothing = "all"
        soft_BxT = cross_entropy(scores, V, label_smoothing=self.label_smoothing, smoothing=smoothing)
        soft_xent, tokens = weighted_mean(soft_BxT, weights_BxT)
        mean_xent, _ = weighted_mean(cross_entropy(scores, V), weights_BxT)
        z_increment, _ = weighted_mean(z_loss(scores, self.z_loss), weights_BxT)
        correct_BxT = scores.best == targets.labels
        row_weight_B = (weights_BxT.sum(axis=1) > 0).astype(jnp.float32)
        whole_B = (correct_BxT | (weights_BxT == 0)).all(axis=1)
        real_B = (batch["weight"] > 0).astype(jnp.float32)
        slots = real_B.sum() * weights_BxT.shape[1]
        used = ((batch["segment_ids"] != 0) * real_B[:, None]).sum()
        denominator = slots if self.loss_denominator == "slots" else tokens
        share = tokens / jnp.maximum(denominator, 1)
        weighted_aux_loss = self.aux_loss * aux_loss
        one = jnp.float32(1)
        return {
            "loss": ((soft_xent + z_increment) * share + weighted_aux_loss, denominator),
            "mean_xent": (mean_xent, tokens),
            "log_pplx": (mean_xent, tokens),
            "soft_labels_xent": (soft_xent, tokens),
            "acc1": weighted_mean(correct_BxT, weights_BxT),
            "whole_tgt_accuracy": weighted_mean(whole_B, row_weight_B),
            "avg_z_loss_increment": (z_increment * share, denominator),
            "aux_loss": (weighted_aux_loss, one),
            "weight": (tokens, one),
            "batch_utilized_ratio": (used / jnp.maximum(slots, 1), slots),
            "num_packed_examples": (_num_segments(batch), one),
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackedLanguageModel(_PackedTask):
    """The probability of each token after those before it in its example (Lingvo: UniTransformer).

    Batches: ids, labels, segment_ids, segment_pos i32[B, T]; weight f32[B]. What counts has a segment_id and a label
    above 0. tokens_are_words: metrics have num_words and log_pplx_per_word too, as those of `LanguageModel`.
    """

    tokens_are_words: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.model.is_causal:
            raise ValueError("model must be causal, or it sees what it is to predict")

    def _targets(self, batch: Batch, rng: jax.Array | None) -> _Targets:
        counts_BxT = (batch["segment_ids"] != 0) & (batch["labels"] > 0)
        return _Targets(batch, batch["labels"], counts_BxT * batch["weight"][:, None])

    def _metrics(self, model: nnx.Module, targets: _Targets, batch: Batch, rng: jax.Array | None) -> WeightedMetrics:
        metrics = super()._metrics(model, targets, batch, rng)
        if self.tokens_are_words:
            num_words = (targets.weights > 0).sum(dtype=jnp.float32)
            metrics |= {"log_pplx_per_word": metrics["log_pplx"], "num_words": (num_words, jnp.float32(1))}
        return metrics


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedLanguageModel(_PackedTask):
    """Tokens that are masked, from all others of their example (Lingvo: BertTransformer).

    Batches: ids, segment_ids, segment_pos i32[B, T]; weight f32[B]. Of the tokens, special ones (ids below
    `first_maskable_id`) excepted, the share `masked` becomes `mask_id`, `replaced` a random token, and `kept` stays but
    is to be predicted as well; drawn anew at each training step, and always alike in evaluation. Metrics besides those
    of packed models: num_total_tokens, num_masked_tokens.
    """

    mask_id: int = 103
    first_maskable_id: int = 104
    masked: float = 0.12
    replaced: float = 0.015
    kept: float = 0.015

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model.is_causal:
            raise ValueError("model must not be causal: masked tokens are predicted from both sides")
        shares = (self.masked, self.replaced, self.kept)
        if min(shares) < 0 or not 0 < sum(shares) <= 1:
            raise ValueError(f"masked, replaced and kept must be >= 0, and together in (0, 1] (got {shares})")
        for name in ("mask_id", "first_maskable_id"):
            if not 0 <= getattr(self, name) < self.model.vocab_size:
                raise ValueError(f"{name} must be in [0, {self.model.vocab_size}) (got {getattr(self, name)})")

    def _targets(self, batch: Batch, rng: jax.Array | None) -> _Targets:
        ids_BxT = batch["ids"]
        if rng is not None:
            draw_BxT, random_BxT = self._draw(rng, ids_BxT.shape)
        else:
            # By the row's content, so that it is masked alike in whatever batch it stands.
            hash_B = (ids_BxT.astype(jnp.uint32) * _HASH ** jnp.arange(ids_BxT.shape[1], dtype=jnp.uint32)[None]).sum(1)
            keys_B = jax.vmap(lambda row: jax.random.fold_in(jax.random.key(0), row))(hash_B)
            draw_BxT, random_BxT = jax.vmap(lambda key: self._draw(key, ids_BxT.shape[1:]))(keys_B)
        hidden_BxT = jnp.where(draw_BxT < self.masked, self.mask_id, ids_BxT)
        is_replaced_BxT = (draw_BxT >= self.masked) & (draw_BxT < self.masked + self.replaced)
        hidden_BxT = jnp.where(is_replaced_BxT, random_BxT, hidden_BxT)
        maskable_BxT = (batch["segment_ids"] != 0) & (ids_BxT >= self.first_maskable_id)
        chosen_BxT = maskable_BxT & (draw_BxT < self.masked + self.replaced + self.kept)
        inputs = {**batch, "ids": jnp.where(chosen_BxT, hidden_BxT, ids_BxT)}
        return _Targets(inputs, ids_BxT, chosen_BxT * batch["weight"][:, None])

    def _draw(self, rng: jax.Array, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
        """What decides about each token, U(0, 1), and a random token to take its place."""
        draw_rng, token_rng = jax.random.split(rng)
        tokens = jax.random.randint(token_rng, shape, self.first_maskable_id, self.model.vocab_size)
        return jax.random.uniform(draw_rng, shape), tokens

    def _metrics(self, model: nnx.Module, targets: _Targets, batch: Batch, rng: jax.Array | None) -> WeightedMetrics:
        one = jnp.float32(1)
        total = ((batch["segment_ids"] != 0) * (batch["weight"] > 0)[:, None]).sum(dtype=jnp.float32)
        return super()._metrics(model, targets, batch, rng) | {
            "num_total_tokens": (total, one),
            "num_masked_tokens": ((targets.weights > 0).sum(dtype=jnp.float32), one),
        }


def _num_segments(batch: Batch) -> jax.Array:
    return jnp.where(batch["weight"] > 0, batch["segment_ids"].max(axis=1), 0).sum(dtype=jnp.float32)
