"""How two sentence pairs become one: words of both sources, and targets in the proportions in which these are attended.

Source: Cheng et al., Self-supervised and supervised joint training for resource-rich machine translation, ICML 2021
(arXiv:2106.04060), section 3; Lingvo: TransformerXEnDecModel and TransformerXDecoder, tasks/mt.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from raylingvo.models.mt.xendec.noise import inner_positions

# B rows, each of two pairs, the first and the second; S source positions, T target positions.


class Parent(NamedTuple):
    """The paddings of one of the two pairs: source f32[B, S], target f32[B, T]; 1.0 = padded."""

    source: jax.Array
    target: jax.Array

    def without(self, absent_B: jax.Array) -> Parent:
        """All padded where absent."""
        return Parent(*(jnp.where(absent_B[:, None], 1.0, paddings) for paddings in self))


class Shares(NamedTuple):
    """How much of a position is of the first pair, and of the second: f32[B, L] each."""

    first: jax.Array
    second: jax.Array

    def mix(self, first_BxLxD: jax.Array, second_BxLxD: jax.Array) -> jax.Array:
        """[B, L, D], in the dtype of what is mixed."""
        pairs = zip(self, (first_BxLxD, second_BxLxD), strict=True)
        first_BxLxD, second_BxLxD = (
            jnp.broadcast_to(share_BxL.astype(x_BxLxD.dtype)[..., None], x_BxLxD.shape) * x_BxLxD
            for share_BxL, x_BxLxD in pairs
        )
        return first_BxLxD + second_BxLxD


class Crossed(NamedTuple):
    """The sources of the children. first, second: what is left of the parents.

    source: shares of embeddings; source_paddings: f32[B, S].
    """

    first: Parent
    second: Parent
    source: Shares
    source_paddings: jax.Array


def cross_sources(mask_BxS: jax.Array, first: Parent, second: Parent) -> Crossed:
    """Takes the second's word where the mask, bool[B, S], is True, and the first's elsewhere, or if there is no other.

    The mask is within `inner_positions` of the first. A pair that no word is taken from is absent from its row, with
    its target: a mask of nothing gives the first pair, one of all words the second. (Lingvo always takes a word, keeps
    the first's </s>, and lets a pair have targets that has no word; it differs for sources of one word.) Where the
    first has ended and the second has not, there is a position without a word, as in Lingvo.
    """
    inner_BxS = inner_positions(first.source)
    second_only_B = inner_BxS.any(axis=1) & (mask_BxS | ~inner_BxS).all(axis=1) & (second.source == 0).any(axis=1)
    first_only_B = ~(mask_BxS & (second.source == 0)).any(axis=1)
    first, second = first.without(second_only_B), second.without(first_only_B)
    taken_BxS = (mask_BxS | second_only_B[:, None]) * (1 - second.source)
    source = Shares((1 - taken_BxS) * (1 - first.source), taken_BxS)
    return Crossed(first, second, source, first.source * second.source)


def label_shares(crossed: Crossed, first_probs_BxTxS: jax.Array, second_probs_BxTxS: jax.Array) -> Shares:
    """[B, T]: the attention that each parent's target word pays to what the child has of its source, normalised.

    probs: f32[B, T, S], attention of the parents. Where both targets have ended, both shares are 0.
    """
    pairs = zip((first_probs_BxTxS, second_probs_BxTxS), crossed.source, (crossed.first, crossed.second), strict=True)
    first_BxT, second_BxT = (
        jnp.einsum("bts,bs->bt", probs, share) * (1 - parent.target) for probs, share, parent in pairs
    )
    total_BxT = first_BxT + second_BxT
    # Attention that was dropped leaves nothing to go by: then the first's word counts, if there is one.
    first_BxT = jnp.where(total_BxT > 0, first_BxT / jnp.where(total_BxT > 0, total_BxT, 1.0), 1 - crossed.first.target)
    return Shares(first_BxT * (1 - crossed.first.target), (1 - first_BxT) * (1 - crossed.second.target))


def input_shares(crossed: Crossed, labels: Shares) -> Shares:
    """[B, T]: of the words that are read, which are the labels of one step before."""
    start_Bx1 = 1 - crossed.first.target[:, :1]
    first_BxT = jnp.concatenate([start_Bx1, labels.first[:, :-1]], axis=1)
    return Shares(first_BxT * (1 - crossed.first.target), (1 - first_BxT) * (1 - crossed.second.target))


def sharpen(probs_BxTxS: jax.Array, source_paddings_BxS: jax.Array, exponent: jax.Array) -> jax.Array:
    """Attention to the power of `exponent`, f32[] >= 0, normalised over real positions. 0: it is all alike.

    Lingvo normalises over padded positions too, which matters only while the exponent is near 0.
    """
    real_BxTxS = jnp.broadcast_to((source_paddings_BxS == 0)[:, None], probs_BxTxS.shape)
    # The floor is Lingvo's.
    power_BxTxS = jnp.where(real_BxTxS, (probs_BxTxS + 1e-6) ** exponent, 0.0)
    total_BxTx1 = power_BxTxS.sum(axis=-1, keepdims=True)
    return power_BxTxS / jnp.where(total_BxTx1 > 0, total_BxTx1, 1.0)
