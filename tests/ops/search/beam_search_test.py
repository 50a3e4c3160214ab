"""Beam search: what trying every hyp finds, what one greedy hyp finds, and what Lingvo finds."""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylingvo.ops import _native
from raylingvo.ops.search._top_k_logits import top_k_by_blocks
from raylingvo.ops.search.beam_search import beam_search
from raylingvo.ops.search.beam_search_state import BeamSearchState
from raylingvo.ops.search.beam_search_step import beam_search_step
from raylingvo.ops.search.biased import BiasState, biased_scores
from raylingvo.ops.search.cache import CacheIndex
from raylingvo.ops.search.prefix_constraints import PrefixState, PrefixTrie, constrained_scores
from raylingvo.ops.search.stochastic import StochasticState, stochastic_scores
from raylingvo.ops.search.top_k_hyps import top_k_hyps

examples = settings(max_examples=20)
seeds = st.integers(0, 2**32 - 1)
EOS, START = 2, 1


@pytest.fixture(params=["xla", "cpp"])
def implementation(request):
    if request.param == "cpp" and (why := _native.why_unavailable()):
        pytest.skip(why)
    return request.param


class Decoder(NamedTuple):
    """A decoder that knows by heart: row (A*x + B*y + C*z) mod M of its beam's table, x the newest token, y the step, z
    the sum of all tokens; with blanks (eoc_id >= 0) those are left out of x and z, and y counts them."""

    tables: jax.Array  # f32[b, M, V]
    atten: jax.Array  # f32[b, M, S]
    frames: jax.Array | None = None  # i32[b]
    coef: tuple[int, int, int] = (1, 3, 5)
    eoc_id: int = -1

    @classmethod
    def random(cls, seed, *, b=2, M=13, V=6, S=4, frames=None, eoc_id=-1):
        random = np.random.default_rng(seed)
        tables = np.asarray(jax.nn.log_softmax(2.0 * random.standard_normal((b, M, V), np.float32)))
        atten = random.dirichlet(np.ones(S), (b, M)).astype(np.float32) if S else np.zeros((b, M, 0), np.float32)
        return cls(jnp.asarray(tables), jnp.asarray(atten), frames, eoc_id=eoc_id)

    def row(self, x, y, z):
        A, B, C = self.coef
        return (A * x + B * y + C * z) % self.tables.shape[1]

    def step(self, ids, cache):
        count, x, y, z = cache
        beam = jnp.arange(len(ids)) % len(self.tables)
        is_blank = (ids == self.eoc_id) & (count > 0)
        x, z = jnp.where(is_blank, x, ids), z + jnp.where(is_blank, 0, ids)
        y = y + is_blank if self.eoc_id >= 0 else jnp.full_like(y, count)
        row = self.row(x, y, z)
        scored = self.tables[beam, row], self.atten[beam, row], (count + 1, x, y, z)
        return scored if self.frames is None else (*scored, y >= self.frames[beam] - 1)

    def search(self, k, max_steps, start_ids=None, **kwargs):
        b = len(self.tables)
        zeros = jnp.zeros(b * k, jnp.int32)
        return beam_search(
            self.step,
            (jnp.int32(0), zeros, zeros, zeros),
            num_beams=b,
            num_hyps_per_beam=k,
            max_steps=max_steps,
            start_ids=jnp.full(b, START) if start_ids is None else start_ids,
            **{"eos_id": EOS, "eoc_id": self.eoc_id, **kwargs},
        )

    def compiled_search(self, k, max_steps, **kwargs):
        def search(tables, atten):
            return self._replace(tables=tables, atten=atten).search(k, max_steps, **kwargs)

        return jax.jit(search)(self.tables, self.atten)

    def along(self, beam, ids):
        """Scores and attention of each token of a hyp, fed one after the other."""
        previous = [START, *ids[:-1]]
        rows = [self.row(x, y, sum(previous[: y + 1])) for y, x in enumerate(previous)]
        return np.asarray(self.tables)[beam, rows, ids], np.asarray(self.atten)[beam, rows]


@functools.partial(jax.jit, static_argnames=("k", "max_steps", "options", "coef"))
def search(tables, atten, k, max_steps, options, frames=None, coef=(1, 3, 5), **arrays):
    """Compiled once for all decoders of a shape."""
    options = dict(options)
    decoder = Decoder(tables, atten, frames, coef, options.get("eoc_id", -1))
    return decoder.search(k, max_steps, **options, **arrays)


