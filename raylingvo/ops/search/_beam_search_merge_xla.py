"""Which continuations of a beam spell the same labels, and how they become one."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

# b beams, k hyps per beam, N = b*k slots (hyp-major), T steps; P candidates of a beam, B places in a buffer.


class Candidates(NamedTuple):
    """Continuations, of any shape. token and slot are those of the step."""

    g: jax.Array  # f32, raw score of the continued hyp
    token: jax.Array  # i32
    slot: jax.Array  # i32
    local: jax.Array  # f32
    is_valid: jax.Array  # bool


class Labels(NamedTuple):
    """The label sequences of the hyps, epsilons left out.

    lens_N: i32[N]. equal_bxkxk: whether hyps i and j have the same. extends_bxkxk: whether hyp j's is that of hyp i and
    one label more. last_N: i32[N], the last label, -1 if there is none.
    """

    lens_N: jax.Array
    equal_bxkxk: jax.Array
    extends_bxkxk: jax.Array
    last_N: jax.Array


def labels(hyps_TxN: jax.Array, prev_hyps_TxN: jax.Array, cur_step: jax.Array, eoc_id: int, k: int) -> Labels:
    """Compares the labels themselves, not hashes of them: what is merged is never undone."""
    T, N = hyps_TxN.shape
    b = N // k
    row_Tx1 = jnp.arange(T)[:, None]
    # Row r maps a slot of row r + 1 to its parent in row r; the last row, and any that is to come, a slot to itself.
    slot_1xN = jnp.arange(N, dtype=jnp.int32)[None]
    parent_TxN = jnp.concatenate([prev_hyps_TxN[1:], slot_1xN])
    parent_TxN = jnp.where(row_Tx1 + 1 < cur_step, parent_TxN, slot_1xN)
    # Composed from the end, in log T rounds rather than T: each would be a kernel of its own on a GPU.
    path_TxN = lax.associative_scan(_compose, parent_TxN, reverse=True)
    token_TxN = jnp.take_along_axis(hyps_TxN, path_TxN, axis=1, mode="clip")
    is_label_TxN = (row_Tx1 < cur_step) & (token_TxN != eoc_id)

    place_TxN = jnp.where(is_label_TxN, jnp.cumsum(is_label_TxN, axis=0) - 1, T)
    label_TxN = jnp.full((T, N), -1, jnp.int32).at[place_TxN, slot_1xN].set(token_TxN, mode="drop")
    lens_N = jnp.sum(is_label_TxN, axis=0, dtype=jnp.int32)
    last_N = jnp.take_along_axis(label_TxN, jnp.maximum(lens_N - 1, 0)[None], axis=0)[0]

    label_bxkxT = label_TxN.reshape(T, k, b).transpose(2, 1, 0)
    lens_bxk = lens_N.reshape(k, b).T
    is_same_bxkxkxT = label_bxkxT[:, :, None] == label_bxkxT[:, None]
    is_last_bx1xkxT = (jnp.arange(T)[None, None] == lens_bxk[..., None] - 1)[:, None]
    return Labels(
        lens_N=lens_N,
        equal_bxkxk=jnp.all(is_same_bxkxkxT, axis=-1),
        extends_bxkxk=jnp.all(is_same_bxkxkxT | is_last_bx1xkxT, axis=-1)
        & (lens_bxk[:, None] == lens_bxk[..., None] + 1),
        last_N=last_N,
    )


def same_labels(candidates_bxP: Candidates, labels: Labels, eoc_id: int) -> jax.Array:
    """bool[b, P, P]: whether two candidates of a beam are valid and spell the same."""
    b = len(candidates_bxP.token)
    is_epsilon_bxP = candidates_bxP.token == eoc_id
    hyp_bxP = candidates_bxP.slot // b
    last_bxP = labels.last_N[candidates_bxP.slot]
    beam_bx1x1 = jnp.arange(b)[:, None, None]
    i_bxPx1, j_bx1xP = hyp_bxP[:, :, None], hyp_bxP[:, None]
    equal_bxPxP = labels.equal_bxkxk[beam_bx1x1, i_bxPx1, j_bx1xP]
    extends_bxPxP = labels.extends_bxkxk[beam_bx1x1, i_bxPx1, j_bx1xP]

    token = candidates_bxP.token
    is_same_kind = is_epsilon_bxP[:, :, None] == is_epsilon_bxP[:, None]
    is_same_token = token[:, :, None] == token[:, None]
    # i emits the label that j, which emits epsilon, has already.
    catches_up = ~is_epsilon_bxP[:, :, None] & is_epsilon_bxP[:, None] & extends_bxPxP
    catches_up &= token[:, :, None] == last_bxP[:, None]
    same = (is_same_kind & equal_bxPxP & is_same_token) | catches_up | catches_up.transpose(0, 2, 1)
    return same & candidates_bxP.is_valid[:, :, None] & candidates_bxP.is_valid[:, None]


def is_better(a: Candidates, b: Candidates) -> jax.Array:
    """Higher score, then lower token, then lower slot."""
    is_earlier = (a.token < b.token) | ((a.token == b.token) & (a.slot < b.slot))
    return (a.g > b.g) | ((a.g == b.g) & is_earlier)


def merge(candidates_bxP: Candidates, same_bxPxP: jax.Array) -> Candidates:
    """The best of those that spell the same gets the score of all of them together; the others are no more valid."""
    mine, other = (
        jax.tree.map(lambda x: x[:, :, None], candidates_bxP),
        jax.tree.map(lambda x: x[:, None], candidates_bxP),
    )
    is_merged_bxP = jnp.any(same_bxPxP & is_better(other, mine), axis=-1)
    # Against the best of them, so that a candidate on its own keeps its score to the bit.
    ratio_bxPxP = jnp.where(other.g == mine.g, 1.0, jnp.exp(jnp.minimum(other.g - mine.g, 0.0)))
    total_bxP = jnp.sum(jnp.where(same_bxPxP, ratio_bxPxP, 0.0), axis=-1)
    is_valid_bxP = candidates_bxP.is_valid & ~is_merged_bxP
    g_bxP = candidates_bxP.g + jnp.where(is_valid_bxP, jnp.log(jnp.maximum(total_bxP, 1.0)), 0.0)
    return candidates_bxP._replace(g=g_bxP, is_valid=is_valid_bxP)


def best(candidates_bxP: Candidates, k: int) -> Candidates:
    """The k best of each beam, best first: [b, k]. Invalid ones come last."""
    if missing := max(0, k - candidates_bxP.token.shape[1]):
        candidates_bxP = jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, missing))), candidates_bxP)
    g, token, slot, local, is_valid = candidates_bxP
    # A key that no valid candidate has, since tokens are below it: -inf may be a score (compat="lingvo").
    key_bxP = jnp.where(is_valid, token, jnp.iinfo(jnp.int32).max)
    falling_bxP = jnp.where(is_valid, -g, jnp.inf)
    falling, key, slot, local, token = lax.sort((falling_bxP, key_bxP, slot, local, token), num_keys=3)
    is_valid = key != jnp.iinfo(jnp.int32).max
    return jax.tree.map(lambda x: x[:, :k], Candidates(-falling, token, slot, local, is_valid))


def merge_in_buffer(candidates_bxP: Candidates, same_bxPxP: jax.Array, k: int, size: int) -> Candidates:
    """The k best of each beam by Lingvo's buffer of `size` places, which loses probability: one candidate after the
    other is added, and when the buffer is full it is cut to the k best. After that, a candidate that does not beat the
    k-th is dropped before it could be merged."""
    b, P = candidates_bxP.token.shape
    place_1xB = jnp.arange(size)[None]
    beam_b = jnp.arange(b)
    empty_bxB = jax.tree.map(lambda x: jnp.zeros((b, size), x.dtype), candidates_bxP)

    def add(carry, p):
        buffer_bxB, index_bxB, count_b, is_cut_b = carry
        new_bx1 = jax.tree.map(lambda x: x[:, p][:, None], candidates_bxP)
        kth_bx1 = jax.tree.map(lambda x: x[:, k - 1][:, None], buffer_bxB)
        is_added_bx1 = new_bx1.is_valid & (~is_cut_b[:, None] | is_better(new_bx1, kth_bx1))

        same_bxB = same_bxPxP[beam_b[:, None], p, index_bxB] & (place_1xB < count_b[:, None])
        is_merged_bx1 = jnp.any(same_bxB, axis=1)[:, None]
        place_bx1 = jnp.where(is_merged_bx1, jnp.argmax(same_bxB, axis=1)[:, None], count_b[:, None])
        here_bxB = is_added_bx1 & (place_1xB == place_bx1)
        takes_bxB = here_bxB & (~is_merged_bx1 | is_better(new_bx1, buffer_bxB))
        sum_bxB = jnp.where(is_merged_bx1, jnp.logaddexp(new_bx1.g, buffer_bxB.g), new_bx1.g)
        buffer_bxB = jax.tree.map(lambda old, new: jnp.where(takes_bxB, new, old), buffer_bxB, new_bx1)
        buffer_bxB = buffer_bxB._replace(g=jnp.where(here_bxB, sum_bxB, buffer_bxB.g))
        index_bxB = jnp.where(takes_bxB, p, index_bxB)
        count_b = count_b + (is_added_bx1 & ~is_merged_bx1)[:, 0]

        is_full_b = count_b == size
        order_bxB = _order(buffer_bxB)
        cut = jax.tree.map(lambda x: jnp.take_along_axis(x, order_bxB, axis=1), (buffer_bxB, index_bxB))
        buffer_bxB, index_bxB = jax.tree.map(
            lambda new, old: jnp.where(is_full_b[:, None], new, old), cut, (buffer_bxB, index_bxB)
        )
        buffer_bxB = buffer_bxB._replace(
            is_valid=buffer_bxB.is_valid & (~is_full_b[:, None] | (place_1xB < k)),
        )
        return (buffer_bxB, index_bxB, jnp.where(is_full_b, k, count_b), is_cut_b | is_full_b), None

    start = (empty_bxB, jnp.zeros((b, size), jnp.int32), jnp.zeros(b, jnp.int32), jnp.zeros(b, bool))
    (buffer_bxB, *_), _ = lax.scan(add, start, jnp.arange(P, dtype=jnp.int32))
    return best(buffer_bxB, k)


def _compose(later_TxN: jax.Array, earlier_TxN: jax.Array) -> jax.Array:
    return jnp.take_along_axis(earlier_TxN, later_TxN, axis=1, mode="clip")


def _order(candidates_bxB: Candidates) -> jax.Array:
    b, B = candidates_bxB.token.shape
    place_bxB = jnp.broadcast_to(jnp.arange(B, dtype=jnp.int32), (b, B))
    key_bxB = jnp.where(candidates_bxB.is_valid, candidates_bxB.token, jnp.iinfo(jnp.int32).max)
    falling_bxB = jnp.where(candidates_bxB.is_valid, -candidates_bxB.g, jnp.inf)
    return lax.sort((falling_bxB, key_bxB, candidates_bxB.slot, place_bxB), num_keys=3)[3]
