"""Merging the hyps of several searches: the best of all, and what Lingvo merges."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylingvo.ops.search.nbest import merge_beam_search_outputs


def random_out(random, b, k, T):
    lens = random.integers(0, T + 1, (b, k)).astype(np.int32)
    ids = np.where(np.arange(T) < lens[..., None], random.integers(1, 9, (b, k, T)), 0).astype(np.int32)
    # Few values: ties. Lingvo's empty hyps have the best score of all.
    scores = np.where(lens > 0, -random.integers(1, 6, (b, k)), 0).astype(np.float32)
    return ids, lens, scores


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.sampled_from([None, "lingvo"]))
def test_the_best_hyps_of_all_searches_stay(seed, compat):
    random = np.random.default_rng(seed)
    outs = [random_out(random, 2, 3, 4), random_out(random, 2, 2, 6)]
    merged = merge_beam_search_outputs(4, *outs, compat=compat)
    assert merged.ids.shape == (2, 4, 6)
    for i in range(2):
        every = [
            (-scores[i, j], [*ids[i, j, : lens[i, j]]])
            for ids, lens, scores in outs
            for j in range(lens.shape[1])
            if lens[i, j]
        ]
        # sorted is stable: of equal scores the earlier hyp of the earlier search.
        expected = sorted(every, key=lambda hyp: hyp[0])[:4]
        got = [merged.ids[i, j, : merged.lens[i, j]].tolist() for j in range(4)]
        assert got == [ids for _, ids in expected] + [[]] * (4 - len(expected))
        empty = -1e6 if compat else -np.inf
        scores = [-score for score, _ in expected] + [empty] * (4 - len(expected))
        np.testing.assert_array_equal(merged.scores[i], np.array(scores, np.float32))


def test_a_score_that_is_no_number_is_last():
    ids = jnp.arange(1, 6, dtype=jnp.int32).reshape(1, 5, 1)
    scores = jnp.array([[np.nan, -2.0, -0.0, 0.0, 9.0]])
    merged = merge_beam_search_outputs(5, (ids, jnp.array([[1, 1, 1, 1, 0]]), scores))
    assert merged.ids[0, :, 0].tolist() == [3, 4, 2, 1, 5]
    np.testing.assert_array_equal(merged.scores, [[0.0, 0.0, -2.0, np.nan, -np.inf]])


def test_what_lingvo_merges(lingvo_vectors):
    cases = [(case, arrays) for case, arrays in lingvo_vectors("c_search") if case["kind"] == "merge_outputs"]
    assert cases
    for case, arrays in cases:
        outs = [[arrays[f"in_{name}{i}"] for name in ("ids", "lens", "scores")] for i in range(len(case["num_hyps"]))]
        merged = merge_beam_search_outputs(case["max_hyps_per_beam"], *outs, compat="lingvo")
        for name in ("ids", "lens", "scores"):
            got, expected = getattr(merged, name), arrays[f"out_{name}"]
            np.testing.assert_array_equal(jnp.reshape(got, expected.shape), expected, err_msg=f"{case['id']} {name}")


@pytest.mark.parametrize(
    ("max_hyps", "outs", "message"),
    [
        (1, [], r"outs must be one result or more \(got none\)"),
        (0, [(2, 3, 4)], r"max_hyps must be from 1 to 3.* \(got 0\)"),
        (6, [(2, 3, 4), (2, 2, 4)], r"max_hyps must be from 1 to 5.* \(got 6\)"),
        (1, [(2, 3, 4), (3, 3, 4)], r"outs\[1\] must have 2 beams like outs\[0\] \(got 3\)"),
    ],
)
def test_a_wrong_argument_is_named(max_hyps, outs, message):
    random = np.random.default_rng(0)
    with pytest.raises(ValueError, match=message):
        merge_beam_search_outputs(max_hyps, *(random_out(random, *shape) for shape in outs))


def test_a_wrong_shape_is_named():
    ids, lens, scores = random_out(np.random.default_rng(0), 2, 3, 4)
    with pytest.raises(ValueError, match=r"outs\[0\].ids must be integers \[any, any, any\] \(got int32\[2, 3\]\)"):
        merge_beam_search_outputs(1, (lens, ids, scores))
    with pytest.raises(ValueError, match=r"outs\[0\].scores must be floats \[2, 3\] \(got int32\[2, 3\]\)"):
        merge_beam_search_outputs(1, (ids, lens, lens))
    with pytest.raises(RuntimeError, match="no C\\+\\+ twin"):
        merge_beam_search_outputs(1, (ids, lens, scores), implementation="cpp")
