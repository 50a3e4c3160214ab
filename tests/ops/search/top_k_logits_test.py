"""The short list of a row of logits: what a log-softmax of the whole row says of EOS and of the best tokens."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from raylingvo.ops.search._top_k_logits import _short_list_cpp, short_list

EOS = 2


def rows(V):
    """Logits f32[7, V]: of normal size, far apart, equal, rounded so that many are equal, with NaNs and -infs."""
    random = np.random.default_rng(0)
    logits = random.standard_normal((7, V)).astype(np.float32)
    logits[1] *= 30
    logits[2] = 1.5
    logits[3] = np.round(logits[3])
    logits[4, ::3] = np.nan
    logits[5, 4:] = -np.inf
    logits[6] -= 100
    return logits


def by_definition(logits, num_tokens):
    """For each row {token: log-probability} of the best tokens, of equal ones the lower, and that of EOS."""
    found = []
    for row in logits.astype(np.float64):
        known = np.where(np.isnan(row), -np.inf, row)
        log_sum = known.max() + np.log(np.exp(known - known.max()).sum())
        best = np.argsort(-known, kind="stable")[:num_tokens]
        found.append(({int(i): row[i] - log_sum for i in best if np.isfinite(known[i])}, row[EOS] - log_sum))
    return found


def listed(found):
    pairs = []
    for log_probs, tokens in zip(np.asarray(found.log_probs), np.asarray(found.tokens), strict=True):
        assert tokens[0] == EOS
        known = {int(i): x for i, x in zip(tokens[1:], log_probs[1:], strict=True) if np.isfinite(x)}
        assert list(known) == sorted(known)
        pairs.append((known, log_probs[0]))
    return pairs


def check(found, logits, num_tokens):
    for (known, eos), (expected, expected_eos) in zip(listed(found), by_definition(logits, num_tokens), strict=True):
        np.testing.assert_allclose(eos, expected_eos, rtol=1e-6, atol=1e-5)
        expected.pop(EOS, None)
        assert known.keys() == expected.keys()
        np.testing.assert_allclose(list(known.values()), [expected[i] for i in known], rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("implementation", ["xla", "cpp"])
@pytest.mark.parametrize("V", [11, 300, 5003])
def test_short_list(implementation, V):
    found = jax.jit(functools.partial(short_list, eos_id=EOS, num_tokens=6, implementation=implementation))(rows(V))
    check(found, rows(V), 6)


@pytest.mark.parametrize("max_width", [4, 8])
def test_cpp_for_other_widths_of_registers(max_width):
    check(_short_list_cpp(jnp.asarray(rows(5003)), eos_id=EOS, num_tokens=6, max_width=max_width), rows(5003), 6)
