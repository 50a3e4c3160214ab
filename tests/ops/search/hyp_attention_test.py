"""Attention of a step of a search: what a softmax over each hyp's own rows gives, read where they lie."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from raylingvo.ops.search import _hyp_attention_cpp
from raylingvo.ops.search.hyp_attention import hyp_attention


def arrays(N, T, M, H=4, G=4, K=5, seed=0):
    random = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(random.standard_normal(shape), jnp.float32)  # noqa: E731
    lengths = jnp.asarray(random.integers(1, T + 1, N), jnp.int32)
    return 2 * K**-0.5 * draw(N, H, K), draw(T, M, G, K), draw(T, M, G, K), lengths


def by_definition(query, keys, values, lengths, slots=None):
    query, keys, values = (np.asarray(x, np.float64) for x in (query, keys, values))
    N, H, K = query.shape
    T, M, G, _ = keys.shape
    context, probs = np.zeros((N, H, K)), np.zeros((N, T))
    for n in range(N):
        for h in range(H):
            rows = [(t, n % M if slots is None else slots[t, n], h // (H // G)) for t in range(lengths[n])]
            weights = np.exp([query[n, h] @ keys[row] for row in rows])
            weights /= weights.sum()
            probs[n, : len(rows)] += weights / H
            context[n, h] = sum(weight * values[row] for weight, row in zip(weights, rows, strict=True))
    return context, probs


@pytest.mark.parametrize("implementation", ["xla", "cpp"])
@pytest.mark.parametrize(("G", "K"), [(4, 5), (2, 16), (1, 32), (4, 67)])
def test_of_histories_and_of_sources(implementation, G, K):
    query, keys, values, lengths = arrays(6, 9, 6, G=G, K=K)
    slots = np.random.default_rng(1).integers(0, 6, (9, 6)).astype(np.int32)
    for given in ((query, keys, values, lengths, slots), (query, keys[:, :3], values[:, :3], lengths)):
        found = jax.jit(lambda *given: hyp_attention(*given, implementation=implementation))(*given)
        for one, expected in zip(found, by_definition(*given), strict=True):
            np.testing.assert_allclose(one, expected, atol=2e-6)


@pytest.mark.parametrize("max_width", [4, 8, 16])
def test_cpp_for_each_width_of_registers(max_width):
    query, keys, values, lengths = arrays(70, 40, 70, K=64)
    slots = np.random.default_rng(1).integers(0, 70, (40, 70)).astype(np.int32)
    found = _hyp_attention_cpp.attend(query, keys, values, lengths, jnp.asarray(slots), max_width=max_width)
    for one, expected in zip(found, by_definition(query, keys, values, lengths, slots), strict=True):
        np.testing.assert_allclose(one, expected, atol=2e-6)


@pytest.mark.parametrize("implementation", ["xla", "cpp"])
def test_a_slot_has_at_least_one_row_and_at_most_all(implementation):
    query, keys, values, _ = arrays(4, 9, 4)
    given, meant = (
        hyp_attention(query, keys, values, jnp.asarray(lengths), implementation=implementation)
        for lengths in ([0, -3, 9, 99], [1, 1, 9, 9])
    )
    for one, expected in zip(given, meant, strict=True):
        np.testing.assert_array_equal(one, expected)


@pytest.mark.parametrize("implementation", ["xla", "cpp"])
def test_logits_may_be_far_apart(implementation):
    query, keys, values, lengths = arrays(2, 6, 2)
    found = hyp_attention(300 * query, keys, values, lengths, implementation=implementation)
    assert np.isfinite(found.context).all()
    np.testing.assert_allclose(found.probs.sum(axis=1), 1, atol=1e-6)


def test_what_does_not_fit_is_refused():
    query, keys, values, lengths = arrays(6, 9, 6)
    with pytest.raises(ValueError, match="do not fit"):
        hyp_attention(query, keys[:, :4], values[:, :4], lengths)
    with pytest.raises(ValueError, match=r"slots \[9, 6\]"):
        hyp_attention(query, keys, values, lengths, jnp.zeros((8, 6), jnp.int32))
    with pytest.raises(ValueError, match="is for float32"):
        hyp_attention(query.astype(jnp.bfloat16), keys, values, lengths, implementation="cpp")
