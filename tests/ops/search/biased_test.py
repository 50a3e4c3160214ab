"""Biased decoding: the mixture of probabilities, who is still biased, and prefixes that are forced."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylingvo.ops.search.beam_search import beam_search
from raylingvo.ops.search.biased import BiasState, bias_log_probs, biased_scores
from raylingvo.ops.search.greedy_search import greedy_search

bias = jax.jit(bias_log_probs, static_argnames="compat")


def random_log_probs(random, N, V):
    logits = random.normal(size=(N, V)) * 3
    return (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))).astype(np.float32)


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.sampled_from([None, "lingvo"]))
def test_probabilities_are_mixed(seed, compat):
    random = np.random.default_rng(seed)
    log_probs = random_log_probs(random, 4, 5)
    log_probs[0, 1] = -100.0
    targets, weights = random.integers(0, 5, 4), np.array([0.0, 1.0, *random.uniform(size=2)], np.float32)
    biased = np.asarray(bias(log_probs, targets, weights, compat=compat))
    mixed = (1 - weights[:, None]) * np.exp(log_probs) + weights[:, None] * np.eye(5)[targets]
    np.testing.assert_allclose(np.exp(biased), np.maximum(mixed, 1e-12 if compat else 0), rtol=1e-5, atol=1e-30)
    if compat:
        np.testing.assert_allclose(biased, np.log(np.maximum(mixed, 1e-12)), rtol=1e-4, atol=1e-5)
    else:
        np.testing.assert_array_equal(biased[0], log_probs[0])
        np.testing.assert_array_equal(biased[1], np.where(np.arange(5) == targets[1], 0.0, np.float32(-1e30)))


def test_what_has_left_its_targets_is_not_biased():
    targets, weights = jnp.array([[3, 4, 1]]), jnp.full((1, 3), 0.9)
    log_probs = jnp.asarray(random_log_probs(np.random.default_rng(0), 2, 5))
    # Two hyps of one beam: the second takes another first token, then the targets' second.
    for only_if_consistent in (True, False):
        state = BiasState.create(2)
        biased = []
        for ids in ([0, 0], [3, 2], [4, 4], [1, 1], [0, 0]):
            scores, state = biased_scores(
                log_probs, ids, state, targets, weights, only_if_consistent=only_if_consistent
            )
            biased.append((scores != log_probs).any(axis=1).tolist())
        other = not only_if_consistent
        assert biased == [[True, True], [True, other], [True, other], [False, False], [False, False]]
        assert state.consistent.tolist() == [True, False]


@pytest.mark.parametrize("lens", [[2, 0, 3]])
def test_forced_prefixes_are_those_of_all_hyps(lens):
    b, k, V, T, L = 3, 3, 7, 6, 3
    random = np.random.default_rng(1)
    table = jnp.asarray(random_log_probs(random, V, V))
    targets = random.integers(3, V, (b, L))
    weights = jnp.asarray(np.arange(L) < np.array(lens)[:, None], jnp.float32)

    def step_fn(ids, state):
        scores, state = biased_scores(table[ids], ids, state, targets, weights)
        return scores, None, state

    @jax.jit
    def search(start_ids):
        return beam_search(
            step_fn,
            BiasState.create(b * k),
            num_beams=b,
            num_hyps_per_beam=k,
            max_steps=T,
            eos_id=2,
            start_ids=start_ids,
            valid_eos_max_logit_delta=100.0,
            implementation="xla",
        )

    result = search(jnp.ones(b, jnp.int32))
    for i in range(b):
        assert (result.lens[i] > 0).all()
        for j in range(k):
            assert result.ids[i, j, : lens[i]].tolist() == targets[i, : lens[i]].tolist()
        # Behind the prefix hyps differ.
        assert len({tuple(ids) for ids in result.ids[i].tolist()}) == k
    # Forced tokens cost nothing.
    assert not result.token_scores[0, :, : lens[0]].any()


def test_greedy_search_continues_a_forced_prefix_as_if_it_had_found_it():
    random = np.random.default_rng(2)
    V, L, n = 8, 4, 5
    table = jnp.asarray(random_log_probs(random, V, V)).at[:, 2].set(-50.0)
    targets, lens = random.integers(3, V, (n, L)), np.array([0, 1, 2, 3, 4])

    def log_prob_fn(ids, step, state):
        return biased_scores(table[ids], ids, state, targets, (np.arange(L) < lens[:, None]).astype(np.float32))

    result = greedy_search(log_prob_fn, [1] * n, eos_id=2, max_steps=8, carry=BiasState.create(n))
    for i in range(n):
        ids = [1, *targets[i, : lens[i]].tolist()]
        while len(ids) < 9:
            ids.append(int(table[ids[-1]].argmax()))
        assert result.ids[i].tolist() == ids[1:]


def test_a_wrong_argument_is_named():
    log_probs, state = jnp.zeros((4, 5)), BiasState.create(4)
    with pytest.raises(ValueError, match=r"targets must have one row per beam, for 4 slots \(got 3 rows\)"):
        biased_scores(log_probs, [0] * 4, state, jnp.zeros((3, 2), int), jnp.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"weights must be floats \[2, 2\] \(got float32\[2, 3\]\)"):
        biased_scores(log_probs, [0] * 4, state, jnp.zeros((2, 2), int), jnp.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"ids must be integers \[4\]"):
        biased_scores(log_probs, [0] * 3, state, jnp.zeros((2, 2), int), jnp.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"log_probs must be floats \[4, any\] \(got float32\[5\]\)"):
        biased_scores(log_probs[0], [0] * 4, state, jnp.zeros((2, 2), int), jnp.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"compat must be None or 'lingvo' \(got 'tf'\)"):
        bias_log_probs(log_probs, [0] * 4, jnp.zeros(4), compat="tf")
