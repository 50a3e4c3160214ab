"""Which tokens may be drawn: nucleus, epsilon and top-k (Lingvo: core/target_sequence_sampler.py)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from raylingvo.ops.search._beam_search_attributes import Compat, check_compat
from raylingvo.ops.search._top_k_logits import top_k_by_blocks

# n rows, V vocabulary, M tokens that may be drawn.

_EXCLUDED = -1e10  # the logit of a token that must not be drawn
_MAX_INT = 2**31 - 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingFilters:
    """How logits become those of the distribution to draw from; see `sample_sequences`."""

    temperature: float = 1.0
    top_k: int = 0
    top_k_renormalize: bool = True
    nucleus_p: float = 1.0
    epsilon: float = 0.0
    eps_fail_safe: bool = True
    compat: Compat = None

    def __post_init__(self):
        check_compat(self.compat)
        if not self.temperature > 0:
            raise ValueError(f"temperature must be > 0 (got {self.temperature}); top_k=1 draws the best token")
        if self.top_k < 0:
            raise ValueError(f"top_k must be >= 0 (got {self.top_k}); 0: all tokens")
        is_lingvo = self.compat == "lingvo"
        if not (0 < self.nucleus_p <= 1 or (is_lingvo and self.nucleus_p == 0)):
            raise ValueError(f"nucleus_p must be in (0, 1] (got {self.nucleus_p})")
        if not 0 <= self.epsilon < 1:
            raise ValueError(f"epsilon must be in [0, 1) (got {self.epsilon})")

    def apply(self, logits_nxV: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """Logits f32[n, M] to draw from, and the tokens i32[n, M] that they are of (None: all, in order)."""
        x, tokens_nxM = logits_nxV, None
        if self.nucleus_p < 1:
            x = _nucleus(x, self.nucleus_p)
        if self.epsilon > 0:
            x = _epsilon(x, self.epsilon, self.eps_fail_safe)
        if 0 < self.top_k < x.shape[1]:
            x, tokens_nxM = top_k_by_blocks(x, self.top_k)
            if self.top_k_renormalize:
                x = jax.nn.log_softmax(x)
        return x / self.temperature, tokens_nxM


def _nucleus(x_nxV: jax.Array, p: float) -> jax.Array:
    """The tokens above which less than p has been collected: the most probable, and all that equal the last of those.

    Bisection over the 2**32 values of a float32, for the lowest above which there is less than p. Sorting the rows
    takes 20 times as long for f32[64, 32000] on a CPU.
    """
    prob_nxV = jax.nn.softmax(x_nxV)
    # As integers that are ordered like the floats; 0.0 and -0.0 are equal.
    bits_nxV = lax.bitcast_convert_type(jnp.where(x_nxV == 0.0, 0.0, x_nxV), jnp.int32)
    key_nxV = jnp.where(bits_nxV < 0, bits_nxV ^ _MAX_INT, bits_nxV)

    def halve(_, bounds):
        low_n, high_n = bounds
        middle_n = (low_n >> 1) + (high_n >> 1) + (low_n & high_n & 1)
        above_n = jnp.sum(jnp.where(key_nxV > middle_n[:, None], prob_nxV, 0.0), axis=1)
        is_enough_n = above_n < p
        return jnp.where(is_enough_n, low_n, middle_n + 1), jnp.where(is_enough_n, middle_n, high_n)

    lowest_n = jnp.full(len(x_nxV), -_MAX_INT - 1, jnp.int32)
    # With p = 0 nothing is kept: Lingvo draws from all tokens alike then.
    _, least_n = lax.fori_loop(0, 32, halve, (lowest_n, jnp.full_like(lowest_n, _MAX_INT)))
    return jnp.where(key_nxV >= least_n[:, None], x_nxV, _EXCLUDED)


def _epsilon(x_nxV: jax.Array, epsilon: float, fail_safe: bool) -> jax.Array:
    """Tokens of a probability of at least epsilon; fail_safe: and the best, though it be below."""
    prob_nxV = jax.nn.softmax(x_nxV)
    least_nx1 = jnp.full((len(x_nxV), 1), epsilon)
    if fail_safe:
        least_nx1 = jnp.minimum(least_nx1, jnp.max(prob_nxV, axis=1, keepdims=True))
    return jnp.where(prob_nxV < least_nx1, _EXCLUDED, x_nxV)