def options(**kwargs):
    return tuple(sorted(kwargs.items()))


# Wide enough for all hyps, and nothing stops them.
EVERYTHING = {"beam_size": 1e9, "valid_eos_max_logit_delta": 1e9, "local_eos_threshold": -1e9}
NORMALIZED = {"length_normalization": 0.7, "coverage_penalty": 0.3}


@pytest.mark.parametrize(("V", "T", "normalization"), [(6, 3, {}), (4, 4, NORMALIZED), (3, 5, NORMALIZED)])
def test_a_wide_beam_finds_what_trying_all_finds(implementation, V, T, normalization):
    k = (V - 1) ** (T - 1)

    @examples
    @given(seeds)
    def check(seed):
        decoder = Decoder.random(seed, V=V)
        rules = options(**EVERYTHING, **normalization, implementation=implementation)
        found = jax.device_get(search(decoder.tables, decoder.atten, k, T, rules))
        others = [token for token in range(V) if token != EOS]
        hyps = [[*ids, EOS] for n in range(T) for ids in itertools.product(others, repeat=n)]
        for beam in range(2):
            scored = []
            for ids in hyps:
                scores, atten = decoder.along(beam, ids)
                coverage = np.log(np.clip(atten.sum(0), 0.001, 0.5)).sum()
                length = ((len(ids) + 5) / 5) ** normalization.get("length_normalization", 0.0)
                scored.append(scores.sum() / length + normalization.get("coverage_penalty", 0.0) * coverage)
            best = sorted(scored, reverse=True)[:k]
            np.testing.assert_allclose(found.scores[beam], best, atol=2e-5)
            for ids, n, score in zip(found.ids[beam].tolist(), found.lens[beam], found.scores[beam], strict=True):
                assert abs(scored[hyps.index(ids[:n])] - score) < 2e-5
            assert len({tuple(ids) for ids in found.ids[beam].tolist()}) == k

    check()


@examples
@given(seeds)
def test_one_hyp_is_the_greedy_one(seed):
    # EOS passes only where it is the best token, and then nothing that goes on can be better.
    decoder, rules = Decoder.random(seed), options(beam_size=0.0, valid_eos_max_logit_delta=1e-6)
    found = jax.device_get(search(decoder.tables, decoder.atten, 1, 8, rules))
    tables = np.asarray(decoder.tables)
    for beam in range(2):
        ids = []
        while len(ids) < 8 and EOS not in ids:
            previous = [START, *ids]
            row = decoder.row(previous[-1], len(ids), sum(previous))
            ids.append(int(np.argmax(tables[beam, row])))
        if EOS in ids:
            assert found.ids[beam, 0, : found.lens[beam, 0]].tolist() == ids
        else:
            assert found.lens[beam, 0] == 0
            assert found.scores[beam, 0] == -np.inf


@examples
@given(seeds)
def test_scores_and_attention_are_those_of_the_tokens(seed):
    decoder = Decoder.random(seed)
    found = jax.device_get(search(decoder.tables, decoder.atten, 3, 7, options(return_atten=True)))
    for beam, j in np.ndindex(2, 3):
        n = int(found.lens[beam, j])
        scores, atten = decoder.along(beam, found.ids[beam, j, :n].tolist()) if n else ([], np.zeros((0, 4)))
        np.testing.assert_allclose(found.token_scores[beam, j, :n], scores, atol=1e-6)
        np.testing.assert_allclose(found.atten[beam, j, :n], atten)
        assert not found.ids[beam, j, n:].any()
        assert not found.token_scores[beam, j, n:].any()
        assert not found.atten[beam, j, n:].any()
        if n:
            np.testing.assert_allclose(found.scores[beam, j], found.token_scores[beam, j].sum(), atol=1e-5)


ATTRIBUTES = [
    {"beam_independence": True, "beam_size": 0.5, "length_normalization": 0.6, "coverage_penalty": 0.2},
    {"force_eos_in_top_k": True, "ensure_full_beam": True, "coverage_penalty": 0.4, "target_seq_length_ratio": 1.3},
    {"eoc_id": 0, "merge_paths": True, "coverage_penalty": 0.2, "allow_empty_terminated_hyp": False},
    {"eoc_id": 0, "compat": "lingvo", "merge_paths": True},
]
RANKING = {"length_normalization", "coverage_penalty", "target_seq_length_ratio"}


