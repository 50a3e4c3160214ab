"""Stochastic beam search: Gumbel variables with a given maximum, and samples without replacement."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from raylingvo.ops.search.beam_search import beam_search
from raylingvo.ops.search.stochastic import StochasticState, gumbel_with_max, stochastic_scores

EMPTY = np.float32(-1e30)
stochastic = jax.jit(stochastic_scores)


def draw(log_probs, maxima, seed):
    return np.asarray(jax.jit(gumbel_with_max)(jnp.float32(log_probs), jnp.float32(maxima), jax.random.key(seed)))


def test_the_largest_is_exactly_the_given_maximum():
    random = np.random.default_rng(0)
    log_probs = random.normal(size=(1000, 7)) * 20
    maxima = random.normal(size=1000) * 20
    G = draw(log_probs, maxima, 0)
    np.testing.assert_array_equal(G.max(axis=1), maxima.astype(np.float32))
    assert np.isfinite(G).all()


def test_if_the_maximum_is_drawn_first_the_variables_are_independent_gumbels():
    """Top down or all at once: the same distribution (appendix B of the paper)."""
    n = 20000
    log_probs = np.log([0.5, 0.3, 0.15, 0.05])
    # Gumbel(log(sum of probabilities)) is that of their maximum.
    maxima = np.random.default_rng(1).gumbel(size=n)
    G = draw(np.tile(log_probs, (n, 1)), maxima, 2)
    for i, location in enumerate(log_probs):
        assert stats.kstest(G[:, i], stats.gumbel_r(location).cdf).pvalue > 1e-3
    assert np.abs(np.corrcoef(G.T) - np.eye(4)).max() < 0.03
    assert stats.chisquare(np.bincount(G.argmax(axis=1), minlength=4), np.exp(log_probs) * n).pvalue > 1e-3


@functools.partial(jax.jit, static_argnames=("b", "k", "num_steps"))
def fixed_length_search(tables, b, k, num_steps, rng):
    """Tokens [num_steps, N] of the k best hyps of each beam, hyp-major; tables [M, V], row token after token."""
    V = tables.shape[1]
    cum_N = jnp.where(jnp.arange(b * k) < b, 0.0, EMPTY)
    ids_N = jnp.zeros(b * k, jnp.int32)
    state = StochasticState.create(b * k, V)
    history = []
    for _ in range(num_steps):
        scores_NxV, state = stochastic_scores(tables[ids_N], ids_N, state, rng)
        g_bxC = (cum_N[:, None] + scores_NxV).reshape(k, b, V).transpose(1, 0, 2).reshape(b, k * V)
        best_bxk, place_bxk = jax.lax.top_k(g_bxC, k)
        cum_N = best_bxk.T.reshape(-1)
        parent_N = ((place_bxk // V) * b + jnp.arange(b)[:, None]).T.reshape(-1)
        ids_N = (place_bxk % V).T.reshape(-1).astype(jnp.int32)
        state = jax.tree.map(lambda x: x[parent_N] if x.ndim else x, state)  # noqa: B023
        history = [row[parent_N] for row in history] + [ids_N]
    return jnp.stack(history), cum_N, state


@pytest.mark.parametrize("one_key", [True, False])
def test_hyps_are_drawn_in_order_without_replacement(one_key):
    b, k, V, T = 6000, 2, 3, 2
    tables = jax.nn.log_softmax(jnp.array([[0.0, 1.0, -1.0], [1.0, 0.5, -0.5], [-1.0, 0.0, 1.5]]))
    rng = jax.random.key(3) if one_key else jax.random.split(jax.random.key(4), b)
    tokens, _, state = fixed_length_search(tables, b, k, T, rng)
    sequence_kxb = np.asarray(tokens[0] * V + tokens[1]).reshape(k, b)
    log_probs = np.asarray(tables, np.float64)
    p = np.exp([log_probs[0, i] + log_probs[i, j] for i, j in itertools.product(range(V), repeat=2)])
    p /= p.sum()
    pairs = list(itertools.permutations(range(V * V), 2))
    expected = np.array([p[i] * p[j] / (1 - p[i]) for i, j in pairs]) * b
    counts = np.array([np.sum((sequence_kxb[0] == i) & (sequence_kxb[1] == j)) for i, j in pairs])
    assert counts.sum() == b
    # Rare pairs together: the test needs some of each.
    rare = expected < 10
    counts, expected = (np.append(x[~rare], x[rare].sum()) for x in (counts, expected))
    assert stats.chisquare(counts, expected).pvalue > 1e-3
    # The state has kept the log-probability of each hyp.
    _, state = stochastic(tables[tokens[1]], tokens[1], state, rng)
    np.testing.assert_allclose(state.cumulative, np.log(p)[np.asarray(tokens[0] * V + tokens[1])], rtol=1e-5)


def test_the_scores_of_the_search_are_the_perturbed_ones_and_a_beam_repeats_in_any_batch():
    b, k, V, T = 5, 3, 4, 3
    tables = jax.nn.log_softmax(jnp.asarray(np.random.default_rng(5).normal(size=(V, V)), jnp.float32))
    keys = jax.random.split(jax.random.key(6), b)
    tokens, cum_N, state = fixed_length_search(tables, b, k, T, keys)
    ids_N = tokens[-1]
    _, state = stochastic(tables[ids_N], ids_N, state, keys)
    np.testing.assert_allclose(state.perturbed, cum_N, rtol=1e-5)
    alone, _, _ = fixed_length_search(tables, 1, k, T, keys[2:3])
    np.testing.assert_array_equal(tokens.reshape(T, k, b)[:, :, 2], alone)


def test_only_candidates_can_be_drawn():
    log_probs = jnp.log(jnp.array([[0.1, 0.5, 0.15, 0.25], [0.1, 0.5, 0.15, 0.25]]))
    scores = lambda **options: stochastic(  # noqa: E731
        log_probs, np.array([0, 0]), StochasticState.create(2, options.pop("top_k", 4)), jax.random.key(0), **options
    )[0]
    assert (scores() > EMPTY).all()
    assert (scores(top_k=2) > EMPTY).tolist() == [[False, True, False, True]] * 2
    # Before token 2 there is 0.75.
    assert (scores(top_p=0.75) > EMPTY).tolist() == [[False, True, False, True]] * 2
    assert (scores(top_p=0.76) > EMPTY).tolist() == [[False, True, True, True]] * 2
    assert (scores(top_p=np.array([1e-6, 1.0])) > EMPTY).tolist() == [[False, True, False, False], [True] * 4]
    # The best of all has the G of its parent.
    np.testing.assert_array_equal(scores().max(axis=1), [0.0, 0.0])


def test_with_beam_search():
    """All hyps of a tiny space, each once, in the order in which they were drawn."""
    b, k, V, T = 3, 4, 3, 3
    table = jax.nn.log_softmax(jnp.array([[0.0, 1.0, -1.0], [1.0, 0.5, -0.5], [-1.0, 0.0, 1.5]]))
    rng = jax.random.key(7)

    def step_fn(ids, state):
        scores, state = stochastic_scores(table[ids], ids, state, rng)
        return scores, None, state

    @jax.jit
    def search():
        return beam_search(
            step_fn,
            StochasticState.create(b * k, V),
            num_beams=b,
            num_hyps_per_beam=k,
            max_steps=T,
            eos_id=2,
            start_ids=jnp.zeros(b, jnp.int32),
            valid_eos_max_logit_delta=1e9,
            beam_size=1e9,
            local_eos_threshold=-1e9,
            implementation="xla",
        )

    result = search()
    assert (result.lens[:, 0] > 0).all()
    for i in range(b):
        hyps = [tuple(ids[:n]) for ids, n in zip(result.ids[i].tolist(), result.lens[i].tolist(), strict=True) if n]
        assert len(set(hyps)) == len(hyps)
    assert (jnp.diff(jnp.where(result.lens > 0, result.scores, -1e9)) <= 0).all()
    # G of the empty hyp is 0, and of all that continue it below.
    assert (result.scores <= 0).all()


def test_a_wrong_argument_is_named():
    log_probs, rng = jnp.zeros((4, 3)), jax.random.key(0)
    with pytest.raises(ValueError, match=r"top_k must be > 0 \(got 4 and 0\)"):
        StochasticState.create(4, 0)
    with pytest.raises(ValueError, match=r"top_k of StochasticState must be at most V = 3 \(got 8\)"):
        stochastic_scores(log_probs, [0] * 4, StochasticState.create(4), rng)
    with pytest.raises(ValueError, match=r"log_probs must be floats \[2, any\] \(got float32\[4, 3\]\)"):
        stochastic_scores(log_probs, [0] * 4, StochasticState.create(2, 3), rng)
    with pytest.raises(ValueError, match=r"ids must be integers \[4\] \(got int32\[2\]\)"):
        stochastic_scores(log_probs, [0] * 2, StochasticState.create(4, 3), rng)
    with pytest.raises(ValueError, match=r"top_p must be a number or one per beam, for 4 slots \(got \[3\]\)"):
        stochastic_scores(log_probs, [0] * 4, StochasticState.create(4, 3), rng, top_p=[1.0] * 3)
    with pytest.raises(ValueError, match=r"rng must be one key, or as many as there are beams \(got 3 for 4 slots\)"):
        stochastic_scores(log_probs, [0] * 4, StochasticState.create(4, 3), jax.random.split(rng, 3))
