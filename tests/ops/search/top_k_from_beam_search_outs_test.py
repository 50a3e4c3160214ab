"""The n-best of arrays: what `top_k_hyps` says of the same search, and what Lingvo printed."""

import jax.numpy as jnp
import numpy as np
import pytest
from ops.search import beam_oracle
from ops.search.top_k_hyps_test import random_state, state_of

from raylingvo.ops.search.top_k_from_beam_search_outs import top_k_from_beam_search_outs
from raylingvo.ops.search.top_k_hyps import top_k_hyps

both = pytest.mark.parametrize("implementation", beam_oracle.implementations())


def as_outs(state, cumulative_scores):
    """A state's arrays as arguments. cumulative_scores: f32[T, N], made up."""
    T, N = state.hyps.shape
    before = np.concatenate([np.zeros((1, N), np.float32), cumulative_scores[:-1]])
    covered = np.array(state.eos_atten_probs)
    for t in range(T):
        for slot in range(N):
            for row, parent in enumerate(beam_oracle.path(state, slot, t - 1)):
                covered[t, slot] += state.atten_probs[row, parent]
    return {
        "hyps": state.hyps,
        "prev_hyps": state.prev_hyps,
        "done_hyps": state.done_hyps,
        "cumulative_scores": cumulative_scores,
        "eos_scores": state.eos_global_scores - before,
        "cumulative_atten_probs": covered,
    }


@both
@pytest.mark.parametrize(("length_normalization", "coverage_penalty"), [(0.0, 0.0), (0.6, 0.3)])
def test_it_is_top_k_hyps(implementation, length_normalization, coverage_penalty):
    b, n, T, S = 2, 3, 5, 4
    state = random_state(7, b, n, T, S, 0.2)
    state = state._replace(eos_ids=jnp.full_like(state.eos_ids, 9))
    weights = {
        "length_normalization": length_normalization,
        "coverage_penalty": coverage_penalty,
        "target_seq_length_ratio": 0.8,
        "implementation": implementation,
    }
    outs = as_outs(state, np.random.default_rng(8).normal(size=(T, b * n)).astype(np.float32))
    best = top_k_from_beam_search_outs(**outs, num_hyps_per_beam=n, max_seq_length=T + 2, eos_id=9, **weights)
    want = top_k_hyps(state, n, **weights)
    np.testing.assert_array_equal(best.ids[:, :T], want.ids.reshape(-1, T))
    assert best.ids.shape == (b * n, T + 2) and not best.ids[:, T:].any()
    np.testing.assert_array_equal(best.lens, want.lens.reshape(-1))
    np.testing.assert_allclose(best.scores, want.scores.reshape(-1), atol=1e-5)


@both
def test_a_longer_hyp_is_cut(implementation):
    outs = as_outs(random_state(7, 2, 3, 5, 0, 0.3), np.zeros((5, 6), np.float32))
    whole, cut = (
        top_k_from_beam_search_outs(**outs, num_hyps_per_beam=3, max_seq_length=n, implementation=implementation)
        for n in (5, 2)
    )
    assert (np.asarray(whole.lens) > 2).any()
    np.testing.assert_array_equal(cut.ids, whole.ids[:, :2])
    np.testing.assert_array_equal(cut.lens, np.minimum(whole.lens, 2))
    np.testing.assert_array_equal(cut.scores, whole.scores)