@pytest.mark.parametrize("attributes", ATTRIBUTES)
def test_equals_the_ops_called_one_by_one(implementation, attributes):
    """Coverage as it goes equals that of all the attention that a state keeps."""
    b, k, T, S = 3, 3, 8, 4
    eoc_id, compat = attributes.get("eoc_id", -1), attributes.get("compat")
    frames, lengths = jnp.asarray([2, 5, 3]) if eoc_id >= 0 else None, jnp.asarray([4, 2, 6])
    rules = {name: value for name, value in attributes.items() if name not in RANKING}
    ranking = {name: value for name, value in attributes.items() if name in RANKING}
    step = functools.partial(beam_search_step, eos_id=EOS, num_hyps_per_beam=k, implementation=implementation, **rules)
    rank = functools.partial(top_k_hyps, k=k, compat=compat, implementation=implementation, **ranking)
    step, rank = (jax.jit(function) for function in (step, rank))
    for seed in range(4):
        decoder = Decoder.random(seed, b=b, frames=frames, eoc_id=eoc_id)
        attributes_ = options(implementation=implementation, **attributes)
        found = search(decoder.tables, decoder.atten, k, T, attributes_, frames=frames, src_lengths=lengths)

        state = BeamSearchState.create(b, k, T, S)
        ids, zeros = jnp.full(b * k, START), jnp.zeros(b * k, jnp.int32)
        cache = (jnp.int32(0), zeros, zeros, zeros)
        t = 0
        while t < T and not state.all_done:
            is_kept = jnp.tile(state.beam_done, k) & attributes.get("beam_independence", False)
            log_probs, atten, cache, *is_last_chunk = decoder.step(ids, cache)
            state = step(log_probs, atten, state, t, *is_last_chunk)
            ids, parents = state.hyps[t], jnp.where(is_kept, jnp.arange(b * k), state.prev_hyps[t])
            cache = (cache[0], *(x[parents] for x in cache[1:]))
            t += 1
        expected = rank(state, src_lengths=lengths)
        assert found.num_steps == t
        np.testing.assert_array_equal(found.ids, expected.ids)
        np.testing.assert_array_equal(found.lens, expected.lens)
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)


FORCED = {"force_eos_in_last_step": True, "force_last_chunk_eoc_in_top_k": True, "eoc_id": 0}


@pytest.mark.parametrize(
    "attributes", [FORCED, {"force_eos_in_last_step": True, "eoc_id": 0}, {"force_eos_in_last_step": True}, {}]
)
def test_a_beam_has_its_own_length(implementation, attributes):
    """Together they find what each finds alone."""
    eoc_id = attributes.get("eoc_id", -1)
    frames = jnp.asarray([2, 2, 1]) if eoc_id >= 0 else None
    decoder = Decoder.random(5, b=3, frames=frames, eoc_id=eoc_id)
    # Normalised so, the longest are the best.
    rules = options(**attributes, beam_size=50.0, length_normalization=3.0, implementation=implementation)
    arguments = decoder.tables, decoder.atten, 3
    together = search(*arguments, 5, rules, frames=frames, max_lens=jnp.asarray([3, 9, 0]))
    assert together.lens[2].tolist() == [0, 0, 0]
    for beam, n in enumerate([3, 5]):
        alone = search(*arguments, n, rules, frames=frames)
        assert alone.lens[beam].max() == n
        np.testing.assert_array_equal(together.lens[beam], alone.lens[beam])
        np.testing.assert_array_equal(together.ids[beam, :, :n], alone.ids[beam])
        np.testing.assert_allclose(together.scores[beam], alone.scores[beam], rtol=1e-6)


