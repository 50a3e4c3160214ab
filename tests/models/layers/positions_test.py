"""Position embeddings: Lingvo's values, and what rotation is for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from filled import filled, normal
from flax import nnx

from raylingvo.models.layers.positions import (
    LearnedPositions,
    Rotary,
    SinusoidalPositions,
    harmonics,
    rotate,
    sinusoid,
)


def cases(lingvo_vectors, layer):
    return [c for c in lingvo_vectors("i_layers") if c[0]["layer"] == layer]


def test_lingvo_positional_embedding(lingvo_vectors):
    found = cases(lingvo_vectors, "PositionalEmbeddingLayer")
    assert found
    for case, arrays in found:
        params = case["params"]
        model = SinusoidalPositions(
            params["embedding_dim"],
            rngs=nnx.Rngs(0),
            min_timescale=params.get("min_timescale", 1),
            max_timescale=params.get("max_timescale", 10000),
            scale=params.get("trainable_scaling_init", 1.0) if params.get("trainable_scaling") else None,
            frequency_scaling=params.get("frequency_scaling", False),
        )
        theirs = {"scale": "w_scale", "frequency_scale": "w_freq_scale"}
        nnx.update(model, {ours: jnp.asarray(arrays[w]) for ours, w in theirs.items() if w in arrays})
        np.testing.assert_allclose(model(jnp.arange(12)), arrays["out_seq"], atol=2e-5, err_msg=case["id"])
        np.testing.assert_allclose(model(arrays["in_position"]), arrays["out_at"], atol=2e-5, err_msg=case["id"])


def test_lingvo_rotary(lingvo_vectors):
    found = cases(lingvo_vectors, "RotaryPositionalEmbeddingLayer")
    assert found
    for case, arrays in found:
        rotary = Rotary(**{k: v for k, v in case["params"].items() if k.endswith("timescale")})
        x = jnp.asarray(arrays["in_x"])
        positions = jnp.asarray(arrays.get("in_position", np.arange(x.shape[1])[None]))
        y, pull = jax.vjp(lambda x, at=positions, rotary=rotary: rotate(x, at, rotary), x)
        np.testing.assert_allclose(y, arrays["out_y"], atol=2e-5, err_msg=case["id"])
        np.testing.assert_allclose(
            pull(jnp.asarray(arrays["fix_y"]))[0], arrays["gin_x"], atol=3e-5, err_msg=case["id"]
        )


def test_sinusoid_against_the_formula():
    at = np.array([[0, 3], [7, 100]])
    frequencies = 100.0 ** -(np.arange(4) / 3)
    expected = np.concatenate([np.sin(at[..., None] * frequencies), np.cos(at[..., None] * frequencies)], -1)
    np.testing.assert_allclose(sinusoid(jnp.asarray(at), 8, max_timescale=100), expected, atol=1e-5)
    scaled = filled(lambda: SinusoidalPositions(8, rngs=nnx.Rngs(0), max_timescale=100, frequency_scaling=True))
    factor = 1 + scaled.frequency_scale[...][0]
    np.testing.assert_allclose(scaled(jnp.asarray(at)), sinusoid(at * factor, 8, max_timescale=100), atol=1e-4)


@pytest.mark.parametrize("length, dim", [(8, 6), (7, 4), (100, 32), (1, 2)])
def test_harmonics_are_the_waves_of_a_fourier_transform(length, dim):
    """Column k is sin(2 pi k t / length) or cos: the inverse transform of a single frequency, NumPy's."""
    spectrum = np.eye(length)[np.arange(1, dim // 2 + 1) % length] * length
    waves = np.fft.ifft(spectrum, axis=1).T
    np.testing.assert_allclose(harmonics(length, dim), np.concatenate([waves.imag, waves.real], 1), atol=2e-5)


def test_lingvo_sinusoidal(lingvo_vectors):
    if not (found := cases(lingvo_vectors, "SinusoidalPositionalEmbeddingLayer")):
        pytest.skip("none of these vectors is of SinusoidalPositionalEmbeddingLayer")
    for case, arrays in found:
        (out,) = (v for k, v in arrays.items() if k.startswith("out_"))
        np.testing.assert_allclose(harmonics(*out.shape), out, atol=2e-5, err_msg=case["id"])


def test_rotation_keeps_lengths_and_makes_products_relative():
    q, k = normal(1, 1, 2, 6), normal(1, 1, 2, 6, seed=1)

    def product(at, to):
        rotated = rotate(q, jnp.array([[at]]), Rotary()), rotate(k, jnp.array([[to]]), Rotary())
        return (rotated[0] * rotated[1]).sum(-1)

    np.testing.assert_allclose(product(3, 10), product(43, 50), atol=1e-4)
    np.testing.assert_allclose(product(0, 0), product(9, 9), atol=1e-4)
    assert np.abs(product(3, 10) - product(3, 11)).max() > 1e-3


def test_learned_positions_are_rows():
    model = LearnedPositions(5, 4, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(model(jnp.array([[1, 4]]))[0], model.table[...][np.array([1, 4])])


def test_bad_arguments():
    with pytest.raises(ValueError, match="dim must be even"):
        sinusoid(jnp.arange(3), 5)
    with pytest.raises(ValueError, match="dim must be even"):
        harmonics(3, 5)
    with pytest.raises(ValueError, match="min_timescale must be > 0"):
        Rotary(min_timescale=10, max_timescale=1)
    with pytest.raises(ValueError, match="must be even to be rotated"):
        rotate(normal(1, 1, 1, 3), jnp.zeros((1, 1)), Rotary())
    with pytest.raises(ValueError, match="max_length and dim must be > 0"):
        LearnedPositions(0, 4, rngs=nnx.Rngs(0))
