"""The loop of `flat_beam_search`, and how its hyps are read off the buffer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from raylingvo.ops.search._beam_search_attributes import EMPTY_SCORE, Compat
from raylingvo.ops.search._search_arguments import check_same
from raylingvo.ops.search._top_k_logits import top_k_by_blocks

# b examples, k lanes, T rows of the buffer, its k*T places, V vocabulary, m hyps of the n-best, X extensions, W width
# of the prefix, L positions of the result; B words of 32 bits that hold the mask of a hyp, C continuations of a lane.

# Scores at or below come from EMPTY_SCORE, whatever was added: there is no hyp.
_NO_HYP = EMPTY_SCORE / 2
_LINGVO_NO_HYP = -1e9


class Prefix(NamedTuple):
    """ids: i32[b, W], right-aligned. lens: i32[b]. is_given: or it is BOS alone."""

    ids_bxW: jax.Array
    len_b: jax.Array
    is_given: bool


class Lanes(NamedTuple):
    """Hyps that lack their place in the buffer: those of the next step, extensions, or both. All [b, any]."""

    score: jax.Array  # f32, sum of log-probabilities
    id: jax.Array  # i32, the newest token
    local: jax.Array  # f32, its log-probability
    parent: jax.Array  # i32, the place before it; -1: the prefix
    n: jax.Array  # i32, how many tokens have been generated
    words: jax.Array  # u32[b, any, B], the places before it

    def take(self, index: jax.Array) -> Lanes:
        return jax.tree.map(lambda x: jnp.take_along_axis(x, _like(index, x), axis=1), self)


class NBest(NamedTuple):
    """Hyps that have ended. All [b, m]."""

    norm: jax.Array  # f32, the normalised score, with EOS
    score: jax.Array  # f32, the sum of log-probabilities, without
    eos: jax.Array  # f32, the log-probability of EOS
    place: jax.Array  # i32, of the last token before it
    n: jax.Array  # i32, how many tokens had been generated

    def take(self, index: jax.Array) -> NBest:
        return jax.tree.map(lambda x: jnp.take_along_axis(x, index, axis=1), self)


class Carry(NamedTuple):
    t: jax.Array
    lanes: Lanes
    extensions: Lanes
    nbest: NBest
    # What the places hold: rows of k.
    ids_bxTxk: jax.Array
    locals_bxTxk: jax.Array
    parents_bxTxk: jax.Array
    done_b: jax.Array
    is_nan_b: jax.Array
    dec_state: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlatSearch:
    """What stays the same throughout a search."""

    batch_size: int
    num_lanes: int
    num_rows: int
    callback: Callable[..., tuple[Any, Any]]
    prefix: Prefix
    eos_id: int
    length_norm_alpha: float
    beam_gap: float | None
    ext_size: int
    nbest_size: int
    max_len_b: jax.Array | None
    compat: Compat

    def run(self, dec_state: Any) -> Carry:
        return lax.while_loop(self._goes_on, self._advance, self._start(jax.tree.map(jnp.asarray, dec_state)))

    def read(self, last: Carry) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """ids, lens, scores and token_scores of `FlatBeamSearchResult`."""
        b, T, k = last.ids_bxTxk.shape
        W, nbest = self.prefix.ids_bxW.shape[1], last.nbest
        L = T + (W if self.prefix.is_given else 0)
        flat = lambda x_bxTxk: x_bxTxk.reshape(b, T * k)  # noqa: E731
        ids_bxP, locals_bxP, parents_bxP = flat(last.ids_bxTxk), flat(last.locals_bxTxk), flat(last.parents_bxTxk)

        def walk_back(place_bxm, _):
            at_bxm = jnp.maximum(place_bxm, 0)
            id_bxm, local_bxm, parent_bxm = (
                jnp.take_along_axis(x, at_bxm, axis=1) for x in (ids_bxP, locals_bxP, parents_bxP)
            )
            return jnp.where(place_bxm < 0, -1, parent_bxm), (id_bxm, local_bxm)

        _, walked = lax.scan(walk_back, nbest.place, length=T)
        id_bxmxT, local_bxmxT = (x_Txbxm.transpose(1, 2, 0) for x_Txbxm in walked)

        # Positions: the prefix but its last token; that one and those generated; EOS.
        is_hyp_bxm = nbest.place >= 0
        position_1x1xL = jnp.arange(L)[None, None]
        first_bx1x1 = (self.prefix.len_b - 1)[:, None, None]
        last_bxmx1 = (self.prefix.len_b[:, None] - 1 + nbest.n)[..., None]
        back_bxmxL = jnp.clip(last_bxmx1 - position_1x1xL, 0, T - 1)
        id_bxmxL, local_bxmxL = (jnp.take_along_axis(x, back_bxmxL, axis=2) for x in (id_bxmxT, local_bxmxT))
        column_bxL = jnp.clip(W - self.prefix.len_b[:, None] + position_1x1xL[0], 0, W - 1)
        prefix_bx1xL = jnp.take_along_axis(self.prefix.ids_bxW, column_bxL, axis=1)[:, None]
        is_inside_bxmxL = is_hyp_bxm[..., None] & (position_1x1xL <= last_bxmx1)
        is_end_bxmxL = position_1x1xL == jnp.where(is_hyp_bxm, last_bxmx1[..., 0] + 1, L)[..., None]
        ids_bxmxL = jnp.where(position_1x1xL < first_bx1x1, prefix_bx1xL, id_bxmxL)
        ids_bxmxL = jnp.where(is_end_bxmxL, self.eos_id, jnp.where(is_inside_bxmxL, ids_bxmxL, 0))
        token_score_bxmxL = jnp.where(is_inside_bxmxL & (position_1x1xL > first_bx1x1), local_bxmxL, 0.0)
        token_score_bxmxL = jnp.where(is_end_bxmxL, nbest.eos[..., None], token_score_bxmxL)

        len_bxm = jnp.where(is_hyp_bxm, jnp.minimum(last_bxmx1[..., 0] + 2, L), 0)
        score_bxm = nbest.norm
        if self.compat == "lingvo":
            # An empty mask, and EOS.
            ids_bxmxL = jnp.where(is_hyp_bxm[..., None], ids_bxmxL, jnp.where(position_1x1xL == 0, self.eos_id, 0))
            len_bxm = jnp.where(is_hyp_bxm, len_bxm, 1)
        return ids_bxmxL, len_bxm, jnp.where(last.is_nan_b[:, None], jnp.nan, score_bxm), token_score_bxmxL

    def _start(self, dec_state: Any) -> Carry:
        b, k, T, X, m = self.batch_size, self.num_lanes, self.num_rows, self.ext_size, self.nbest_size
        ids_bxW, len_b, is_given = self.prefix
        W, B = ids_bxW.shape[1], -(-T * k // 32)
        # The tokens before the last one move up by one column, so that they end where the first lanes begin.
        column_W = jnp.arange(W)
        is_token_bxW = column_W[None] > W - len_b[:, None]
        fed_bxW = jnp.where(is_token_bxW, jnp.roll(ids_bxW, 1, axis=1), 0)
        is_prefix_bxP = jnp.pad(is_token_bxW, ((0, 0), (0, T * k - W)))
        if is_given:
            causal_WxP = jnp.arange(T * k)[None] <= column_W[:, None]
            mask_bxWxP = is_token_bxW[..., None] & is_prefix_bxP[:, None] & causal_WxP[None]
            position_bxW = jnp.where(is_token_bxW, column_W[None] - (W - len_b[:, None] + 1), 0)
            _, dec_state = self._call(
                fed_bxW, is_token_bxW, position_bxW, mask_bxWxP, dec_state, jnp.zeros((), jnp.int32)
            )
        lane_k = jnp.arange(k)
        score_k = lane_k * -1e5 if self.compat == "lingvo" else jnp.where(lane_k > 0, EMPTY_SCORE, 0.0)
        words_bxB = _pack(is_prefix_bxP, B)
        zeros = lambda size: jnp.zeros((b, size), jnp.int32)  # noqa: E731
        empty = _LINGVO_NO_HYP if self.compat == "lingvo" else EMPTY_SCORE
        full = lambda size, value: jnp.full((b, size), value, jnp.float32)  # noqa: E731
        return Carry(
            t=jnp.full((), W // k, jnp.int32),
            lanes=Lanes(
                score=jnp.broadcast_to(score_k.astype(jnp.float32), (b, k)),
                id=jnp.broadcast_to(ids_bxW[:, -1:], (b, k)),
                local=full(k, 0.0),
                parent=zeros(k) - 1,
                n=zeros(k),
                words=jnp.broadcast_to(words_bxB[:, None], (b, k, B)),
            ),
            extensions=Lanes(
                full(X, empty), zeros(X), full(X, 0.0), zeros(X), zeros(X), jnp.zeros((b, X, B), jnp.uint32)
            ),
            nbest=NBest(
                norm=full(m, empty if self.compat == "lingvo" else -jnp.inf),
                score=full(m, empty),
                eos=full(m, 0.0),
                place=zeros(m) - 1,
                n=zeros(m),
            ),
            ids_bxTxk=jnp.zeros((b, T, k), jnp.int32),
            locals_bxTxk=jnp.zeros((b, T, k), jnp.float32),
            parents_bxTxk=jnp.full((b, T, k), -1, jnp.int32),
            done_b=jnp.zeros(b, bool) if self.max_len_b is None else self.max_len_b < 1,
            is_nan_b=jnp.zeros(b, bool),
            dec_state=dec_state,
        )

    def _goes_on(self, c: Carry) -> jax.Array:
        return (c.t < self.num_rows) & ~jnp.all(c.done_b)

    def _advance(self, c: Carry) -> Carry:
        b, k, T = self.batch_size, self.num_lanes, self.num_rows
        lanes, t = c.lanes, c.t
        place_k = t * k + jnp.arange(k)
        words_bxkxB = lanes.words | _bits(place_k, lanes.words.shape[2])
        position_bxk = (self.prefix.len_b - 1)[:, None] + lanes.n
        is_one_bxk = jnp.ones((b, k), bool)
        log_prob_bxkxV, dec_state = self._call(
            lanes.id, is_one_bxk, position_bxk, _unpack(words_bxkxB, T * k), c.dec_state, t
        )
        is_nan_bxkxV = jnp.isnan(log_prob_bxkxV)
        log_prob_bxkxV = jnp.where(is_nan_bxkxV, EMPTY_SCORE, log_prob_bxkxV)
        is_live_bxk = (lanes.score > _NO_HYP) & ~c.done_b[:, None]
        is_nan_b = c.is_nan_b | jnp.any(is_live_bxk & jnp.all(is_nan_bxkxV, axis=2), axis=1)

        place_bxk = jnp.broadcast_to(place_k, (b, k))
        nbest = self._end(c.nbest, lanes, log_prob_bxkxV[..., self.eos_id], place_bxk, c.done_b)
        new = self._continue(lanes, log_prob_bxkxV, place_bxk, words_bxkxB)
        # Of equal scores the extension first, then the lower lane.
        all_of = jax.tree.map(lambda x, y: jnp.concatenate([x, y], axis=1), c.extensions, new)
        _, best_bxK = lax.top_k(all_of.score, k + self.ext_size)
        chosen = all_of.take(best_bxK)
        next_lanes, extensions = (jax.tree.map(lambda x, s=s: x[:, s], chosen) for s in (slice(k), slice(k, None)))
        return Carry(
            t=t + 1,
            lanes=next_lanes,
            extensions=extensions,
            nbest=nbest,
            ids_bxTxk=c.ids_bxTxk.at[:, t].set(lanes.id),
            locals_bxTxk=c.locals_bxTxk.at[:, t].set(lanes.local),
            parents_bxTxk=c.parents_bxTxk.at[:, t].set(lanes.parent),
            done_b=c.done_b | is_nan_b | self._stops(nbest, next_lanes),
            is_nan_b=is_nan_b,
            dec_state=dec_state,
        )

    def _end(self, nbest: NBest, lanes: Lanes, eos_bxk: jax.Array, place_bxk: jax.Array, done_b: jax.Array) -> NBest:
        """The best of those that had ended and of the lanes, if they end now."""
        score_bxk = lanes.score + eos_bxk
        norm_bxk = score_bxk / ((lanes.n + 5).astype(jnp.float32) / 5.0) ** self.length_norm_alpha
        is_none_bxk = jnp.broadcast_to(done_b[:, None], norm_bxk.shape)
        if self.compat is None:
            is_none_bxk |= score_bxk <= _NO_HYP
        if self.max_len_b is not None:
            is_none_bxk |= lanes.n + 1 > self.max_len_b[:, None]
        ended = NBest(
            norm=jnp.where(is_none_bxk, -jnp.inf, norm_bxk),
            score=lanes.score,
            eos=eos_bxk,
            place=jnp.where(is_none_bxk, -1, place_bxk),
            n=lanes.n,
        )
        both = jax.tree.map(lambda x, y: jnp.concatenate([x, y], axis=1), nbest, ended)
        _, best_bxm = lax.top_k(both.norm, self.nbest_size)
        best = both.take(best_bxm)
        if self.compat is None:
            # As a place in the n-best that is free, it must not look like one that is taken.
            best = best._replace(score=jnp.where(best.place < 0, EMPTY_SCORE, best.score))
        return best

    def _continue(self, lanes: Lanes, log_prob_bxkxV: jax.Array, place_bxk: jax.Array, words_bxkxB: jax.Array) -> Lanes:
        """The C best continuations of each lane, [b, k*C]."""
        b, k, V = log_prob_bxkxV.shape
        C = min(k, V)
        local_NxC, id_NxC = top_k_by_blocks(log_prob_bxkxV.reshape(b * k, V), C)
        local_bxkxC, id_bxkxC = local_NxC.reshape(b, k, C), id_NxC.reshape(b, k, C)
        score_bxkxC = local_bxkxC + lanes.score[..., None]
        is_eos_bxkxC = id_bxkxC == self.eos_id
        if self.compat == "lingvo":
            score_bxkxC += jnp.where(is_eos_bxkxC, _LINGVO_NO_HYP, 0.0)
        else:
            score_bxkxC = jnp.where(is_eos_bxkxC, EMPTY_SCORE, score_bxkxC)
        if self.max_len_b is not None:
            # One more token, and EOS.
            is_too_long_bxk = lanes.n + 2 > self.max_len_b[:, None]
            score_bxkxC = jnp.where(is_too_long_bxk[..., None], EMPTY_SCORE, score_bxkxC)
        repeat = lambda x: jnp.repeat(x, C, axis=1)  # noqa: E731
        return Lanes(
            score=score_bxkxC.reshape(b, k * C),
            id=id_bxkxC.reshape(b, k * C),
            local=local_bxkxC.reshape(b, k * C),
            parent=repeat(place_bxk),
            n=repeat(lanes.n + 1),
            words=repeat(words_bxkxB),
        )

    def _stops(self, nbest: NBest, lanes: Lanes) -> jax.Array:
        """bool[b]: no lane is left, or all are much worse than what has ended."""
        best_b = jnp.max(lanes.score, axis=1)
        stops_b = best_b <= _NO_HYP
        if self.beam_gap is not None and self.compat is None:
            stops_b |= jnp.min(nbest.score, axis=1) - best_b >= self.beam_gap
        return stops_b

    def _call(
        self,
        id_bxq: jax.Array,
        is_token_bxq: jax.Array,
        position_bxq: jax.Array,
        mask: jax.Array,
        state: Any,
        t: jax.Array,
    ) -> tuple[jax.Array, Any]:
        returned = self.callback(
            id_bxq, is_token_bxq.astype(jnp.int32), position_bxq, mask.astype(jnp.float32), state, t
        )
        if not isinstance(returned, tuple) or len(returned) != 2:
            raise ValueError(f"dec_callback must return (log_probs, dec_state) (got {type(returned).__name__})")
        log_prob, new_state = returned
        if jnp.ndim(log_prob) != 3 or log_prob.shape[:2] != id_bxq.shape or log_prob.shape[2] <= self.eos_id:
            b, q = id_bxq.shape
            raise ValueError(
                f"dec_callback must return log_probs [{b}, {q}, V] with V > eos_id = {self.eos_id} "
                f"(got {list(jnp.shape(log_prob))})"
            )
        check_same("dec_callback", state, new_state)
        return log_prob.astype(jnp.float32), new_state


def _like(index_bxj: jax.Array, x: jax.Array) -> jax.Array:
    return index_bxj.reshape(index_bxj.shape + (1,) * (x.ndim - 2))


def _pack(is_set_bxP: jax.Array, B: int) -> jax.Array:
    """u32[b, B]: bit p % 32 of word p // 32 for place p."""
    b, P = is_set_bxP.shape
    is_set_bxBx32 = jnp.pad(is_set_bxP, ((0, 0), (0, B * 32 - P))).reshape(b, B, 32)
    bit_1x1x32 = (jnp.uint32(1) << jnp.arange(32, dtype=jnp.uint32))[None, None]
    return jnp.sum(is_set_bxBx32 * bit_1x1x32, axis=2, dtype=jnp.uint32)


def _unpack(words_bxkxB: jax.Array, P: int) -> jax.Array:
    """bool[b, k, P]"""
    b, k, B = words_bxkxB.shape
    shift_1x1x1x32 = jnp.arange(32, dtype=jnp.uint32)[None, None, None]
    bits_bxkxBx32 = (words_bxkxB[..., None] >> shift_1x1x1x32) & jnp.uint32(1)
    return bits_bxkxBx32.reshape(b, k, B * 32)[..., :P] == 1


def _bits(place_k: jax.Array, B: int) -> jax.Array:
    """u32[1, k, B] with the one bit of each place."""
    is_word_kxB = jnp.arange(B)[None] == (place_k // 32)[:, None]
    bit_kx1 = (jnp.uint32(1) << (place_k % 32).astype(jnp.uint32))[:, None]
    return jnp.where(is_word_kxB, bit_kx1, jnp.uint32(0))[None]
