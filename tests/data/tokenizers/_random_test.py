"""SplitMix64 gives its published numbers, and seeds are what they are said to be."""

import numpy as np
import pytest

from raylingvo.data.tokenizers._random import splitmix64, string_seeds, uniform


def test_the_published_numbers():
    # The first outputs for the seed 1234567, https://rosettacode.org/wiki/Pseudo-random_numbers/Splitmix64
    got = splitmix64(np.full(5, 1234567, np.uint64), np.arange(5, dtype=np.uint64))
    assert got.tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_uniform_numbers():
    u = uniform(np.full(100_000, 7, np.uint64), np.arange(100_000, dtype=np.uint64))
    assert u.min() >= 0.0 and u.max() < 1.0
    np.testing.assert_allclose(np.histogram(u, 10, (0, 1))[0], 10_000, atol=5 * 95)


def test_seeds_of_strings():
    assert string_seeds([3, -1, 2**64 + 5], 3).tolist() == [3, 2**64 - 1, 5]
    assert string_seeds(np.array([1, 2]), 2).tolist() == [1, 2]
    assert len(set(string_seeds(0, 1000).tolist())) == 1000
    assert string_seeds(np.int64(4), 2).tolist() == string_seeds(4, 5)[:2].tolist()
    with pytest.raises(ValueError, match=r"one for each of the 2 strings \(got 3\)"):
        string_seeds([1, 2, 3], 2)
