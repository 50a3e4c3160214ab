"""Masks say what they say."""

import jax.numpy as jnp
import numpy as np

from raylingvo.models.layers.masks import causal_mask, combine_masks, padding_mask, segment_mask, window_mask


def test_causal_is_a_window_without_the_future():
    at = jnp.arange(5)
    np.testing.assert_array_equal(causal_mask(5)[0, 0], np.tril(np.ones((5, 5), bool)))
    np.testing.assert_array_equal(causal_mask(5), window_mask(at, at, None, 0))


def test_a_window_counts_its_own_position_on_the_left():
    at = jnp.arange(4)
    expected = [[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 1, 1]]
    np.testing.assert_array_equal(window_mask(at, at, 2, 1)[0, 0], np.array(expected, bool))


def test_padding_and_segments():
    np.testing.assert_array_equal(padding_mask(jnp.array([[0.0, 1.0]]))[0, 0], [[True, False]])
    expected = [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    np.testing.assert_array_equal(segment_mask(jnp.array([[1, 2, 0]]))[0, 0], np.array(expected, bool))
    np.testing.assert_array_equal(segment_mask(jnp.array([[1]]), jnp.array([[2, 1]]))[0, 0], [[False, True]])


def test_combined_masks_allow_what_all_allow():
    paddings = jnp.array([[0.0, 0.0, 1.0]])
    combined = combine_masks(None, causal_mask(3), padding_mask(paddings))
    np.testing.assert_array_equal(combined[0, 0], [[1, 0, 0], [1, 1, 0], [1, 1, 0]])
    assert combine_masks(None, None) is None
