"""The task of F2-XEnDec: to translate, to denoise the target language, and to predict what the two have in common."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import nnx

from raylingvo.errors import RequestError
from raylingvo.models.layers.dropout import dropout
from raylingvo.models.layers.losses import class_scores, cross_entropy
from raylingvo.models.mt.transformer_model import TransformerModule
from raylingvo.models.mt.translation import Translation
from raylingvo.models.mt.xendec.crossover import Crossed, Parent, cross_sources, input_shares, label_shares, sharpen
from raylingvo.models.mt.xendec.model import XEnDecModel, XEnDecModule
from raylingvo.models.mt.xendec.noise import corrupt, draw_positions, inner_positions, word_starts
from raylingvo.models.task import Batch, WeightedMetrics

# B pairs, S source positions, T target positions, D features, V words of the target.


@dataclasses.dataclass(frozen=True, kw_only=True)
class XEnDec(Translation):
    """Translation that is also trained on sentences of the target language, and on crossings of them with the pairs.

    The loss is loss_clean_weight * clean_loss + loss_mono_weight * other_loss + loss_mix_weight * mix_loss, the means
    over words of three cross-entropies: of the pairs; of the other sentences, after noise on their source; and of the
    children of both. A child's source has some words of the pair and the rest of the other sentence; its target's
    words, those that are read and the labels, are mixed as the parents' attention falls on the words that the child
    has of each. Evaluation and decoding are those of Translation.

    Batches to train on have other_src_ids, other_src_paddings, other_tgt_ids, other_tgt_labels, other_tgt_paddings too:
    the other sentence, twice, or another pair; see `TextDoubles` and `DoubleExamples`. Row i is crossed with the other
    sentence of row i - 1, so that this may be the target of its own pair. One vocabulary is for both languages.

    mask_word_id: replaces words of the other source; the vocabulary should have a piece of its own for it.
    mask_words_ratio: of how many. permutation_distance: how far words of the other source move, see `shuffle_words`.
    source_mask_ratio: how many words of the pair's source are replaced by those of the other; None: drawn for each row,
      min(r, 1 - r) with r of the distribution Beta(*source_mask_ratio_beta).
    use_atten_cl: the parents' attention, of which the shares are made, is taken to the power of step /
      curriculum_steps, at most 2: first all words count alike. atten_drop: dropout of this attention.
    use_prob_cl: a share of a child's labels that grows to 1 over curriculum_steps is not the parents' labels but what
      the model itself predicts for the parents.

    Source: Cheng et al., ICML 2021 (arXiv:2106.04060); Lingvo: TransformerXEnDecModel, tasks/mt/model.py, of which
    curriculum_steps are constants. Differs: see `cross_sources` and `sharpen`; its metrics of the three losses contain
    their weights; packed rows are refused. Lingvo's pad_id has no effect on a loss, and is not here.
    """

    model: XEnDecModel
    loss_clean_weight: float = 1.0
    loss_mono_weight: float = 1.0
    loss_mix_weight: float = 1.0
    mask_word_id: int = 5
    mask_words_ratio: float = 0.5
    permutation_distance: int = 3
    source_mask_ratio: float | None = None
    source_mask_ratio_beta: tuple[float, float] = (2.0, 6.0)
    atten_drop: float = 0.2
    use_atten_cl: bool = True
    use_prob_cl: bool = True
    curriculum_steps: int = 20_000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.source_tokenizer != self.target_tokenizer:
            raise ValueError("target_tokenizer must be source_tokenizer: sentences of the target are sources too")
        for name in ("loss_clean_weight", "loss_mono_weight", "loss_mix_weight", "permutation_distance"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be >= 0 (got {getattr(self, name)})")
        for name in ("mask_words_ratio", "source_mask_ratio"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} must be in [0, 1] (got {value})")
        if not min(self.source_mask_ratio_beta) > 0:
            raise ValueError(f"source_mask_ratio_beta must be > 0 (got {self.source_mask_ratio_beta})")
        if not 0 <= self.atten_drop < 1:
            raise ValueError(f"atten_drop must be in [0, 1) (got {self.atten_drop})")
        if self.curriculum_steps < 1:
            raise ValueError(f"curriculum_steps must be >= 1 (got {self.curriculum_steps})")
        if not 0 <= self.mask_word_id < self.model.source_vocab_size:
            raise ValueError(
                f"mask_word_id must be in [0, {self.model.source_vocab_size}), the vocabulary (got {self.mask_word_id})"
            )

    def loss(self, model: nnx.Module, batch: Batch, rng: jax.Array) -> tuple[jax.Array, WeightedMetrics]:
        """The weighted sum of the three losses, f32[]. Counts a step in the model's `trained_steps`.

        Metrics: loss, the sum; clean_loss, other_loss, mix_loss; and those of `eval_metrics`, of the pairs alone.
        Raises RequestError if the batch is packed or has no other sentences.
        """
        if "src_segment_ids" in batch:
            raise RequestError("XEnDec crosses one pair with another; set bucket_bounds instead of packed_lengths")
        if "other_src_ids" not in batch:
            raise RequestError("XEnDec trains on pairs with other sentences; use TextDoubles or DoubleExamples")
        module = cast(XEnDecModule, model)
        progress = module.trained_steps[...].astype(jnp.float32) / self.curriculum_steps
        module.trained_steps[...] += 1
        noise_rng, mask_rng, parents_rng, cross_rng, child_rng = jax.random.split(rng, 5)

        sides = _pair(batch), self._other(batch, noise_rng)
        parents = _parents(module, sides, parents_rng)
        label_xent_2BxT = self._xent(parents.logits, parents.batch["tgt_labels"])
        clean_xent_BxT, other_xent_BxT = jnp.split(label_xent_2BxT, 2)
        clean_logits_BxTxV, _ = jnp.split(parents.logits, 2)
        best_BxT = class_scores(clean_logits_BxTxV, batch["tgt_labels"]).best

        first, second = (
            Parent(side["src_paddings"], side["tgt_paddings"]).without(side["weight"] == 0) for side in sides
        )
        crossed = cross_sources(self._mask(mask_rng, first.source), first, second)
        mix_xent_BxT, weight_BxT = self._child(module, parents, crossed, sides, progress, cross_rng, child_rng)
        child = {"tgt_labels": batch["tgt_labels"], "tgt_paddings": 1 - weight_BxT}
        child["weight"] = (weight_BxT > 0).any(axis=1).astype(jnp.float32)

        metrics = self._of_words(clean_xent_BxT, best_BxT, batch)
        losses = {
            "clean_loss": metrics["loss"],
            "other_loss": self._of_words(other_xent_BxT, best_BxT, sides[1])["loss"],
            "mix_loss": self._of_words(mix_xent_BxT, best_BxT, child)["loss"],
        }
        weights = (self.loss_clean_weight, self.loss_mono_weight, self.loss_mix_weight)
        loss = sum((weight * value for weight, (value, _) in zip(weights, losses.values(), strict=True)), jnp.zeros(()))
        return loss, metrics | losses | {"loss": (loss, metrics["loss"][1])}

    def _other(self, batch: Batch, rng: jax.Array) -> dict[str, jax.Array]:
        """The other sentences as pairs, each in the row after its own, with noise on their sources."""
        row_B, number = jnp.arange(len(batch["weight"])), (batch["weight"] > 0).sum()
        # Rows of padding, which come last, stay where they are.
        row_B = jnp.where(row_B < number, (row_B - 1) % jnp.maximum(number, 1), row_B)
        names = ("src_ids", "src_paddings", "tgt_ids", "tgt_labels", "tgt_paddings")
        other = {name: batch[f"other_{name}"][row_B] for name in names} | {"weight": batch["weight"][row_B]}
        other["src_ids"] = corrupt(
            rng,
            other["src_ids"],
            other["src_paddings"],
            word_starts(self.source_tokenizer),
            distance=self.permutation_distance,
            mask_id=self.mask_word_id,
            mask_ratio=self.mask_words_ratio,
        )
        return other

    def _mask(self, rng: jax.Array, paddings_BxS: jax.Array) -> jax.Array:
        """bool[B, S], the words of the pairs' sources that are replaced."""
        beta_rng, rng = jax.random.split(rng)
        if self.source_mask_ratio is None:
            ratio_B = jax.random.beta(beta_rng, *self.source_mask_ratio_beta, shape=paddings_BxS.shape[:1])
            ratio_B = jnp.minimum(ratio_B, 1 - ratio_B)
        else:
            ratio_B = jnp.full(len(paddings_BxS), self.source_mask_ratio, jnp.float32)
        return draw_positions(rng, inner_positions(paddings_BxS), ratio_B)

    def _child(
        self,
        module: TransformerModule,
        parents: _Parents,
        crossed: Crossed,
        sides: tuple[Batch, Batch],
        progress: jax.Array,
        cross_rng: jax.Array,
        rng: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """Cross-entropy of the children's words and the words' weights, f32[B, T] each."""
        probs_2BxTxS = jax.lax.stop_gradient(parents.source_probs)
        if self.use_atten_cl:
            probs_2BxTxS = sharpen(probs_2BxTxS, parents.batch["src_paddings"], jnp.minimum(progress, 2.0))
        labels = label_shares(crossed, *jnp.split(dropout(probs_2BxTxS, self.atten_drop, cross_rng), 2))

        encoder_rng, decoder_rng = jax.random.split(rng)
        batch = {"src_paddings": crossed.source_paddings}
        source_BxSxD = crossed.source.mix(*jnp.split(parents.source, 2))
        target_BxTxD = input_shares(crossed, labels).mix(*jnp.split(parents.target, 2))
        encoded_BxSxD = module.encode_embedded(source_BxSxD, batch, rng=encoder_rng)
        features_BxTxD = module.predict(encoded_BxSxD, target_BxTxD, batch, rng=decoder_rng).features
        logits_BxTxV = module.softmax(features_BxTxD)

        xents = [self._xent(logits_BxTxV, side["tgt_labels"]) for side in sides]
        if self.use_prob_cl:
            predicted_share = jnp.minimum(progress, 1.0)
            log_z_BxT = jax.nn.logsumexp(logits_BxTxV, axis=-1)
            predicted_2BxTxV = jax.nn.softmax(jax.lax.stop_gradient(parents.logits))
            xents = [
                (1 - predicted_share) * xent_BxT
                + predicted_share * (log_z_BxT - (predicted_BxTxV * logits_BxTxV).sum(axis=-1))
                for xent_BxT, predicted_BxTxV in zip(xents, jnp.split(predicted_2BxTxV, 2), strict=True)
            ]
        weights = [
            (1 - parent.target) * side["weight"][:, None]
            for parent, side in zip((crossed.first, crossed.second), sides, strict=True)
        ]
        return labels.first * xents[0] + labels.second * xents[1], jnp.maximum(*weights)

    def _xent(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        scores = class_scores(logits, labels)
        return cross_entropy(scores, self.model.target_vocab_size, label_smoothing=self.label_smoothing)


class _Parents(NamedTuple):
    """What the network makes of pairs and of others, 2B rows: all pairs come first.

    source, target: embeddings [2B, S, D] and [2B, T, D], without positions. logits: f32[2B, T, V]. source_probs:
    f32[2B, T, S], attention.
    """

    batch: Batch
    source: jax.Array
    target: jax.Array
    logits: jax.Array
    source_probs: jax.Array


def _pair(batch: Batch) -> dict[str, jax.Array]:
    names = ("src_ids", "src_paddings", "tgt_ids", "tgt_labels", "tgt_paddings", "weight")
    return {name: batch[name] for name in names}


def _parents(module: TransformerModule, sides: tuple[Batch, Batch], rng: jax.Array) -> _Parents:
    encoder_rng, decoder_rng = jax.random.split(rng)
    both = {name: jnp.concatenate([side[name] for side in sides]) for name in sides[0]}
    source, target = module.embed_source(both), module.embed_target(both)
    predicted = module.predict(module.encode_embedded(source, both, rng=encoder_rng), target, both, rng=decoder_rng)
    return _Parents(both, source, target, module.softmax(predicted.features), predicted.source_probs)
