"""What sentences lose before they are crossed or denoised: some words at random, and the order of near ones.

All of it is drawn on the device. (Lingvo: NmtDoubleInput, tasks/mt/input_generator.py, on the host.)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from raylingvo.data.tokenizers import Tokenizer
from raylingvo.data.tokenizers.wpm import WORD_START

# B sentences, S positions, V ids.


def inner_positions(paddings_BxS: jax.Array) -> jax.Array:
    """bool[B, S]: real positions but for the last, the end of the sentence, which stays where and what it is."""
    real_BxS = paddings_BxS == 0
    return real_BxS & jnp.pad(real_BxS[:, 1:], ((0, 0), (0, 1)))


def draw_positions(rng: jax.Array, allowed_BxS: jax.Array, ratio_B: jax.Array) -> jax.Array:
    """bool[B, S]: in each row floor(ratio * n) of its n allowed positions, any as likely as any other.

    ratio: f32[B] in [0, 1]. At least one position is drawn where the ratio is > 0 and one is allowed.
    """
    number_B = allowed_BxS.sum(axis=1)
    count_B = jnp.maximum(jnp.floor(ratio_B * number_B), ratio_B > 0)
    draw_BxS = jnp.where(allowed_BxS, jax.random.uniform(rng, allowed_BxS.shape), 1.0)
    rank_BxS = jnp.argsort(jnp.argsort(draw_BxS, axis=1), axis=1)
    return allowed_BxS & (rank_BxS < count_B[:, None])


def shuffle_words(
    rng: jax.Array, ids_BxS: jax.Array, movable_BxS: jax.Array, starts_BxS: jax.Array, distance: float
) -> jax.Array:
    """The ids with near words in another order: a word may overtake those less than `distance` words before it.

    movable: bool[B, S], the first positions of each row; others stay. starts: bool[B, S], where a word begins: its ids
    stay together. Words are sorted by their number plus a draw from [0, distance).
    Source: Lample et al., Unsupervised machine translation using monolingual corpora only, 2018, section 2.3.
    """
    word_BxS = jnp.cumsum(starts_BxS, axis=1)
    draw_BxW = jax.random.uniform(rng, (ids_BxS.shape[0], ids_BxS.shape[1] + 1), maxval=distance)
    key_BxS = word_BxS + jnp.take_along_axis(draw_BxW, word_BxS, axis=1)
    order_BxS = jnp.argsort(jnp.where(movable_BxS, key_BxS, jnp.inf), axis=1, stable=True)
    return jnp.take_along_axis(ids_BxS, order_BxS, axis=1)


def corrupt(
    rng: jax.Array,
    ids_BxS: jax.Array,
    paddings_BxS: jax.Array,
    starts_V: np.ndarray,
    *,
    distance: float,
    mask_id: int,
    mask_ratio: float,
) -> jax.Array:
    """The ids of sentences to be denoised: words shuffled, then a part of the ids replaced by `mask_id`.

    starts: bool[V], of `word_starts`. distance: of `shuffle_words`; 0: no word moves.
    """
    shuffle_rng, mask_rng = jax.random.split(rng)
    inner_BxS = inner_positions(paddings_BxS)
    if distance:
        ids_BxS = shuffle_words(shuffle_rng, ids_BxS, inner_BxS, jnp.asarray(starts_V)[ids_BxS], distance)
    ratio_B = jnp.full(len(ids_BxS), mask_ratio, jnp.float32)
    return jnp.where(draw_positions(mask_rng, inner_BxS, ratio_B), mask_id, ids_BxS)


def word_starts(tokenizer: Tokenizer) -> np.ndarray:
    """bool[V]: the ids that begin a word, by their U+2581. In a vocabulary without it every id is a word."""
    starts_V = np.array([piece.startswith(WORD_START) for piece in tokenizer.pieces(np.arange(tokenizer.vocab_size))])
    return starts_V if starts_V.any() else np.ones_like(starts_V)
