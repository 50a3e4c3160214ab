"""Language models: the next token of a sentence, from those before (Lingvo: tasks/lm/model.py)."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from raylingvo.data.sequences import Column, Ragged, pad
from raylingvo.data.tokenizers import Tokenizer
from raylingvo.errors import RequestError
from raylingvo.models.layers.losses import cross_entropy, weighted_mean
from raylingvo.models.layers.sampled_softmax import log_uniform_candidates
from raylingvo.models.layers.softmax import Softmax
from raylingvo.models.task import Batch, Task, WeightedMetrics

# B sentences, T tokens, D features, V classes.


class NextTokenModule(Protocol):
    """What the task needs of a network."""

    softmax: Softmax

    def __call__(self, batch: Batch, *, rng: jax.Array | None = None) -> jax.Array:
        """Features [B, T, D] from which the softmax predicts the labels. A key `rng` means training."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class NextTokenModel(abc.ABC):
    """Configuration of a network that predicts tokens from those before.

    compute_dtype: of activations and of products. Weights, and the statistics of norms and softmaxes, are float32.
    """

    vocab_size: int
    compute_dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        if self.vocab_size < 2:
            raise ValueError(f"vocab_size must be >= 2 (got {self.vocab_size})")

    @abc.abstractmethod
    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        """The initialised module, a `NextTokenModule`."""

    @property
    def is_causal(self) -> bool:
        """Whether features depend on the tokens up to their own alone."""
        return True

    @property
    def has_aux_loss(self) -> bool:
        """Whether there are experts, whose auxiliary loss training needs."""
        return False

    @property
    def has_cache(self) -> bool:
        """Whether the module is a `generation.CachedModule`."""
        return False

    @property
    def max_length(self) -> int | None:
        """The most tokens of a row; None: any number."""
        return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageModel(Task):
    """The probability of each token after those before it.

    Batches: ids i32[B, T], with <s> first; labels i32[B, T], with </s> last; paddings f32[B, T]; weight f32[B]; id
    i64[B]; and segment_ids i32[B, T] if sentences are packed. A token counts `weight`, a padded one not at all.

    num_sampled: candidates of the sampled softmax that training uses; ids must then be in the order of their frequency.
    0: the whole softmax. Evaluation and decoding always use the whole.
    sum_loss_over_tokens: training minimises the sum over the tokens of a batch, not their mean.
    tokens_are_words: metrics have num_words and log_pplx_per_word, which are then those of tokens: like Lingvo's, they
    count the end of a sentence as a word.
    tokenizer: for text: `tokens_from_labels` and unknown words in outputs, and `decode --input`.
    """

    model: NextTokenModel
    num_sampled: int = 0
    sum_loss_over_tokens: bool = False
    tokens_are_words: bool = False
    tokenizer: Tokenizer | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.num_sampled <= self.model.vocab_size:
            raise ValueError(f"num_sampled must be in [0, {self.model.vocab_size}] (got {self.num_sampled})")
        if not self.model.is_causal:
            raise ValueError("model must be causal, or it sees what it is to predict")
        if self.model.has_aux_loss:
            raise ValueError("model must have no mixtures of experts: PackedLanguageModel trains those")

    def init(self, rngs: nnx.Rngs) -> nnx.Module:
        return self.model.build(rngs)

    def loss(self, model: nnx.Module, batch: Batch, rng: jax.Array) -> tuple[jax.Array, WeightedMetrics]:
        """Cross-entropy in nats, f32[], a mean or a sum over tokens.

        Metrics: those of `eval_metrics`; with `num_sampled` all but fraction_of_correct_next_step_preds, and log_pplx
        is that among the candidates. `loss` is what is minimised.
        """
        module_rng, candidates_rng = jax.random.split(rng)
        module = cast(NextTokenModule, model)
        features_BxTxD = module(batch, rng=module_rng)
        if self.num_sampled:
            candidates = log_uniform_candidates(candidates_rng, self.num_sampled, self.model.vocab_size)
            xent_BxT = module.softmax.sampled_cross_entropy(features_BxTxD, batch["labels"], candidates)
            metrics = self._metrics(xent_BxT, batch)
        else:
            metrics = self._whole_softmax_metrics(module, features_BxTxD, batch)
        if self.sum_loss_over_tokens:
            mean, total = metrics["log_pplx"]
            metrics["loss"] = (mean * total, jnp.ones(()))
        return metrics["loss"][0], metrics

    def eval_metrics(self, model: nnx.Module, batch: Batch) -> WeightedMetrics:
        """Metrics loss, log_pplx, fraction_of_correct_next_step_preds, num_predictions, num_sentences.

        log_pplx: the mean over tokens of -log p, in nats: perplexity is exp(log_pplx). `loss` is the same also if
        training minimises a sum: a sum would depend on how the data are batched. (Lingvo's is then the sum.)
        """
        module = cast(NextTokenModule, model)
        return self._whole_softmax_metrics(module, module(batch), batch)

    def decode(self, model: nnx.Module, batch: Batch) -> dict[str, jax.Array]:
        """log_pplx_per_token f32[B, T]: -log p of each label in nats. 0 where padded."""
        module = cast(NextTokenModule, model)
        scores = module.softmax.scores(module(batch), batch["labels"])
        xent_BxT = cross_entropy(scores, self.model.vocab_size)
        return {"log_pplx_per_token": jnp.where(batch["paddings"] > 0, 0.0, xent_BxT)}

    def postprocess(
        self, decoded: Mapping[str, np.ndarray], batch: Mapping[str, np.ndarray]
    ) -> tuple[list[tuple[str, dict[str, Any]]], WeightedMetrics]:
        """An output per sentence, named as Lingvo's inference graph has them; metrics log_pplx, num_sentences.

        log_pplx_per_sample (the sum of log_pplx_per_token), log_pplx_per_token, lengths (tokens, the end of the
        sentence included), labels; with a tokenizer tokens_from_labels and num_oovs_per_sample, and num_oovs as a
        metric. Raises RequestError if sentences are packed.
        """
        if "segment_ids" in batch:
            raise RequestError("decoding needs a row for each sentence; set bucket_bounds instead of packed_lengths")
        xent_BxT = np.asarray(decoded["log_pplx_per_token"], np.float64)
        length_B = (np.asarray(batch["paddings"]) == 0).sum(axis=1)
        outputs = []
        for row in np.flatnonzero(np.asarray(batch["weight"]) > 0):
            length = int(length_B[row])
            label_T, xent_T = np.asarray(batch["labels"])[row, :length], xent_BxT[row, :length]
            output: dict[str, Any] = {
                "log_pplx_per_sample": float(xent_T.sum()),
                "lengths": length,
                "log_pplx_per_token": xent_T.tolist(),
                "labels": label_T.tolist(),
            }
            if self.tokenizer is not None:
                output["num_oovs_per_sample"] = int((label_T == self.tokenizer.unk_id).sum())
                output["tokens_from_labels"] = self.tokenizer.decode(label_T[None], [length])[0]
            outputs.append((str(int(batch["id"][row])) if "id" in batch else str(row), output))
        total = sum(output["lengths"] for _, output in outputs)
        log_pplx = sum(output["log_pplx_per_sample"] for _, output in outputs) / (total or 1)
        metrics: WeightedMetrics = {"log_pplx": (log_pplx, float(total)), "num_sentences": (float(len(outputs)), 1.0)}
        if self.tokenizer is not None:
            metrics["num_oovs"] = (float(sum(output["num_oovs_per_sample"] for _, output in outputs)), 1.0)
        return outputs, metrics

    def encode_lines(self, lines: Sequence[str]) -> dict[str, np.ndarray]:
        """ids, labels, paddings and weight of sentences, as the tokenizer has them.

        Raises RequestError without a tokenizer.
        """
        if self.tokenizer is None:
            raise RequestError("the task needs a tokenizer to read lines of text; set task.tokenizer")
        tokens, length_B = self.tokenizer.encode_flat(lines)
        # Few lengths, since each is compiled anew.
        length = 1 << max(int(np.max(length_B, initial=1)) - 1, 15).bit_length()
        column = Column(name="", pad_id=self.tokenizer.pad_id, sos_id=self.tokenizer.sos_id)
        return pad([column], [Ragged(tokens, length_B)], length) | {"weight": np.ones(len(lines), np.float32)}

    def _whole_softmax_metrics(
        self, module: NextTokenModule, features_BxTxD: jax.Array, batch: Batch
    ) -> WeightedMetrics:
        scores = module.softmax.scores(features_BxTxD, batch["labels"])
        metrics = self._metrics(cross_entropy(scores, self.model.vocab_size), batch)
        correct = weighted_mean(scores.best == batch["labels"], _weights(batch))
        return metrics | {"fraction_of_correct_next_step_preds": correct}

    def _metrics(self, xent_BxT: jax.Array, batch: Batch) -> WeightedMetrics:
        weights_BxT = _weights(batch)
        log_pplx, total = weighted_mean(xent_BxT, weights_BxT)
        one = jnp.ones(())
        metrics: WeightedMetrics = {
            "loss": (log_pplx, total),
            "log_pplx": (log_pplx, total),
            "num_predictions": ((weights_BxT > 0).sum(dtype=jnp.float32), one),
            "num_sentences": (_num_sentences(batch), one),
        }
        if self.tokens_are_words:
            metrics |= {"log_pplx_per_word": (log_pplx, total), "num_words": metrics["num_predictions"]}
        return metrics


def _weights(batch: Batch) -> jax.Array:
    """f32[B, T]."""
    return (1 - batch["paddings"]) * batch["weight"][:, None]


def _num_sentences(batch: Batch) -> jax.Array:
    sentences_B = batch["segment_ids"].max(axis=1) if "segment_ids" in batch else jnp.ones_like(batch["weight"])
    return jnp.where(batch["weight"] > 0, sentences_B, 0).sum(dtype=jnp.float32)