def test_beams_of_their_own_length_find_what_trying_all_finds(implementation):
    V, k, max_lens, delta = 4, 27, [3, 4], 0.7
    rules = options(**EVERYTHING | {"valid_eos_max_logit_delta": delta}, **FORCED, implementation=implementation)
    for seed in range(5):
        decoder = Decoder.random(seed, V=V, frames=jnp.asarray([2, 3]), eoc_id=0)
        found = search(decoder.tables, decoder.atten, k, 4, rules, decoder.frames, max_lens=jnp.asarray(max_lens))
        for beam, max_len in enumerate(max_lens):
            ended, active = [], [((), 0.0)]
            for t in range(max_len):
                longer = []
                for ids, cum in active:
                    labels, num_blanks = [START, *(v for v in ids if v != 0)], ids.count(0)
                    row = decoder.row(labels[-1], num_blanks, sum(labels))
                    local, ends = np.asarray(decoder.tables[beam, row]), []
                    for v in range(V):
                        hyp = (float(cum + local[v]), [*ids, v])
                        is_good = local[v] > local.max() - delta
                        if v == EOS:
                            ends += [hyp] if is_good or t == max_len - 1 else []
                        elif v == 0 and num_blanks >= decoder.frames[beam] - 1:
                            ends += [hyp] if is_good else []
                        else:
                            longer.append(((*ids, v), hyp[0]))
                    # Of EOS and EOC behind the same hyp the lower stays.
                    ended += [min(ends)] if ends else []
                active = longer
            best = sorted(ended, key=lambda hyp: (-hyp[0], len(hyp[1])))[:k]
            assert max(len(ids) for _, ids in best) == max_len
            hyps = [ids[:n] for ids, n in zip(found.ids[beam].tolist(), found.lens[beam].tolist(), strict=True)]
            assert hyps == [ids for _, ids in best] + [[]] * (k - len(best))
            np.testing.assert_allclose(found.scores[beam, : len(best)], [score for score, _ in best], atol=1e-5)


@pytest.mark.parametrize(
    ("V", "dtype", "attributes"),
    [
        (5, np.float32, {"beam_independence": True, "beam_size": 1.0}),
        (5, np.float32, {"eoc_id": 0}),
        (3000, np.float32, {"force_eos_in_last_step": True}),
        (3000, jnp.bfloat16, {}),
    ],
)
def test_logits_need_no_softmax(implementation, V, dtype, attributes):
    decoder = Decoder.random(V, V=V, M=11)
    logits = (3 * decoder.tables + 7).astype(dtype)
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    found, expected = (
        search(tables, decoder.atten, 4, 6, options(scores=scores, implementation=implementation, **attributes))
        for scores, tables in (("logits", logits), ("log_probs", log_probs))
    )
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_array_equal(found.lens, expected.lens)
    np.testing.assert_allclose(found.scores, expected.scores, atol=2e-5)
    np.testing.assert_allclose(found.token_scores, expected.token_scores, atol=2e-5)
    assert found.num_steps == expected.num_steps


@pytest.mark.parametrize(
    ("V", "attributes"),
    [(6, {}), (3000, {"force_eos_in_last_step": True}), (6, {"eoc_id": 0}), (6, {"transform": True})],
)
def test_a_logit_that_is_no_number_is_never_chosen_and_harms_no_other(implementation, V, attributes):
    decoder = Decoder.random(V, V=V, M=11)
    logits = np.array(3 * decoder.tables + 7)
    logits[:, ::2, 4] = logits[0, :, V - 1] = np.nan
    masked = jax.nn.log_softmax(jnp.where(jnp.isnan(logits), -jnp.inf, logits))
    if "transform" in attributes:
        attributes = {"transform": lambda log_probs, ids, state: (log_probs, state)}
    rules = {"implementation": implementation, **attributes}
    found, expected = (
        search(jnp.asarray(tables), decoder.atten, 4, 6, options(scores=scores, **rules))
        for scores, tables in (("logits", logits), ("log_probs", masked))
    )
    assert (np.asarray(found.lens) > 0).any()
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_allclose(found.scores, expected.scores, atol=2e-5)


blocks_top_k = jax.jit(top_k_by_blocks, static_argnums=1)


@pytest.mark.parametrize(("num_rows", "V", "k"), [(3, 2048, 5), (2, 5000, 9), (4, 300, 7)])
def test_top_k_by_blocks_skips_nan_and_knows_one_zero(num_rows, V, k):
    random = np.random.default_rng(V)
    x = random.choice(np.float32([np.nan, 0.0, -0.0, -1.0, -np.inf]), (num_rows, V))
    as_numbers = np.where(np.isnan(x), -np.inf, x)
    best, place = blocks_top_k(jnp.asarray(x), k)
    np.testing.assert_array_equal(place, np.argsort(-as_numbers, axis=1, kind="stable")[:, :k])
    np.testing.assert_array_equal(best, np.take_along_axis(as_numbers, np.asarray(place), axis=1))


