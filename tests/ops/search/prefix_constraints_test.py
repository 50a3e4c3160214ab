"""Prefix constraints: the tokens that one of the sequences allows, and no others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylingvo.ops.search.beam_search import beam_search
from raylingvo.ops.search.prefix_constraints import PrefixState, PrefixTrie, constrained_scores

V = 5
sequences = st.lists(st.integers(0, V - 1), max_size=4)
sets = st.lists(st.lists(sequences, min_size=1, max_size=6), min_size=1, max_size=2)


def allowed(sequences, ids):
    """bool[V], by the definition."""
    if any(list(ids[: len(sequence)]) == sequence for sequence in sequences):
        return [True] * V
    following = {sequence[len(ids)] for sequence in sequences if list(ids) == sequence[: len(ids)]}
    return [token in following for token in range(V)]


constrained = jax.jit(constrained_scores)


@settings(max_examples=40)
@given(sets, st.integers(0, 2**32 - 1))
def test_a_token_is_allowed_if_a_sequence_goes_on_with_it_or_has_ended(sets, seed):
    random = np.random.default_rng(seed)
    N = 6
    trie = PrefixTrie.create(*sets)
    state = PrefixState.create(trie, N)
    hyps = [[] for _ in range(N)]
    ids = [0] * N
    log_probs = jnp.zeros((N, V))
    for _ in range(6):
        scores, state = constrained(log_probs, np.array(ids), state, trie)
        assert set(np.unique(scores)) <= {np.float32(-1e30), np.float32(0)}
        for i, hyp in enumerate(hyps):
            expected = allowed(sets[i % len(sets)], hyp)
            assert (scores[i] == 0).tolist() == expected
            # Most go where they may, some do not.
            may = np.flatnonzero(expected)
            token = random.choice(may) if len(may) and random.random() < 0.9 else random.integers(V)
            hyp.append(int(token))
        ids = [hyp[-1] for hyp in hyps]


def test_a_search_finds_the_best_of_a_list():
    """With EOS behind each sequence there is nothing else: all of them, ranked as they would be without the search."""
    EOS, SOS, b, k = 2, 1, 2, 3
    table = jax.nn.log_softmax(jnp.asarray(np.random.default_rng(0).normal(size=(V, V)), jnp.float32))
    sets = [[[3, EOS], [3, 4, EOS], [4, 0, 3, EOS]], [[0, EOS], [EOS], [4, 4, 4, EOS]]]
    trie = PrefixTrie.create(*sets)

    def step_fn(ids, state):
        scores, state = constrained_scores(table[ids], ids, state, trie)
        return scores, None, state

    @jax.jit
    def search():
        return beam_search(
            step_fn,
            PrefixState.create(trie, b * k),
            num_beams=b,
            num_hyps_per_beam=k,
            max_steps=5,
            eos_id=EOS,
            start_ids=jnp.full(b, SOS),
            valid_eos_max_logit_delta=100.0,
            beam_size=100.0,
            implementation="xla",
        )

    result = search()
    for i in range(b):
        score = lambda ids: sum(float(table[u, v]) for u, v in zip([SOS, *ids], ids, strict=False))  # noqa: E731
        expected = sorted(sets[i], key=score, reverse=True)
        assert [result.ids[i, j, : result.lens[i, j]].tolist() for j in range(k)] == expected
        np.testing.assert_allclose(result.scores[i], [score(ids) for ids in expected], rtol=1e-5)


def test_a_token_outside_the_vocabulary_cannot_be_chosen():
    trie = PrefixTrie.create([[1], [V + 3]])
    scores, _ = constrained_scores(jnp.zeros((1, V)), [0], PrefixState.create(trie, 1), trie)
    assert (scores == 0).tolist() == [[False, True, False, False, False]]


def test_a_wrong_argument_is_named():
    with pytest.raises(ValueError, match=r"sets must be one set of sequences, or one for each beam \(got none\)"):
        PrefixTrie.create()
    with pytest.raises(ValueError, match=r"sets\[1\] must hold at least one sequence"):
        PrefixTrie.create([[1]], [])
    with pytest.raises(ValueError, match=r"sets\[0\] must hold tokens >= 0 \(got -3\)"):
        PrefixTrie.create([[1, -3]])
    trie = PrefixTrie.create([[1]], [[2]])
    with pytest.raises(ValueError, match=r"num_slots must be a multiple of the 2 sets of the trie \(got 3\)"):
        PrefixState.create(trie, 3)
    with pytest.raises(ValueError, match=r"log_probs must be floats \[4, any\] \(got float32\[2, 5\]\)"):
        constrained_scores(jnp.zeros((2, V)), [0, 0], PrefixState.create(trie, 4), trie)
