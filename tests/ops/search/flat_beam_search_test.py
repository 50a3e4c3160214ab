"""Flat beam search: exhaustive search when it is wide enough, the plain loop when not, and what Lingvo found."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylingvo.ops.search.flat_beam_search import flat_beam_search

BOS, EOS = 1, 2


def buffer_decoder(next_log_probs, b, k, T):
    """A callback and its state: next_log_probs(ids, positions, mask, buffer [b, k*T] of all tokens) scores tokens."""

    def callback(ids, segment_ids, positions, mask, buffer, t):
        assert ids.shape == segment_ids.shape == positions.shape == mask.shape[:2]
        assert mask.shape == (b, ids.shape[1], k * T)
        buffer = jax.lax.dynamic_update_slice(buffer, ids, (jnp.int32(0), t * k))
        return next_log_probs(ids, positions, mask, buffer), buffer

    return callback, jnp.zeros((b, k * T), jnp.int32)


def table_decoder(tables, coef, k, T):
    """Of a Markov chain over the rows of tables [b, M, V]: its state is the token, its position and the sum of all."""
    A, B, C = coef

    def next_log_probs(ids, positions, mask, buffer):
        z = jnp.einsum("bqp,bp->bq", mask.astype(jnp.int32), buffer)
        row = (A * ids + B * positions + C * z) % tables.shape[1]
        return jnp.take_along_axis(tables, row[..., None], axis=1)

    return buffer_decoder(next_log_probs, len(tables), k, T)


def local_scores(table, coef, ids):
    """f32[V] after ids"""
    row = coef[0] * ids[-1] + coef[1] * (len(ids) - 1) + coef[2] * sum(ids)
    return table[row % len(table)]


def random_tables(seed, b, M, V):
    logits = np.random.default_rng(seed).normal(size=(b, M, V)) * 1.5
    return np.asarray(jax.nn.log_softmax(logits), np.float32)


@functools.partial(jax.jit, static_argnames=("k", "T", "options"))
def search(tables, coef, k, T, prefix=None, prefix_len=None, max_lens=None, options=()):
    callback, state = table_decoder(tables, coef, k, T)
    return flat_beam_search(
        len(tables), k, T, callback, state, prefix=prefix, prefix_len=prefix_len, max_lens=max_lens, **dict(options)
    )


def found(result, i):
    """(ids, score) of each hyp of example i, the prefix and EOS included."""
    hyps = zip(result.ids[i].tolist(), result.lens[i].tolist(), result.scores[i].tolist(), strict=True)
    return [(tuple(ids[:length]), score) for ids, length, score in hyps if length]


def assert_same_hyps(got, expected):
    assert [ids for ids, _ in got] == [ids for ids, _ in expected]
    np.testing.assert_allclose([score for _, score in got], [score for _, score in expected], rtol=1e-5, atol=1e-5)


def plain(table, coef, start, k, num_steps, *, m, ext_size=0, alpha=0.8, beam_gap=None, max_len=None):
    """The plain loop, of one example, whose hyps are tuples of tokens. num_steps: how many rows are filled."""
    lanes, extensions, nbest = [(0.0, start)], [], []
    for _ in range(num_steps):
        new = []
        for score, ids in lanes:
            local, n = local_scores(table, coef, ids), len(ids) - len(start)
            if max_len is None or n + 1 <= max_len:
                nbest.append(((score + local[EOS]) / ((n + 5) / 5) ** alpha, score, ids))
            if max_len is None or n + 2 <= max_len:
                best = np.argsort(-local, kind="stable")[:k]
                new += [(score + local[v], (*ids, int(v))) for v in best if v != EOS]
        nbest = sorted(nbest, key=lambda hyp: -hyp[0])[:m]
        every = sorted(extensions + new, key=lambda hyp: -hyp[0])
        lanes, extensions = every[:k], every[k : k + ext_size]
        worst = min(score for _, score, _ in nbest) if len(nbest) == m else -np.inf
        if not lanes or (beam_gap is not None and worst - lanes[0][0] >= beam_gap):
            break
    return [((*ids, EOS), norm) for norm, _, ids in nbest]


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.8]))
def test_wide_enough_it_is_exhaustive_search(seed, alpha):
    b, V, T, k = 2, 4, 5, 27
    tables, coef = random_tables(seed, b, 11, V), (1, 3, 2)
    result = search(tables, coef, k, T, options=(("beam_gap", None), ("length_norm_alpha", alpha), ("nbest_size", 40)))
    for i in range(b):
        every = []
        # The first row of the buffer is that of BOS.
        for n in range(T - 1):
            for tokens in itertools.product([v for v in range(V) if v != EOS], repeat=n):
                ids = (BOS, *tokens, EOS)
                score = sum(local_scores(tables[i], coef, ids[:j])[ids[j]] for j in range(1, len(ids)))
                every.append((ids, score / ((n + 5) / 5) ** alpha))
        assert len(every) == 40
        assert_same_hyps(found(result, i), sorted(every, key=lambda hyp: -hyp[1]))


@settings(max_examples=40)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([(0, None), (0, 0.5), (5, 2.0)]),
    st.lists(st.integers(0, 9), min_size=3, max_size=3),
    st.lists(st.integers(1, 4), min_size=3, max_size=3),
)
def test_it_is_the_plain_loop(seed, ext_size_and_beam_gap, max_lens, prefix_lens):
    ext_size, beam_gap = ext_size_and_beam_gap
    b, V, T, k, m, W = 3, 8, 8, 2, 3, 4
    tables, coef = random_tables(seed, b, 13, V), (1, 3, 2)
    options = (("beam_gap", beam_gap), ("ext_size", ext_size), ("nbest_size", m))
    prefix = np.random.default_rng(seed).integers(3, V, (b, W)).astype(np.int32)
    result = search(tables, coef, k, T, prefix, np.array(prefix_lens), np.array(max_lens), options=options)
    for i in range(b):
        start = tuple(prefix[i, W - prefix_lens[i] :].tolist())
        expected = (
            plain(tables[i], coef, start, k, T - W // k, m=m, ext_size=ext_size, beam_gap=beam_gap, max_len=max_lens[i])
            if max_lens[i]
            else []
        )
        assert_same_hyps(found(result, i), expected)
        for j, (ids, score) in enumerate(expected):
            n = len(ids) - len(start) - 1
            token_scores = result.token_scores[i, j]
            np.testing.assert_allclose(token_scores.sum(), score * ((n + 5) / 5) ** 0.8, rtol=1e-4, atol=1e-4)
            assert not token_scores[: len(start)].any()
            assert not token_scores[len(ids) :].any()
            assert not result.ids[i, j, len(ids) :].any()
        assert np.isneginf(result.scores[i, len(expected) :]).all()


def test_an_example_does_not_depend_on_the_others_and_the_search_ends_with_the_last():
    b, V, T, k = 4, 8, 30, 3
    tables, coef = random_tables(5, b, 13, V), (1, 3, 2)
    result = search(tables, coef, k, T, options=(("beam_gap", 0.5),))
    alone = [search(tables[i : i + 1], coef, k, T, options=(("beam_gap", 0.5),)) for i in range(b)]
    for i in range(b):
        assert_same_hyps(found(result, i), found(alone[i], 0))
    steps = [int(one.num_steps) for one in alone]
    assert int(result.num_steps) == max(steps)
    assert 1 < min(steps) < max(steps) < T
    assert int(search(tables, coef, k, T, options=(("beam_gap", 0.5), ("compat", "lingvo"))).num_steps) == T


def test_the_first_call_feeds_all_of_the_prefix_but_its_last_token():
    prefix, prefix_len = np.array([[9, 8, 7, 6], [0, 0, 5, 4]]), np.array([4, 2])

    def callback(ids, segment_ids, positions, mask, fed, t):
        # Later calls have two tokens, one for each lane.
        fed = (ids, segment_ids, positions, mask, t) if ids.shape[1] == 4 else fed
        return jnp.zeros((*ids.shape, 6)), fed

    @jax.jit
    def search():
        zeros = jnp.zeros((2, 4), jnp.int32)
        state = (zeros, zeros, zeros, jnp.zeros((2, 4, 8)), jnp.int32(-1))
        return flat_beam_search(2, 2, 4, callback, state, prefix=prefix, prefix_len=prefix_len)

    ids, segment_ids, positions, mask, t = search().dec_state
    assert ids.tolist() == [[0, 9, 8, 7], [0, 0, 0, 5]]
    assert segment_ids.tolist() == [[0, 1, 1, 1], [0, 0, 0, 1]]
    assert positions.tolist() == [[0, 0, 1, 2], [0, 0, 0, 0]]
    assert mask[0, :, :4].tolist() == [[0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 1, 1, 1]]
    assert mask[1, :, :4].tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    assert not mask[:, :, 4:].any()
    assert int(t) == 0


def rule_decoder(rule, b, k, T, V):
    """Lingvo's: the next token is a function of those before it; mistakes are possible, and after a 9 most likely EOS.

    What follows is token x, with x + 1 .. x + 4 less and less likely.
    """

    def next_log_probs(ids, positions, mask, buffer):
        mask = mask.astype(jnp.int32)
        if rule == "+1":
            x = ids + 1
        elif rule == "sum":
            x = jnp.einsum("bqp,bp->bq", mask, buffer)
        else:
            is_before_last = mask * (jnp.cumsum(mask, axis=2) == mask.sum(axis=2, keepdims=True) - 1)
            x = ids + jnp.einsum("bqp,bp->bq", is_before_last, buffer)
        distance = (jnp.arange(V)[None, None] - x[..., None]) % V
        logits = jnp.maximum(5.0 - distance, 0.0)
        has_9 = (ids % 10 == 9) | (ids // 10 % 10 == 9)
        logits = logits.at[..., 0].add(9.0 * has_9)
        return jax.nn.log_softmax(logits - (jnp.arange(V) / jnp.arange(V).sum())[None, None])

    return buffer_decoder(next_log_probs, b, k, T)


def test_what_lingvo_finds(lingvo_vectors):
    cases = [(case, arrays) for case, arrays in lingvo_vectors("c_search") if case["kind"].startswith("flat")]
    assert {case["kind"] for case, _ in cases} == {"flat", "flat_rule"}
    for case, arrays in cases:
        b, k, T = case["b"], case["k"], case["T"]
        if case["kind"] == "flat":
            options = {"beam_gap": 3.0} | case["params"]
            callback, state = table_decoder(jnp.asarray(arrays["in_tables"]), case["coef"], k, T)
            options |= {name: arrays[f"in_{name}"] for name in ("prefix", "prefix_len") if f"in_{name}" in arrays}
        else:
            options = {"bos_id": 1, "eos_id": 0, "beam_gap": None}
            callback, state = rule_decoder(case["rule"], b, k, T, case["V"])
        # Only the rule by which to stop makes a difference here.
        options["compat"] = None if options["beam_gap"] is None else "lingvo"
        result = jax.jit(functools.partial(flat_beam_search, b, k, T, callback, **options))(state)
        width = arrays["out_topk_ids"].shape[2]
        np.testing.assert_array_equal(result.ids[..., :width], arrays["out_topk_ids"], err_msg=case["id"])
        assert not result.ids[..., width:].any()
        np.testing.assert_array_equal(result.lens, arrays["out_topk_lens"], err_msg=case["id"])
        np.testing.assert_allclose(result.scores, arrays["out_topk_scores"], atol=3e-5, rtol=1e-5, err_msg=case["id"])
        assert int(result.num_steps) == case.get("final_t", T)


def constant_decoder(*log_probs):
    row = jnp.array(log_probs, jnp.float32)
    return lambda ids, segment_ids, positions, mask, state, t: (jnp.broadcast_to(row, (*ids.shape, len(row))), state)


def constant_search(*log_probs, **options):
    """With one example and T = 3."""
    return jax.jit(lambda: flat_beam_search(1, 2, 3, constant_decoder(*log_probs), None, **options))()


def test_where_there_is_no_hyp():
    # EOS is the only token.
    result = constant_search(-1e30, -1e30, -0.5)
    assert result.ids[0].tolist() == [[BOS, EOS, 0], [0, 0, 0]]
    assert result.lens.tolist() == [[2, 0]]
    assert result.scores[0].tolist() == [-0.5, -np.inf]
    assert int(result.num_steps) == 2
    # Lingvo has empty hyps of one EOS.
    result = constant_search(-1.0, -1.0, -1e10, compat="lingvo")
    assert result.ids[0].tolist() == [[EOS, 0, 0]] * 2
    assert result.lens.tolist() == [[1, 1]]
    assert result.scores[0].tolist() == [-1e9, -1e9]


def test_nan_is_never_chosen_and_a_lane_of_nothing_else_is_an_error():
    nan = float("nan")
    assert constant_search(nan, -1.0, -2.0).ids[0].tolist() == [[BOS, EOS, 0], [BOS, 1, EOS]]
    assert np.isnan(constant_search(nan, nan, nan).scores).all()
    # Outside jit it can raise.
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"No entries in TopK.*producing NaNs in the output"):
        flat_beam_search(1, 1, 2, constant_decoder(nan, nan, nan), None)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"max_steps": 0}, r"max_steps must be > 0 \(got 0\)"),
        ({"max_steps": 1}, r"max_steps must be > 1 \(got 1\)"),
        ({"beam_size": 0}, r"beam_size .* must be > 0 .*\(got 2, 0, None and 0\)"),
        ({"ext_size": -1}, r"ext_size >= 0 \(got 2, 2, None and -1\)"),
        ({"eos_id": -1}, r"eos_id must be >= 0 \(got -1\)"),
        ({"eos_id": 6}, r"V\] with V > eos_id = 6 \(got \[2, 2, 3\]\)"),
        ({"length_norm_alpha": -1.0}, r"length_norm_alpha must be >= 0 \(got -1.0\)"),
        ({"prefix_len": [1, 1]}, r"prefix_len must be None without a prefix"),
        ({"prefix": [[1, 1, 1]] * 2}, r"prefix must be a multiple of beam_size = 2 wide, .*\(got 3\)"),
        ({"prefix": [[1] * 8] * 2}, r"below 2 \* max_steps \(got 8\)"),
        ({"prefix": [[1, 1]]}, r"prefix must be integers \[2, any\] \(got int32\[1, 2\]\)"),
        ({"prefix": [[1, 1]] * 2, "prefix_len": [1]}, r"prefix_len must be integers \[2\]"),
        ({"max_lens": [1.0, 1.0]}, r"max_lens must be integers \[2\]"),
        ({"compat": "tf"}, r"compat must be None or 'lingvo' \(got 'tf'\)"),
        ({"implementation": "c"}, r"implementation must be .* \(got 'c'\)"),
        ({"dec_callback": lambda *_: jnp.zeros((2, 2, 3))}, r"dec_callback must return \(log_probs, dec_state\)"),
        ({"dec_callback": lambda *_: (jnp.zeros((2, 2, 3)), 1.0)}, r"dec_callback must return a carry like"),
    ],
)
def test_a_wrong_argument_is_named(changed, message):
    names = ("batch_size", "beam_size", "max_steps", "dec_callback", "dec_state")
    arguments = dict(zip(names, (2, 2, 4, constant_decoder(-1.0, -1.0, -1.0), None), strict=True)) | changed
    with pytest.raises(ValueError, match=message):
        flat_beam_search(**arguments)


def test_there_is_no_c_plus_plus_twin():
    with pytest.raises(RuntimeError, match="flat_beam_search has no C\\+\\+ twin"):
        flat_beam_search(1, 1, 2, constant_decoder(-1.0, -1.0, -1.0), None, implementation="cpp")