@pytest.mark.parametrize(("num_rows", "V", "k"), [(3, 2048, 5), (2, 5000, 9), (4, 300, 7)])
def test_top_k_by_blocks(num_rows, V, k):
    random = np.random.default_rng(V)
    for x in (random.standard_normal((num_rows, V)), random.integers(0, 3, (num_rows, V)), np.full((num_rows, V), -2)):
        x = jnp.asarray(x, jnp.bfloat16)
        for ours, theirs in zip(blocks_top_k(x, k), jax.lax.top_k(x.astype(jnp.float32), k), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_a_forced_prefix_is_a_prefix():
    decoder = Decoder.random(3, V=7)
    targets, weights = jnp.asarray([[4, 5, 6], [3, 3, 0]]), jnp.asarray([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])

    def forced(log_probs, ids, state):
        return biased_scores(log_probs, ids, state, targets, weights)

    for scores in ("log_probs", "logits"):
        found = decoder.compiled_search(
            3, 7, transform=forced, transform_state=BiasState.create(6), scores=scores, force_eos_in_last_step=True
        )
        assert found.lens.min() > 2
        np.testing.assert_array_equal(found.ids[0, :, :3], np.tile(targets[0], (3, 1)))
        np.testing.assert_array_equal(found.ids[1, :, :2], np.tile(targets[1, :2], (3, 1)))
        np.testing.assert_allclose(found.token_scores[0, :, :3], 0.0, atol=1e-6)

    # Behind the prefix the scores are the decoder's own.
    for j in range(3):
        ids = found.ids[0, j, : found.lens[0, j]].tolist()
        np.testing.assert_allclose(found.token_scores[0, j, 3 : len(ids)], decoder.along(0, ids)[0][3:], atol=1e-5)


def test_a_constrained_hyp_starts_with_one_of_the_sequences():
    decoder = Decoder.random(3, V=7)
    trie = PrefixTrie.create([[3, 4], [5]], [[6, EOS]])
    constrained = functools.partial(constrained_scores, trie=trie)
    found = decoder.compiled_search(
        4, 5, transform=constrained, transform_state=PrefixState.create(trie, 8), valid_eos_max_logit_delta=50.0
    )
    hyps = [ids[:n] for ids, n in zip(found.ids[0].tolist(), found.lens[0], strict=True)]
    assert all(ids[:2] == [3, 4] or ids[0] == 5 for ids in hyps)
    assert found.ids[1, 0, :2].tolist() == [6, EOS]


def test_sampled_hyps_differ_and_score_what_the_decoder_says():
    decoder = Decoder.random(3, V=5)

    def sampled(log_probs, ids, state):
        return stochastic_scores(log_probs, ids, state, jax.random.key(0))

    perturbed = {"transform": sampled, "transform_state": StochasticState.create(12, 5)}
    found = decoder.compiled_search(6, 5, **perturbed, **EVERYTHING)
    for beam in range(2):
        hyps = {tuple(ids[:n]) for ids, n in zip(found.ids[beam].tolist(), found.lens[beam], strict=True)}
        assert len(hyps) == 6
    # Perturbed scores, of which those of the beam are the largest.
    assert (np.diff(found.scores, axis=1) <= 0).all()


def test_a_cache_by_index_is_a_cache_by_copy():
    """A decoder whose scores depend on all the history of a hyp, in three ways to remember it."""
    b, k, T, V = 3, 4, 6, 9
    N = b * k
    random = np.random.default_rng(0)
    embedding, weights = random.standard_normal((V, 5)), random.standard_normal((T, 5, V))
    embedding, weights = jnp.asarray(embedding, jnp.float32), jnp.asarray(weights, jnp.float32)

    def scores(history_NxTxD):
        return jax.nn.log_softmax(jnp.einsum("ntd,tdv->nv", history_NxTxD, weights))

    def by_copy(ids, cache):
        rows_NxTxD, t = cache
        rows_NxTxD = rows_NxTxD.at[:, t].set(embedding[ids])
        return scores(rows_NxTxD), None, (rows_NxTxD, t + 1)

    def by_take(ids, cache):
        rows_TxNxD, index = cache
        rows_TxNxD = rows_TxNxD.at[index.step].set(embedding[ids])
        is_written = jnp.arange(T)[:, None, None] <= index.step
        history_TxNxD = jnp.where(is_written, index.take(rows_TxNxD), 0.0)
        return scores(history_TxNxD.transpose(1, 0, 2)), None, (rows_TxNxD, index)

    def by_mask(ids, cache):
        rows_TxNxD, index = cache
        rows_TxNxD = rows_TxNxD.at[index.step].set(embedding[ids])
        rows_TxkxbxD = rows_TxNxD.reshape(T, k, b, -1)
        mask_bxkxTxk = index.mask(k).astype(jnp.float32)
        history_kxbxTxD = jnp.einsum("bitj,tjbd->ibtd", mask_bxkxTxk, rows_TxkxbxD)
        return scores(history_kxbxTxD.reshape(N, T, -1)), None, (rows_TxNxD, index)

    copied = (jnp.zeros((N, T, 5)), jnp.int32(0))
    indexed = (jnp.zeros((T, N, 5)), CacheIndex.create(T, N))
    rules = {"num_beams": b, "num_hyps_per_beam": k, "max_steps": T, "eos_id": EOS, "beam_size": 20.0}
    found = []
    for step_fn, cache, axes in ((by_copy, copied, 0), (by_take, indexed, None), (by_mask, indexed, (None, 0))):
        whole = functools.partial(beam_search, step_fn, start_ids=jnp.arange(N), cache_axes=axes, **rules)
        found.append(jax.jit(whole)(cache))
    assert found[0].lens.min() > 0
    for other in found[1:]:
        np.testing.assert_array_equal(other.ids, found[0].ids)
        np.testing.assert_allclose(other.scores, found[0].scores, rtol=1e-5)


@pytest.mark.parametrize(("step_axis", "slot_axis"), [(0, 1), (1, 0), (2, 0), (1, 3)])
def test_history_by_index_is_history_by_copy(step_axis, slot_axis):
    """Whatever the parents, and wherever the rows lie."""
    b, k, T = 2, 3, 5
    random = np.random.default_rng(step_axis)
    index, copied_TxN = CacheIndex.create(T, b * k), np.full((T, b * k), -1)
    rows_TxN = np.full((T, b * k), -1)
    for t in range(T):
        rows_TxN[t] = copied_TxN[t] = 100 * t + np.arange(b * k)
        others = tuple(axis for axis in range(max(step_axis, slot_axis) + 1) if axis not in (step_axis, slot_axis))
        rows = np.expand_dims(rows_TxN if step_axis < slot_axis else rows_TxN.T, others)
        taken = index.take(jnp.asarray(rows), step_axis, slot_axis).squeeze(others)
        taken_TxN = np.asarray(taken if step_axis < slot_axis else taken.T)
        np.testing.assert_array_equal(taken_TxN[: t + 1], copied_TxN[: t + 1])
        # The mask finds the same, and nothing else.
        mask_bxkxTxk = np.asarray(index.mask(k))
        for i in range(b * k):
            seen = rows_TxN.reshape(T, k, b)[:, :, i % b][mask_bxkxTxk[i % b, i // b]]
            np.testing.assert_array_equal(seen, copied_TxN[: t + 1, i])
        parents = random.integers(0, k, b * k) * b + np.arange(b * k) % b
        index, copied_TxN = index.reorder(jnp.asarray(parents)), copied_TxN[:, parents]


def test_stops_when_all_beams_are_done():
    tables = np.log(np.asarray([0.01, 0.01, 0.9, 0.08], np.float32))
    decoder = Decoder(jnp.tile(tables, (2, 1, 1)), jnp.zeros((2, 1, 0)))
    assert decoder.compiled_search(2, 50, beam_size=1.0).num_steps == 1
    assert decoder.compiled_search(2, 50, beam_size=1e6).num_steps == 50


def test_nan_is_an_error():
    decoder = Decoder.random(0)
    decoder = decoder._replace(tables=decoder.tables.at[1].set(jnp.nan))
    for scores in ("log_probs", "logits"):
        with pytest.raises(jax.errors.JaxRuntimeError, match=r"No entries in TopK.*NaNs in the output"):
            decoder.search(2, 4, implementation="xla", scores=scores)
    # The scores of the other beam are as they are.
    found = search(decoder.tables, decoder.atten, 2, 4, options(implementation="xla"))
    assert np.isnan(found.scores).all(axis=1).tolist() == [False, True]
    if not _native.why_unavailable():
        with pytest.raises(jax.errors.JaxRuntimeError, match="No entries in TopK"):
            decoder.search(2, 4, implementation="cpp")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_beams": 0}, r"num_beams and max_steps must be > 0 \(got 0 and 4\)"),
        ({"scores": "probs"}, r"scores must be 'log_probs' or 'logits' \(got 'probs'\)"),
        ({"start_ids": jnp.zeros(3, jnp.int32)}, r"start_ids must be integers \[2\] or \[4\] \(got int32\[3\]\)"),
        ({"max_lens": jnp.zeros(2)}, r"max_lens must be integers \[2\] \(got float32\[2\]\)"),
        ({"src_lengths": jnp.zeros(4, jnp.int32)}, r"src_lengths must be integers \[2\] \(got int32\[4\]\)"),
        ({"return_atten": True}, "return_atten must be False: step_fn returns no attention"),
        ({"coverage_penalty": 0.1}, r"coverage_penalty must be 0 \(got 0.1\)"),
        ({"eos_id": 9}, r"eos_id 9 and eoc_id -1 must be < V = 5"),
        ({"cache_axes": 1}, r"cache.* must have the 4 slots on axis 1 \(it is \(4,\)\)"),
        ({"step_fn": lambda ids, cache: (jnp.zeros((4, 5)), cache)}, "step_fn must return .* of 2"),
        (
            {"step_fn": lambda ids, cache: (jnp.zeros((2, 5)), None, cache)},
            r"scores \[N = 4, V\] \(got float32\[2, 5\]\)",
        ),
        ({"step_fn": lambda ids, cache: (jnp.zeros((4, 5)), None, cache[:2])}, "cache like the one it gets"),
        ({"step_fn": lambda ids, cache: (jnp.zeros((4, 5)), ids[:, None][:1], cache)}, "atten_probs"),
    ],
)
def test_says_what_is_wrong(arguments, message):
    def step_fn(ids, cache):
        return jnp.zeros((4, 5)), None, cache

    good = {"num_beams": 2, "num_hyps_per_beam": 2, "max_steps": 4, "eos_id": 2, "start_ids": jnp.zeros(2, jnp.int32)}
    with pytest.raises(ValueError, match=message):
        beam_search(**{"step_fn": step_fn, "init_state": jnp.zeros(4), **good, **arguments})


def helper_cases(lingvo_vectors):
    cases = [(case, arrays) for case, arrays in lingvo_vectors("c_search") if case["kind"] == "beam_helper"]
    assert len(cases) > 3
    return cases


def test_some_of_lingvos_vectors(lingvo_vectors, implementation):
    """A third of them: each is a program of its own to compile."""
    check_vectors(helper_cases(lingvo_vectors)[::3], implementation)


@pytest.mark.slow
def test_lingvos_vectors(lingvo_vectors, implementation):
    check_vectors(helper_cases(lingvo_vectors), implementation)


def check_vectors(cases, implementation):
    for case, arrays in cases:
        params = {name.removeprefix("target_"): value for name, value in case["params"].items() if "sos" not in name}
        found = search(
            arrays["in_tables"],
            arrays["in_atten"],
            case["k"],
            case["T"],
            options(implementation=implementation, **params),
            arrays["in_frames"] if case["blanks"] else None,
            tuple(case["coef"]),
            start_ids=arrays["in_start_ids"],
            src_lengths=arrays["in_src_lengths"],
        )
        assert found.num_steps == case["num_steps"], case["id"]
        np.testing.assert_array_equal(found.lens, arrays["out_topk_lens"], case["id"])
        if not case.get("tied"):
            np.testing.assert_array_equal(found.ids, arrays["out_topk_ids"], case["id"])
        scores = np.where(found.lens > 0, found.scores, 0.0)
        np.testing.assert_allclose(scores, arrays["out_topk_scores"], atol=3e-5, rtol=1e-5, err_msg=case["id"])


def test_eos_must_be_a_token_of_logits_too():
    with pytest.raises(ValueError, match=r"eos_id must be < V = 5 .*\(got 99\)"):
        beam_search(
            lambda ids, cache: (jnp.zeros((2, 5)), None, cache),
            (),
            num_beams=1,
            num_hyps_per_beam=2,
            max_steps=2,
            eos_id=99,
            start_ids=jnp.array([1]),
            scores="logits",
        )
