"""Sampling: which tokens can be drawn and how often, where rows end, and their scores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from raylingvo.ops.search._categorical import _first_above, categorical
from raylingvo.ops.search._sampling_filters import SamplingFilters
from raylingvo.ops.search.sample_sequences import sample_sequences

EOS = 2
KEY = jax.random.key(0)


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def distribution(logits, *, nucleus_p=1.0, epsilon=0.0, eps_fail_safe=True, top_k=0, temperature=1.0):
    """The probabilities [V] that the documentation promises for one row of logits without equals."""
    x = logits.astype(np.float64)
    if nucleus_p < 1:
        p, order, before = softmax(x), np.argsort(-x), 0.0
        for v in order:
            if before >= nucleus_p:
                x[v] = -np.inf
            before += p[v]
    if epsilon > 0:
        p = softmax(x)
        x[p < (min(epsilon, p.max()) if eps_fail_safe else epsilon)] = -np.inf
        if np.isneginf(x).all():
            x[:] = 0
    if top_k:
        x[np.argsort(-x)[top_k:]] = -np.inf
    return softmax(x / temperature)


def filtered(logits, filters):
    """Probabilities [n, V] of what the filters leave."""
    x, tokens = filters.apply(jnp.asarray(logits))
    p = jax.nn.softmax(x)
    return np.asarray(p if tokens is None else jnp.zeros(logits.shape).at[jnp.arange(len(p))[:, None], tokens].set(p))


@settings(max_examples=30)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([1.0, 0.7, 0.05]),
    st.sampled_from([0.0, 0.1, 0.9]),
    st.booleans(),
    st.sampled_from([0, 1, 4, 100]),
    st.sampled_from([1.0, 0.5, 3.0]),
)
def test_the_filters_leave_what_they_promise(seed, nucleus_p, epsilon, eps_fail_safe, top_k, temperature):
    logits = np.random.default_rng(seed).normal(size=(3, 8)).astype(np.float32) * 2
    options = {
        "nucleus_p": nucleus_p,
        "epsilon": epsilon,
        "eps_fail_safe": eps_fail_safe,
        "top_k": top_k,
        "temperature": temperature,
    }
    # When all are excluded, which of them are the top k is a matter of ties.
    if epsilon == 0.9 and not eps_fail_safe:
        options["top_k"] = 0
    for renormalize in (True, False):
        p = filtered(logits, SamplingFilters(**options, top_k_renormalize=renormalize))
        expected = [distribution(row, **options) for row in logits]
        np.testing.assert_allclose(p, expected, rtol=1e-4, atol=1e-6)


def test_equals_of_the_last_of_a_nucleus_belong_to_it():
    logits = np.log(np.array([[0.4, 0.2, 0.2, 0.2]], np.float32))
    assert (filtered(logits, SamplingFilters(nucleus_p=0.5)) > 0).all()
    assert (filtered(logits, SamplingFilters(nucleus_p=0.4)) > 0).tolist() == [[True, False, False, False]]
    # Lingvo's degenerate case.
    lingvo = SamplingFilters(nucleus_p=0.0, compat="lingvo")
    np.testing.assert_allclose(filtered(logits, lingvo), np.full((1, 4), 0.25), rtol=1e-5)


def test_draws_from_many_tokens():
    n, V = 20000, 300
    logits = np.random.default_rng(4).normal(size=V).astype(np.float32) * 2
    logits[100:290] = -1e10
    draws = np.asarray(jax.jit(categorical)(KEY, jnp.tile(jnp.asarray(logits), (n, 1))))
    p = softmax(logits.astype(np.float64))
    counts = np.bincount(draws, minlength=V)
    assert not counts[p == 0].any()
    assert stats.chisquare(*grouped(counts, p * n)).pvalue > 1e-3
    # Each row for itself.
    draws = np.asarray(categorical(KEY, jnp.zeros((n, 4))))
    assert stats.chisquare(np.bincount(draws[::2] * 4 + draws[1::2], minlength=16)).pvalue > 1e-3


def grouped(counts, expected):
    """Rare ones together, as the test needs some of each."""
    kept = expected > 5
    counts, expected = (np.append(x[kept], x[~kept].sum() + 1e-9) for x in (counts, expected))
    return counts, expected * (counts.sum() / expected.sum())


def markov(table):
    return lambda ids, step, carry: table[ids]


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 2.0}, {"top_k": 3}, {"nucleus_p": 0.8, "epsilon": 0.05, "temperature": 0.5}]
)
def test_tokens_are_drawn_as_often_as_they_should_be(options):
    n, V, T = 8000, 6, 2
    table = np.random.default_rng(3).normal(size=(V, V)).astype(np.float32)
    table[:, EOS] = -30.0
    sample = jax.jit(lambda rng: sample_sequences(markov(jnp.asarray(table)), [1] * n, rng, max_steps=T, **options))
    ids = np.asarray(sample(KEY).ids)
    p = np.array([distribution(row, **options) for row in table])
    pairs = (p[1][:, None] * p).ravel()
    counts = np.bincount(ids[:, 0] * V + ids[:, 1], minlength=V * V)
    assert not counts[pairs < 1e-7].any()
    assert stats.chisquare(*grouped(counts, pairs * n)).pvalue > 1e-3


@settings(max_examples=20)
@given(st.integers(0, 2**31 - 1), st.lists(st.integers(0, 9), min_size=4, max_size=4))
def test_rows_end_with_eos_or_at_their_max_len_and_score_what_was_drawn(seed, max_lens):
    n, V, T = 4, 5, 8
    table = np.random.default_rng(seed).normal(size=(V, V)).astype(np.float32)
    result = sample_rows(table, jax.random.key(seed), jnp.array(max_lens, jnp.int32))
    log_probs = np.log([softmax(row) for row in table.astype(np.float64)])
    for i in range(n):
        ids = result.ids[i].tolist()
        length = min(ids.index(EOS) + 1 if EOS in ids else T, max_lens[i], T)
        assert int(result.lens[i]) == length
        assert result.paddings[i].tolist() == [0.0] * length + [1.0] * (T - length)
        assert ids[length:] == [EOS] * (T - length)
        local = [log_probs[u, v] for u, v in zip([1, *ids], ids[:length], strict=False)]
        np.testing.assert_allclose(result.token_scores[i], local + [0.0] * (T - length), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(result.scores[i], sum(local), rtol=1e-4, atol=1e-5)
        for t in range(length):
            np.testing.assert_array_equal(result.logits[i, t], table[[1, *ids][t]])


@jax.jit
def sample_rows(table, rng, max_lens):
    return sample_sequences(
        markov(table), [1] * 4, rng, max_steps=8, temperature=2.0, max_lens=max_lens, return_logits=True
    )


def scripted(*rows):
    """A decoder that draws the tokens of each row, one after the other, whatever it is fed; the carry counts steps."""
    script = jnp.array(rows)

    def logits_fn(ids, step, count):
        return 100.0 * jax.nn.one_hot(script[:, count % script.shape[1]], 5), count + 1

    return logits_fn


@pytest.mark.parametrize("compat", [None, "lingvo"])
def test_it_ends_with_the_last_row_and_lingvo_when_all_draw_eos_at_once(compat):
    fed = []

    def logits_fn(ids, step, count):
        jax.debug.callback(lambda x: fed.append(x.tolist()), ids, ordered=True)
        return scripted([3, EOS, 4, EOS, 4, EOS], [4, 3, EOS, 3, 3, EOS])(ids, step, count)

    result = sample_sequences(logits_fn, [1, 1], KEY, max_steps=9, carry=jnp.int32(0), compat=compat)
    jax.effects_barrier()
    assert result.ids.tolist() == [[3] + [EOS] * 8, [4, 3] + [EOS] * 7]
    assert result.lens.tolist() == [2, 3]
    assert result.logits is None
    if compat:
        # Rows that have ended go on.
        assert fed == [[1, 1], [3, 4], [EOS, 3], [4, EOS], [EOS, 3], [4, 3]]
    else:
        assert fed == [[1, 1], [3, 4], [EOS, 3]]


def test_epsilon_at_a_last_chunk_is_eos():
    def logits_fn(ids, step, count):
        logits, count = scripted([0, 3, 0, 4], [0, 3, 0, 4])(ids, step, count)
        return logits, count, (step >= 2) & jnp.array([True, False])

    result = sample_sequences(logits_fn, [1, 1], KEY, max_steps=4, eoc_id=0, carry=jnp.int32(0))
    assert result.ids.tolist() == [[0, 3, EOS, EOS], [0, 3, 0, 4]]
    assert result.lens.tolist() == [3, 4]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"max_steps": 0}, r"max_steps must be > 0 \(got 0\)"),
        ({"eos_id": -1}, r"eos_id must be >= 0 \(got -1\)"),
        ({"eos_id": 6}, r"eos_id and eoc_id must be < V = 6 \(got 6 and -1\)"),
        ({"eoc_id": 2}, r"eoc_id must differ from eos_id \(both are 2\)"),
        ({"temperature": 0.0}, r"temperature must be > 0 \(got 0.0\); top_k=1 draws the best token"),
        ({"top_k": -1}, r"top_k must be >= 0 \(got -1\)"),
        ({"nucleus_p": 0.0}, r"nucleus_p must be in \(0, 1\] \(got 0.0\)"),
        ({"epsilon": 1.0}, r"epsilon must be in \[0, 1\) \(got 1.0\)"),
        ({"start_ids": [[1]]}, r"start_ids must be integers \[any\] \(got int32\[1, 1\]\)"),
        ({"max_lens": [1]}, r"max_lens must be integers \[2\] \(got int32\[1\]\)"),
        ({"compat": "tf"}, r"compat must be None or 'lingvo' \(got 'tf'\)"),
        ({"implementation": "c"}, r"implementation must be .* \(got 'c'\)"),
        ({"carry": 1.0, "logits_fn": lambda ids, *_: (jnp.zeros((2, 6)), 1)}, r"logits_fn must return a carry like"),
        ({"logits_fn": lambda ids, *_: (jnp.zeros((2, 6)), None, None)}, r"logits_fn must return scores, .*tuple of 3"),
    ],
)
def test_a_wrong_argument_is_named(changed, message):
    arguments = {"logits_fn": markov(jnp.zeros((6, 6))), "start_ids": [1, 1], "rng": KEY, "max_steps": 4} | changed
    with pytest.raises(ValueError, match=message):
        sample_sequences(**arguments)


def test_there_is_no_c_plus_plus_twin():
    with pytest.raises(RuntimeError, match="sample_sequences has no C\\+\\+ twin"):
        sample_sequences(markov(jnp.zeros((6, 6))), [1], KEY, max_steps=4, implementation="cpp")


def test_sums_that_fall_by_rounding_lead_to_no_excluded_token():
    sums_1xM = jnp.array([[1.0, 2.0, 1.5, 1.5, 3.0]])
    for wanted, expected in ((1.7, 1), (2.0, 4), (3.5, 4), (0.0, 0)):
        assert _first_above(sums_1xM, jnp.array([[wanted]]))[0, 0] == expected
