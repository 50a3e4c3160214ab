"""Random numbers for sampling: a pure function of a seed and an index, the same on every machine and version."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_MASK = 2**64 - 1


def splitmix64(seed: np.ndarray, index: np.ndarray) -> np.ndarray:
    """u64[..]: output number `index` of the SplitMix64 generators with these seeds; both u64[..].

    Steele, Lea and Flood: Fast splittable pseudorandom number generators, OOPSLA 2014. NumPy's own generators promise
    their bits only (NEP 19), and cost 20 us to make, which is too much for each string.
    """
    z = seed + (index + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def uniform(seed: np.ndarray, index: np.ndarray) -> np.ndarray:
    """f64[..] in [0, 1), of the same."""
    return (splitmix64(seed, index) >> np.uint64(11)) * 2.0**-53


def string_seeds(seed: int | Sequence[int] | np.ndarray, n: int) -> np.ndarray:
    """u64[n], a seed for each of n strings: those given, or made of one seed and the string's position.

    Raises ValueError if there are not n of them.
    """
    if isinstance(seed, int | np.integer):
        return splitmix64(np.full(n, int(seed) & _MASK, np.uint64), np.arange(n, dtype=np.uint64))
    if len(seed) != n:
        raise ValueError(f"seed must be one number, or one for each of the {n} strings (got {len(seed)})")
    return np.array([int(s) & _MASK for s in seed], np.uint64)
