"""The n-best: against a walk through each hyp, the worked numbers of the reference, and what Lingvo printed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.search import beam_oracle

from raylingvo.ops.search.beam_search_state import BeamSearchState
from raylingvo.ops.search.top_k_hyps import top_k_hyps

both = pytest.mark.parametrize("implementation", beam_oracle.implementations())


def random_state(seed, b, n, T, S, share_done):
    """A state such as no search leaves: every slot has parents, any may have ended anywhere."""
    random = np.random.default_rng(seed)
    N = b * n
    shape = (T, N)
    return BeamSearchState.create(b, n, T, S)._replace(
        hyps=random.integers(1, 9, shape, dtype=np.int32),
        prev_hyps=(random.integers(0, n, shape) * b + np.arange(N) % b).astype(np.int32),
        done_hyps=random.random(shape) < share_done,
        eos_ids=random.integers(1, 3, shape, dtype=np.int32),
        eos_global_scores=random.normal(size=shape).astype(np.float32),
        atten_probs=random.random((*shape, S), dtype=np.float32) / 3,
        eos_atten_probs=random.random((*shape, S), dtype=np.float32) / 3,
    )


@both
@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**32 - 1),
    share_done=st.sampled_from([0.05, 0.5]),
    length_normalization=st.sampled_from([0.0, 0.6]),
    coverage_penalty=st.sampled_from([0.0, 0.2]),
    ratio=st.sampled_from([0.5, 1.0, 1.7]),
)
def test_every_hyp_walked(implementation, seed, share_done, length_normalization, coverage_penalty, ratio):
    b, n, T, S, k = 2, 3, 5, 4, 5
    state = random_state(seed, b, n, T, S, share_done)
    src_lengths = np.random.default_rng(seed).integers(0, S + 3, b)
    ids, lens, scores = top_k_hyps(
        state,
        k,
        length_normalization=length_normalization,
        coverage_penalty=coverage_penalty,
        target_seq_length_ratio=ratio,
        src_lengths=src_lengths,
        implementation=implementation,
    )
    assert (ids.dtype, lens.dtype, scores.dtype) == (jnp.int32, jnp.int32, jnp.float32)
    want = beam_oracle.top_k(state, k, length_normalization, coverage_penalty, ratio, src_lengths)
    for beam, hyps in enumerate(want):
        assert [ids[beam, j, : lens[beam, j]].tolist() for j in range(len(hyps))] == [tokens for _, tokens in hyps]
        np.testing.assert_allclose(scores[beam, : len(hyps)], [score for score, _ in hyps], atol=2e-5)
        assert all(not ids[beam, j, lens[beam, j] :].any() for j in range(k))
        assert not lens[beam, len(hyps) :].any() and np.isneginf(scores[beam, len(hyps) :]).all()


@both
def test_the_worked_number(implementation):
    state = BeamSearchState.create(1, 1, 2, 3)
    state = state._replace(
        hyps=state.hyps.at[0, 0].set(5),
        done_hyps=state.done_hyps.at[1, 0].set(True),
        eos_ids=state.eos_ids.at[1, 0].set(2),
        eos_global_scores=state.eos_global_scores.at[1, 0].set(0.86230338 + 0.65504861),
        eos_atten_probs=jnp.ones((2, 1, 3)),
    )
    best = top_k_hyps(state, 1, length_normalization=0.2, coverage_penalty=0.2, implementation=implementation)
    np.testing.assert_allclose(best.scores, [[1.002714]], atol=1e-6)
    assert (best.ids.tolist(), best.lens.tolist()) == ([[[5, 2]]], [[2]])


@both
def test_of_equal_scores_the_shorter_then_the_lower_slot(implementation):
    state = BeamSearchState.create(1, 2, 3, 0)
    state = state._replace(
        done_hyps=jnp.array([[False, False], [True, True], [True, False]]), eos_ids=jnp.array([[0, 0], [4, 5], [6, 0]])
    )
    ids, lens, _ = top_k_hyps(state, 3, implementation=implementation)
    assert lens.tolist() == [[2, 2, 3]]
    assert [ids[0, j, lens[0, j] - 1] for j in range(3)] == [4, 5, 6]


@both
def test_a_score_that_is_no_number_is_last(implementation):
    scores = jnp.array([[np.nan, 1.0], [-0.0, -np.inf], [0.0, np.nan], [-np.nan, 2.0]])
    state = BeamSearchState.create(1, 2, 4, 0)._replace(
        eos_global_scores=scores,
        done_hyps=jnp.ones((4, 2), bool).at[3, 0].set(False),
        eos_ids=jnp.arange(1, 9, dtype=jnp.int32).reshape(4, 2),
    )
    ids, lens, got = top_k_hyps(state, 8, implementation=implementation)
    # -0.0 equals 0.0, and NaN -inf: the shorter, then the lower slot first.
    order = [8, 2, 3, 5, 1, 4, 6]
    assert [ids[0, j, n - 1] for j, n in enumerate(lens[0, :7].tolist())] == order
    np.testing.assert_array_equal(got[0], [2.0, 1.0, 0.0, 0.0, np.nan, -np.inf, np.nan, -np.inf])


@both
@pytest.mark.parametrize(("compat", "score"), [(None, -np.inf), ("lingvo", 0.0)])
def test_where_there_is_no_hyp(implementation, compat, score):
    # More are asked for than the state could hold.
    ids, lens, scores = top_k_hyps(BeamSearchState.create(2, 1, 3, 0), 5, compat=compat, implementation=implementation)
    assert ids.shape == (2, 5, 3) and not ids.any() and not lens.any()
    np.testing.assert_array_equal(scores, np.full((2, 5), score))


@both
def test_inside_jit(implementation):
    state = random_state(3, 2, 3, 5, 4, 0.3)
    top_k = functools.partial(top_k_hyps, k=2, coverage_penalty=0.1, implementation=implementation)
    for got, want in zip(jax.jit(top_k)(state), top_k(state), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 0}, r"k must be > 0 \(got 0\)"),
        ({"length_normalization": -0.5}, r"length_normalization must be >= 0 \(got -0.5\)"),
        ({"coverage_penalty": float("nan")}, r"coverage_penalty must be >= 0 \(got nan\)"),
        ({"target_seq_length_ratio": 0.0}, r"target_seq_length_ratio must be > 0 \(got 0.0\)"),
        ({"src_lengths": [3]}, r"src_lengths must be integers \[b = 2\] \(got int32\[1\]\)"),
        ({"src_lengths": [3.0, 2.0]}, r"src_lengths must be integers \[b = 2\] \(got float32\[2\]\)"),
        ({"compat": "tf"}, r"compat must be None or 'lingvo' \(got 'tf'\)"),
    ],
)
def test_a_wrong_argument_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        top_k_hyps(**({"state": BeamSearchState.create(2, 2, 3, 0), "k": 1} | changes))


def state_of(case, arrays, b, n, T, S):
    """What is left of a search, in a state of at least its sizes: one size, so that it is compiled once."""
    state = BeamSearchState.create(b, n, T, S)
    names = {"eos_global_scores": "eos_global"}
    filled = {}
    for name in ("hyps", "prev_hyps", "done_hyps", "eos_ids", "eos_global_scores", "atten_probs", "eos_atten_probs"):
        array = arrays[f"out_{names.get(name, name)}"]
        if name == "prev_hyps":
            array = array // case["b"] * b + array % case["b"]
        full = np.zeros(np.shape(getattr(state, name)), array.dtype).reshape(T, n, b, *[S] * (array.ndim - 2))
        part = array.reshape(case["T"], case["k"], case["b"], *array.shape[2:])
        full[tuple(slice(size) for size in part.shape)] = part
        filled[name] = jnp.asarray(full.reshape(np.shape(getattr(state, name))))
    return state._replace(**filled)


@both
@pytest.mark.parametrize("compat", [None, "lingvo"])
def test_lingvos_results(lingvo_vectors, implementation, compat):
    searches = {case["id"]: (case, arrays) for case, arrays in lingvo_vectors("a_beam_search")}
    cases = [(case, arrays) for case, arrays in lingvo_vectors("b_results") if case["kind"] == "search"]
    assert cases
    sizes = {size: max(case[size] for case, _ in searches.values()) for size in "bkTS"}
    most_hyps = max(case["k"] for case, _ in cases)
    states = {
        name: state_of(case, arrays, sizes["b"], sizes["k"], sizes["T"], sizes["S"])
        for name, (case, arrays) in searches.items()
    }
    for i, (case, arrays) in enumerate(cases):
        (b, k, T), id_ = arrays["out_ids"].shape, case["id"]
        state, src_lengths, max_k = states[case["search"]], np.zeros(sizes["b"], int), most_hyps
        src_lengths[:b] = arrays["src_lengths"]
        if i % 50 == 0:  # a few as they are
            of_search = searches[case["search"]]
            state = state_of(*of_search, *(of_search[0][size] for size in "bkTS"))
            src_lengths, max_k = arrays["src_lengths"], k
        weights = ("length_normalization", "coverage_penalty", "target_seq_length_ratio")
        weights = {name: case[name] for name in weights}
        best = top_k_hyps(
            state, max_k, src_lengths=src_lengths, compat=compat, implementation=implementation, **weights
        )
        ids, lens, scores = (np.asarray(x)[:b, :k] for x in best)
        if compat is None:
            assert np.isneginf(scores[lens == 0]).all()
            scores = np.where(lens == 0, 0.0, scores)
        np.testing.assert_allclose(scores, arrays["out_scores"], atol=3e-5, rtol=1e-5, err_msg=id_)
        np.testing.assert_array_equal(lens, arrays["out_lens"], err_msg=id_)
        if not case["tied"]:
            np.testing.assert_array_equal(ids[..., :T], arrays["out_ids"], err_msg=id_)


@both
def test_a_state_whose_arrays_do_not_belong_together(implementation):
    state = BeamSearchState.create(2, 2, 3, 0)
    for name, array in (("done_hyps", jnp.zeros((1, 1), bool)), ("scores", jnp.zeros((3, 4), jnp.int32))):
        with pytest.raises(ValueError, match=rf"state\.{name} must be"):
            top_k_hyps(state._replace(**{name: array}), 1, implementation=implementation)
    with pytest.raises(ValueError, match=r"state\.hyps must be \[T, N\]"):
        top_k_hyps(BeamSearchState.create(0, 2, 3, 0), 1, implementation=implementation)
