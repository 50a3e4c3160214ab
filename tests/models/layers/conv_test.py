"""conv_relu_pool against XLA's own convolution and pooling, forward and backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from raylingvo.models.layers import conv


def _plain(images, kernel):
    y = lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return nnx.max_pool(jax.nn.relu(y), (2, 2), (2, 2))


def _random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def _on_accelerators(images, kernel):
    """What other platforms run."""
    return conv._relu_max(conv._windows_by_convolution(images, kernel))


@pytest.mark.parametrize(
    "B, H, W, C, D, K",
    [
        (4, 28, 28, 1, 20, 5),
        (3, 14, 14, 20, 50, 5),
        (1, 7, 9, 3, 4, 3),
        (2, 9, 6, 2, 5, 5),
        (5, 5, 8, 3, 2, 1),
        (2, 3, 2, 1, 1, 7),  # smaller than the kernel
    ],
)
def test_value_and_gradients_equal_xla(B, H, W, C, D, K):
    images, kernel = _random(B, H, W, C), _random(K, K, C, D, seed=2)
    cotangent = _random(B, H // 2, W // 2, D, seed=1)

    @jax.jit
    def values_and_gradients(images, kernel):
        results = []
        for function in (_plain, conv.conv_relu_pool, _on_accelerators):
            y, vjp = jax.vjp(function, images, kernel)
            results.append((y, *vjp(cotangent)))
        return results

    expected, *both = values_and_gradients(images, kernel)
    for results in both:
        for ours, plain in zip(results, expected, strict=True):
            np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-4 * float(jnp.abs(plain).max()))


def test_the_same_program_is_lowered_for_accelerators_with_their_convolution():
    images, kernel = jnp.zeros((2, 8, 8, 1)), jnp.zeros((5, 5, 1, 3))
    traced = jax.jit(conv.conv_relu_pool).trace(images, kernel)
    assert "stablehlo.convolution" in traced.lower(lowering_platforms=("tpu",)).as_text()
    assert "stablehlo.convolution" in traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "stablehlo.convolution" not in traced.lower(lowering_platforms=("cpu",)).as_text()


def test_tied_maxima_share_the_gradient_equally():
    """1x1 kernel of 1: the output is the pooled image, so the image's gradient is that of the pooling."""
    images = jnp.array([[3.0, 3.0, 1.0, 2.0], [0.0, 3.0, 2.0, 2.0]]).reshape(1, 2, 4, 1)
    grad = jax.grad(lambda x: conv.conv_relu_pool(x, jnp.ones((1, 1, 1, 1))).sum())(images)
    np.testing.assert_allclose(grad.reshape(2, 4), np.array([[1, 1, 0, 1], [0, 1, 1, 1]]) / 3, rtol=1e-6)


def test_ties_of_equal_patches_do_not_change_the_kernel_gradient():
    """On a flat image all outputs of a window away from the border are equal, and so are their patches."""
    images = jnp.ones((1, 12, 12, 1))
    kernel = jnp.abs(_random(3, 3, 1, 2))

    @jax.jit
    def gradients(kernel):
        return [
            jax.grad(lambda k, f=f: f(images, k)[:, 1:-1, 1:-1].sum())(kernel) for f in (conv.conv_relu_pool, _plain)
        ]

    np.testing.assert_allclose(*gradients(kernel), rtol=1e-5)


def test_a_negative_or_zero_window_has_no_gradient():
    images = jnp.array([-1.0, 0.0, -2.0, 0.0]).reshape(1, 2, 2, 1)
    value, grad = jax.value_and_grad(lambda x: conv.conv_relu_pool(x, jnp.ones((1, 1, 1, 1))).sum())(images)
    assert value == 0.0
    np.testing.assert_array_equal(grad, jnp.zeros_like(images))


def test_nan_is_not_hidden():
    images = jnp.zeros((1, 4, 4, 1)).at[0, 0, 0, 0].set(jnp.nan)
    assert jnp.isnan(conv.conv_relu_pool(images, jnp.ones((1, 1, 1, 1)))[0, 0, 0, 0])


@pytest.mark.parametrize("shape, message", [((2, 2, 1, 1), "2x2"), ((3, 5, 1, 1), "3x5"), ((3, 3, 2, 1), "2 channels")])
def test_a_kernel_that_does_not_fit_is_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        conv.conv_relu_pool(jnp.zeros((1, 4, 4, 1)), jnp.zeros(shape))


def test_the_layer_is_xavier_uniform():
    kernel = conv.ConvReluPool(20, 50, 5, rngs=nnx.Rngs(0)).kernel[...]
    limit = np.sqrt(6 / (25 * 20 + 25 * 50))
    assert kernel.shape == (5, 5, 20, 50)
    assert 0.99 * limit < jnp.abs(kernel).max() <= limit
    np.testing.assert_allclose(kernel.std(), limit / np.sqrt(3), rtol=0.02)
