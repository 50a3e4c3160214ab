"""Image classification: softmax cross-entropy, top-1 and top-5 accuracy (Lingvo: tasks/image/classifier.py)."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax

from raylingvo.models.task import Batch, Task, WeightedMetrics

# B examples, V classes, K = min(5, V) best classes.


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageModel(abc.ABC):
    """Configuration of a network from images to classes."""

    num_classes: int

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise ValueError(f"num_classes must be >= 2 (got {self.num_classes})")

    @abc.abstractmethod
    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        """The initialised module, `module(image_BxHxWxC: u8, *, rng=None) -> logits f32[B, num_classes]`.

        A key `rng` means training: dropout is active and draws from it. Without one nothing is random.
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageClassification(Task):
    """Which of `model.num_classes` classes an image shows.

    Batches: image u8[B, H, W, C], label i32[B] in [0, num_classes), weight f32[B] >= 0 (0: padding), id i64[B] or
    i32[B]. The loss is the mean cross-entropy weighted by `weight`; `num_preds` and `num_samples` count rows of weight
    above 0.
    """

    model: ImageModel

    def init(self, rngs: nnx.Rngs) -> nnx.Module:
        return self.model.build(rngs)

    def loss(self, model: nnx.Module, batch: Batch, rng: jax.Array) -> tuple[jax.Array, WeightedMetrics]:
        """Mean cross-entropy in nats, f32[]; metrics loss, log_pplx, accuracy and num_preds."""
        logits_BxV = _logits(model, batch, rng=rng)
        metrics = _metrics(logits_BxV, batch)
        return metrics["loss"][0], metrics

    def eval_metrics(self, model: nnx.Module, batch: Batch) -> WeightedMetrics:
        """Metrics loss, log_pplx, accuracy, num_preds, acc5, error and error5."""
        logits_BxV = _logits(model, batch)
        metrics = _metrics(logits_BxV, batch)
        accuracy, total = metrics["accuracy"]
        in_top_B = (_top_classes(logits_BxV) == batch["label"][:, None]).any(axis=-1)
        acc5, _ = _weighted_mean(in_top_B, batch["weight"])
        return metrics | {"acc5": (acc5, total), "error": (1.0 - accuracy, total), "error5": (1.0 - acc5, total)}

    def decode(self, model: nnx.Module, batch: Batch) -> dict[str, jax.Array]:
        """The best classes, best first: top5 i32[B, K], and their log_probs f32[B, K]."""
        logits_BxV = _logits(model, batch)
        top_BxK = _top_classes(logits_BxV)
        log_probs_BxK = jnp.take_along_axis(jax.nn.log_softmax(logits_BxV), top_BxK, axis=-1)
        return {"top5": top_BxK, "log_probs": log_probs_BxK}

    def postprocess(
        self, decoded: Mapping[str, np.ndarray], batch: Mapping[str, np.ndarray]
    ) -> tuple[list[tuple[str, dict[str, Any]]], WeightedMetrics]:
        """One (id, {label, prediction, top5, log_probs}) per real example; correct_top1, correct_top5, num_samples."""
        top_BxK, log_probs_BxK = np.asarray(decoded["top5"]), np.asarray(decoded["log_probs"])
        label_B, weight_B = np.asarray(batch["label"]), np.asarray(batch["weight"], np.float64)
        outputs = [
            (
                str(int(batch["id"][i])),
                {
                    "label": int(label_B[i]),
                    "prediction": int(top_BxK[i, 0]),
                    "top5": top_BxK[i].tolist(),
                    "log_probs": log_probs_BxK[i].tolist(),
                },
            )
            for i in np.flatnonzero(weight_B > 0)
        ]
        hit_BxK = top_BxK == label_B[:, None]
        total = float(weight_B.sum())
        divisor = total or 1.0  # a batch of padding only: 0 of weight 0
        metrics: WeightedMetrics = {
            "correct_top1": (float(hit_BxK[:, 0] @ weight_B) / divisor, total),
            "correct_top5": (float(hit_BxK.any(axis=-1) @ weight_B) / divisor, total),
            "num_samples": (float(len(outputs)), 1.0),
        }
        return outputs, metrics


def _logits(model: nnx.Module, batch: Batch, *, rng: jax.Array | None = None) -> jax.Array:
    return cast(Callable[..., jax.Array], model)(batch["image"], rng=rng)


def _metrics(logits_BxV: jax.Array, batch: Batch) -> WeightedMetrics:
    label_B, weight_B = batch["label"], batch["weight"]
    xent_B = optax.softmax_cross_entropy_with_integer_labels(logits_BxV, label_B)
    xent = _weighted_mean(xent_B, weight_B)
    return {
        "loss": xent,
        "log_pplx": xent,
        "accuracy": _weighted_mean(jnp.argmax(logits_BxV, axis=-1) == label_B, weight_B),
        "num_preds": (jnp.sum(weight_B > 0, dtype=jnp.float32), jnp.float32(1)),
    }


def _weighted_mean(value_B: jax.Array, weight_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(weighted mean, total weight); (0, 0) for a batch of padding only. Values of weight 0 may be NaN."""
    total = jnp.sum(weight_B)
    weighted_B = jnp.where(weight_B > 0, value_B * weight_B, 0.0)
    return jnp.sum(weighted_B) / jnp.where(total > 0, total, 1.0), total


def _top_classes(logits_BxV: jax.Array) -> jax.Array:
    """i32[B, K], best first; of equal logits the lower class is first, as in argmax."""
    return lax.top_k(logits_BxV, min(5, logits_BxV.shape[-1]))[1]
