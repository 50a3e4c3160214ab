"""Sampled softmax: cross-entropy against a few classes that all tokens of a batch share.

Sources: Jean et al., arXiv:1412.2007; TensorFlow's sampled_softmax_loss and log_uniform_candidate_sampler, with which
Lingvo trains its one-billion-word model (core/layers.py, SimpleFullSoftmax with num_sampled).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from raylingvo.ops.product import einsum

# N tokens, D features, V classes, S candidates.

# The correction of a candidate that is the label itself: takes it out. Finite, since inf - inf is NaN in gradients.
_NEVER = -1e30


class Candidates(NamedTuple):
    """S different classes, drawn one by one, and what is expected of other draws of as many."""

    ids: jax.Array  # i32[S], in the order drawn
    num_tries: jax.Array  # i32[], draws it took: those of a class that was there already included


def log_uniform_candidates(rng: jax.Array, num_sampled: int, num_classes: int) -> Candidates:
    """Draws classes with probability log((k + 2) / (k + 1)) / log(V + 1) until `num_sampled` different ones are there.

    That is about 1 / k: classes should be in the order of their frequency, most frequent first. The time grows with the
    number of tries, which explodes when nearly all classes are asked for.
    TensorFlow: log_uniform_candidate_sampler, unique=True. Raises ValueError unless 1 <= num_sampled <= num_classes.
    """
    if not 1 <= num_sampled <= num_classes:
        raise ValueError(f"num_sampled must be in [1, {num_classes}], the number of classes (got {num_sampled})")
    tries = 2 * num_sampled  # drawn at a time
    position = jnp.arange(tries)

    def draw(state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        block, seen_V, ids_S, found, num_tries = state
        drawn = _log_uniform(jax.random.fold_in(rng, block), tries, num_classes)
        first_V = jnp.full(num_classes, tries, jnp.int32).at[drawn].min(position)  # where in this block, if anywhere
        new = (first_V[drawn] == position) & ~seen_V[drawn]
        number = found + jnp.cumsum(new)  # of different classes after each try
        ids_S = ids_S.at[jnp.where(new, number - 1, num_sampled)].set(drawn, mode="drop")
        used = jnp.minimum((number < num_sampled).sum() + 1, tries)
        return block + 1, seen_V.at[drawn].set(True), ids_S, number[-1], num_tries + used

    zero = jnp.int32(0)
    start = (zero, jnp.zeros(num_classes, bool), jnp.zeros(num_sampled, jnp.int32), zero, zero)
    _, _, ids_S, _, num_tries = lax.while_loop(lambda state: state[3] < num_sampled, draw, start)
    return Candidates(ids_S, num_tries)


def log_expected_count(candidates: Candidates, classes: jax.Array, num_classes: int) -> jax.Array:
    """log(1 - (1 - p)^num_tries), f32[...]: how often each of `classes`, i32[...], is among so many draws.

    log(p * num_tries) if no draw was a repetition, as TensorFlow has it.
    """
    k = classes.astype(jnp.float32)
    p = jnp.log1p(1 / (k + 1)) / math.log(num_classes + 1)
    tries = candidates.num_tries.astype(jnp.float32)
    unique = -jnp.expm1(tries * jnp.log1p(-p))
    return jnp.log(jnp.where(candidates.num_tries == len(candidates.ids), p * tries, unique))


def sampled_cross_entropy(
    x_NxD: jax.Array,
    kernel_VxD: jax.Array,
    bias_V: jax.Array,
    labels_N: jax.Array,
    candidates: Candidates,
    *,
    dtype: DTypeLike = jnp.float32,
) -> jax.Array:
    """Cross-entropy of the label among itself and the candidates, f32[N], in nats.

    Each logit is less the log of its expected count, and a candidate that is the label does not count: TensorFlow's
    sampled_softmax_loss with remove_accidental_hits. It estimates the gradient of the whole softmax, not its value:
    evaluate with the whole. dtype: of the operands of the products. A label that is not below V gives NaN.
    """
    num_classes = len(kernel_VxD)
    # One gather for both, so that the gradient is one scatter into [V, D].
    classes = jnp.concatenate([labels_N, candidates.ids])
    rows = kernel_VxD.at[classes].get(mode="fill", fill_value=jnp.nan).astype(dtype)
    offset = bias_V[classes] - lax.stop_gradient(log_expected_count(candidates, classes, num_classes))
    x_NxD, number = x_NxD.astype(dtype), len(labels_N)
    label_logit_N = jnp.einsum("nd,nd->n", x_NxD, rows[:number], preferred_element_type=jnp.float32) + offset[:number]
    logits_NxS = einsum("nd,sd->ns", x_NxD, rows[number:], preferred_element_type=jnp.float32)
    hit_NxS = labels_N[:, None] == candidates.ids[None, :]
    logits_NxS = jnp.where(hit_NxS, _NEVER, logits_NxS + offset[None, number:])
    return jnp.logaddexp(label_logit_N, jax.nn.logsumexp(logits_NxS, axis=-1)) - label_logit_N


def _log_uniform(rng: jax.Array, number: int, num_classes: int) -> jax.Array:
    """i32[number] in [0, V), with replacement: k with probability log((k + 2) / (k + 1)) / log(V + 1).

    exp(u * log(V + 1)) of a float32 u would never give some classes beyond 100,000. So k + 1 = 2^(j + v) is drawn in
    two steps, the octave j and the place v in it, both with all their bits.
    """
    octaves = math.log2(num_classes + 1)
    octave_rng, place_rng = jax.random.split(rng)
    octave = jnp.floor(jax.random.uniform(octave_rng, (number,)) * octaves)
    place = jax.random.uniform(place_rng, (number,)) * jnp.minimum(octaves - octave, 1.0)
    drawn = jnp.floor(jnp.exp2(place) * (1 << octave.astype(jnp.int32)))
    return jnp.clip(drawn.astype(jnp.int32), 1, num_classes) - 1