@both
@pytest.mark.parametrize(("compat", "score"), [(None, -np.inf), ("lingvo", 0.0)])
def test_bfloat16_and_where_there_is_no_hyp(implementation, compat, score):
    outs = as_outs(random_state(1, 1, 2, 3, 0, 0.0), np.zeros((3, 2), np.float32))
    outs |= {
        "done_hyps": jnp.zeros((3, 2), bool).at[2, 1].set(True),
        "eos_scores": jnp.full((3, 2), 0.25, jnp.bfloat16),
        "cumulative_scores": jnp.full((3, 2), 256.0, jnp.bfloat16),  # 256.25 is not a bfloat16
    }
    best = top_k_from_beam_search_outs(
        **outs, num_hyps_per_beam=2, max_seq_length=3, compat=compat, implementation=implementation
    )
    np.testing.assert_array_equal(best.scores, [256.25, score])
    assert best.lens.tolist() == [3, 0] and best.ids[0, 2] == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hyps_per_beam": 4}, r"hyps must be \[T, b \* num_hyps_per_beam = b \* 4\] \(got \[3, 6\]\)"),
        ({"max_seq_length": 0}, r"max_seq_length must be > 0 \(got 0\)"),
        ({"hyps": np.ones((3, 6))}, r"hyps must be integers \[3, 6\] \(got float32\[3, 6\]\)"),
        ({"prev_hyps": np.ones((3, 6))}, r"prev_hyps must be integers \[3, 6\] \(got float32\[3, 6\]\)"),
        ({"done_hyps": np.ones((3, 6))}, r"done_hyps must be bool\[3, 6\] \(got float32\[3, 6\]\)"),
        (
            {"cumulative_scores": np.ones((3, 6), int)},
            r"cumulative_scores must be floats \[3, 6\] \(got int32\[3, 6\]\)",
        ),
        ({"eos_scores": np.zeros((3, 5))}, r"eos_scores must be floats \[3, 6\] \(got float32\[3, 5\]\)"),
        ({"coverage_penalty": 0.1}, r"coverage_penalty must be 0 without cumulative_atten_probs \(got 0.1\)"),
        (
            {"coverage_penalty": 0.1, "cumulative_atten_probs": np.zeros((3, 6))},
            r"cumulative_atten_probs must be floats \[3, 6, any\] \(got float32\[3, 6\]\)",
        ),
        ({"coverage_penalty": -0.1}, r"coverage_penalty must be >= 0 \(got -0.1\)"),
    ],
)
def test_a_wrong_argument_is_named(changes, message):
    outs = as_outs(random_state(1, 2, 3, 3, 0, 0.5), np.zeros((3, 6), np.float32))
    del outs["cumulative_atten_probs"]
    with pytest.raises(ValueError, match=message):
        top_k_from_beam_search_outs(**(outs | {"num_hyps_per_beam": 3, "max_seq_length": 3} | changes))


@both
def test_lingvos_results(lingvo_vectors, implementation):
    searches = {case["id"]: (case, arrays) for case, arrays in lingvo_vectors("a_beam_search")}
    b, n, T = (max(case[size] for case, _ in searches.values()) for size in "bkT")
    kinds = {"fused", "outs_random"}
    cases = [(case, arrays) for case, arrays in lingvo_vectors("b_results") if case["kind"] in kinds]
    assert {case["kind"] for case, _ in cases} == kinds
    for case, arrays in cases:
        k, weights = case["k"], ("length_normalization", "coverage_penalty", "target_seq_length_ratio")
        arguments = {name: case[name] for name in weights}
        covered = arrays.get("cumulative_atten_probs")
        if case["kind"] == "fused":
            # Slots and steps are filled up to one size, so that it is compiled once.
            search, of_search = searches[case["search"]]
            state = state_of(search, of_search, b, n, T, search["S"])
            full = np.zeros((T, n, b, search["S"]), np.float32)
            full[: search["T"], :k, : search["b"]] = covered.reshape(search["T"], k, search["b"], -1)
            best = top_k_from_beam_search_outs(
                state.hyps,
                state.prev_hyps,
                state.done_hyps,
                np.zeros((T, b * n), np.float32),
                state.eos_global_scores,
                cumulative_atten_probs=full.reshape(T, b * n, -1),
                num_hyps_per_beam=n,
                max_seq_length=T,
                eos_id=search["attrs"]["eos_id"],
                compat="lingvo",
                implementation=implementation,
                **arguments,
            )
            ids, lens, scores = (np.asarray(x).reshape(b, n, *x.shape[1:])[: search["b"], :k] for x in best)
            ids = ids[..., : search["T"]]
        else:
            names = ("hyps", "prev_hyps", "done_hyps", "cumulative_scores", "eos_scores", "cumulative_atten_probs")
            best = top_k_from_beam_search_outs(
                **{name: arrays[name] for name in names},
                num_hyps_per_beam=k,
                max_seq_length=case["max_seq_length"],
                eos_id=case["eos_id"],
                compat="lingvo",
                implementation=implementation,
                **arguments,
            )
            ids, lens, scores = (np.asarray(x) for x in best)
        np.testing.assert_allclose(scores, arrays["out_scores"], atol=3e-5, rtol=1e-5, err_msg=case["id"])
        np.testing.assert_array_equal(lens, arrays["out_lens"], err_msg=case["id"])
        if not case.get("tied"):
            np.testing.assert_array_equal(ids, arrays["out_ids"], err_msg=case["id"])
