"""Cross-entropy of what a softmax says about its labels, label smoothing, z-loss, and means over tokens."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

# V classes; arrays [...] have a value for each token.

# Who shares the probability eps that is taken from the label: the V - 1 other classes equally (Lingvo's
# UniformLabelSmoother), or all V classes, the label too (GShard).
LabelSmoothing = Literal["others", "all"]


class ClassScores(NamedTuple):
    """What losses and metrics need of the logits of each token: a few numbers instead of V."""

    label_logit: jax.Array  # f32[...], of the label
    log_z: jax.Array  # f32[...], log(sum(exp(logits)))
    sum_logits: jax.Array  # f32[...]
    best: jax.Array  # i32[...], the class of the largest logit; of equal ones the lowest


def class_scores(logits: jax.Array, labels: jax.Array) -> ClassScores:
    """logits [..., V]; labels i32[...] in [0, V). The statistics are computed in float32.

    A label that is not below V has the logit NaN: a wrong vocabulary is seen.
    """
    logits = logits.astype(jnp.float32)
    classes = _classes_like(logits)
    num_classes = logits.shape[-1]
    largest = jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
    return ClassScores(
        label_logit=jnp.where((labels >= 0) & (labels < num_classes), _picked(logits, labels), jnp.nan),
        log_z=jnp.log(jnp.exp(logits - largest).sum(axis=-1)) + largest[..., 0],
        sum_logits=logits.sum(axis=-1),
        # Not argmax: XLA's is not vectorised on CPUs.
        best=jnp.where(logits == largest, classes, num_classes).min(axis=-1),
    )


def cross_entropy(
    scores: ClassScores, num_classes: int, *, label_smoothing: float = 0.0, smoothing: LabelSmoothing = "others"
) -> jax.Array:
    """-sum(target * log_probs) of each token in nats, f32[...].

    label_smoothing: eps in [0, 1). The target is 1 - eps for the label and eps / (V - 1) for each other class
    ("others"); or 1 - eps + eps / V and eps / V ("all"). Its least value is the entropy of the target, not 0.
    Raises ValueError if label_smoothing is out of range.
    """
    check_label_smoothing(label_smoothing)
    label_logit = scores.label_logit
    if label_smoothing:
        if smoothing == "others":
            spread = (scores.sum_logits - label_logit) / (num_classes - 1)
        else:
            spread = scores.sum_logits / num_classes
        label_logit = (1 - label_smoothing) * label_logit + label_smoothing * spread
    return scores.log_z - label_logit


def check_label_smoothing(label_smoothing: float) -> None:
    """Raises ValueError if it is not in [0, 1)."""
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must be in [0, 1) (got {label_smoothing})")


def z_loss(scores: ClassScores, coefficient: float) -> jax.Array:
    """coefficient * log_z^2 of each token, f32[...]: keeps the normaliser near 1 (GShard; its coefficient is 1e-4)."""
    return coefficient * jnp.square(scores.log_z)


def weighted_mean(values: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(sum(values * weights) / sum(weights), sum(weights)), f32[] each; (0, 0) where all weights are 0.

    values, weights: [...] of one shape; weights >= 0. Values of weight 0 may be NaN.
    """
    weights = weights.astype(jnp.float32)
    total = weights.sum()
    return weighted_sum(values, weights) / jnp.where(total > 0, total, 1.0), total


def weighted_sum(values: jax.Array, weights: jax.Array) -> jax.Array:
    """sum(values * weights), f32[]. Values of weight 0 may be NaN."""
    # The inner `where` keeps their gradients, 0 * NaN, out as well.
    counts = weights > 0
    return (jnp.where(counts, values, 0.0).astype(jnp.float32) * jnp.where(counts, weights, 0.0)).sum()


@jax.custom_jvp
def _picked(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The logit of each label. Its gradient is a choice for each logit, which XLA fuses with others, and no scatter."""
    return jnp.take_along_axis(logits, jnp.clip(labels, 0, logits.shape[-1] - 1)[..., None], axis=-1)[..., 0]


@_picked.defjvp
def _picked_jvp(primals: tuple[jax.Array, jax.Array], tangents: Any) -> tuple[jax.Array, jax.Array]:
    logits, labels = primals
    chosen = _classes_like(logits) == labels[..., None]
    return _picked(logits, labels), jnp.where(chosen, tangents[0], 0.0).sum(axis=-1)


def _classes_like(logits: jax.Array) -> jax.Array:
    return jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
