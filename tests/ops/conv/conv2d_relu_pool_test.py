"""conv2d_relu_pool against XLA's own convolution and pooling, forward and backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from raylingvo.ops import _native
from raylingvo.ops.conv import _conv2d_cpp, _conv2d_relu_pool_xla
from raylingvo.ops.conv.conv2d import conv2d
from raylingvo.ops.conv.conv2d_relu_pool import conv2d_relu_pool

needs_cpp = pytest.mark.skipif(bool(_native.why_unavailable()), reason=f"no C++ ops: {_native.why_unavailable()}")
implementations = pytest.mark.parametrize("implementation", ["xla", pytest.param("cpp", marks=needs_cpp)])
# N, H, W, C, Kh, Kw, F, padding
SHAPES = [
    (4, 28, 28, 1, 5, 5, 20, "SAME"),
    (3, 14, 14, 20, 5, 5, 50, "SAME"),
    (1, 7, 9, 3, 3, 3, 4, "SAME"),
    (2, 9, 6, 2, 5, 5, 5, "SAME"),
    (5, 5, 8, 3, 1, 1, 2, "SAME"),
    (2, 3, 2, 1, 7, 7, 1, "SAME"),  # smaller than the kernel
    (2, 13, 8, 5, 4, 3, 33, ((0, 2), (3, 1))),
    (1, 9, 11, 3, 2, 3, 70, "VALID"),
    (1, 60, 30, 16, 3, 3, 40, "SAME"),  # several strips an image
]


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def plain(x, kernel, padding="SAME"):
    y = conv2d(x, kernel, padding=padding, implementation="xla")
    return nnx.max_pool(jax.nn.relu(y), (2, 2), (2, 2))


def value_and_gradients(function, *args):
    y, vjp = jax.vjp(function, *args)
    return y, *vjp(random(*y.shape, seed=1))


def assert_close(ours, expected, tolerance=1e-5):
    for a, b in zip(ours, expected, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * float(jnp.abs(b).max()))


@implementations
@pytest.mark.parametrize("N, H, W, C, Kh, Kw, F, padding", SHAPES)
def test_value_and_gradients_equal_xla(N, H, W, C, Kh, Kw, F, padding, implementation):
    x, kernel = random(N, H, W, C), random(Kh, Kw, C, F, seed=2)

    def ours(x, kernel):
        return conv2d_relu_pool(x, kernel, padding=padding, implementation=implementation)

    both = jax.jit(
        lambda x, k: (value_and_gradients(ours, x, k), value_and_gradients(lambda x, k: plain(x, k, padding), x, k))
    )
    assert_close(*both(x, kernel))


@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[3], SHAPES[6]])
def test_the_accelerators_version_equals_the_matrix_product(monkeypatch, shape):
    monkeypatch.setattr(_conv2d_relu_pool_xla, "_by_matmul", _conv2d_relu_pool_xla._by_convolution)
    jax.clear_caches()
    test_value_and_gradients_equal_xla(*shape, "xla")
    jax.clear_caches()


@needs_cpp
@pytest.mark.parametrize("width", [4, 8])
@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[6]])
def test_every_instruction_set_computes_the_same(monkeypatch, width, shape):
    monkeypatch.setattr(_conv2d_cpp, "MAX_WIDTH", width)
    jax.clear_caches()
    test_value_and_gradients_equal_xla(*shape, "cpp")
    jax.clear_caches()


@needs_cpp
def test_threads_change_nothing():
    x, kernel = random(64, 12, 10, 7), random(3, 3, 7, 19, seed=1)
    compute = jax.jit(lambda x, k: value_and_gradients(lambda x, k: conv2d_relu_pool(x, k, implementation="cpp"), x, k))
    first = compute(x, kernel)
    for _ in range(20):
        for a, b in zip(compute(x, kernel), first, strict=True):
            np.testing.assert_array_equal(a, b)


@needs_cpp
def test_ties_of_flat_images_are_the_same_in_both():
    """Small integers: sums are exact, and many outputs are equal."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(0, 2, (3, 10, 10, 2)), jnp.float32)
    kernel = jnp.asarray(rng.integers(-1, 2, (3, 3, 2, 6)), jnp.float32)
    results = [
        value_and_gradients(lambda x, k, i=i: conv2d_relu_pool(x, k, implementation=i), x, kernel)
        for i in ("xla", "cpp")
    ]
    np.testing.assert_array_equal(results[0][0], results[1][0])
    assert_close(*results)


@needs_cpp
def test_vmap_is_one_call_for_each_element():
    x, kernel = random(3, 2, 7, 6, 2), random(3, 3, 2, 2, 5, seed=1)

    def gradients(x, kernel):
        return value_and_gradients(lambda x, k: conv2d_relu_pool(x, k, implementation="cpp"), x, kernel)

    together = jax.vmap(gradients)(x, kernel)
    for i in range(3):
        assert_close([part[i] for part in together], gradients(x[i], kernel[i]), 1e-6)


def test_the_same_program_is_lowered_for_accelerators_with_their_convolution():
    x, kernel = jnp.zeros((2, 8, 8, 1)), jnp.zeros((5, 5, 1, 3))
    traced = jax.jit(conv2d_relu_pool).trace(x, kernel)
    assert "stablehlo.convolution" in traced.lower(lowering_platforms=("tpu",)).as_text()
    assert "stablehlo.convolution" in traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "stablehlo.convolution" not in traced.lower(lowering_platforms=("cpu",)).as_text()


@implementations
def test_tied_maxima_share_the_gradient_equally(implementation):
    """1x1 kernel of 1: the output is the pooled image, so the image's gradient is that of the pooling."""
    x = jnp.array([[3.0, 3.0, 1.0, 2.0], [0.0, 3.0, 2.0, 2.0]]).reshape(1, 2, 4, 1)
    kernel = jnp.ones((1, 1, 1, 1))
    grad = jax.grad(lambda x: conv2d_relu_pool(x, kernel, implementation=implementation).sum())(x)
    np.testing.assert_allclose(grad.reshape(2, 4), np.array([[1, 1, 0, 1], [0, 1, 1, 1]]) / 3, rtol=1e-6)


@implementations
def test_ties_of_equal_patches_do_not_change_the_kernel_gradient(implementation):
    """On a flat image all outputs of a window away from the border are equal, and so are their patches."""
    x = jnp.ones((1, 12, 12, 1))
    kernel = jnp.abs(random(3, 3, 1, 2))
    functions = (lambda x, k: conv2d_relu_pool(x, k, implementation=implementation), plain)

    @jax.jit
    def gradients(kernel):
        return [jax.grad(lambda k, f=f: f(x, k)[:, 1:-1, 1:-1].sum())(kernel) for f in functions]

    np.testing.assert_allclose(*gradients(kernel), rtol=1e-5)


@implementations
def test_a_negative_or_zero_window_has_no_gradient(implementation):
    x = jnp.array([-1.0, 0.0, -2.0, 0.0]).reshape(1, 2, 2, 1)
    kernel = jnp.ones((1, 1, 1, 1))
    value, grad = jax.value_and_grad(lambda x: conv2d_relu_pool(x, kernel, implementation=implementation).sum())(x)
    assert value == 0.0
    np.testing.assert_array_equal(grad, jnp.zeros_like(x))


@implementations
@pytest.mark.parametrize("at", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_nan_is_not_hidden(implementation, at):
    x = jnp.zeros((1, 4, 4, 1)).at[0, *at, 0].set(jnp.nan)
    y, vjp = jax.vjp(lambda k: conv2d_relu_pool(x, k, implementation=implementation), jnp.ones((1, 1, 1, 1)))
    assert jnp.isnan(y[0, 0, 0, 0]) and (y == 0).sum() == 3
    assert jnp.isnan(vjp(jnp.ones_like(y))[0]).all()


@implementations
def test_no_images_and_no_windows(implementation):
    kernel = jnp.ones((3, 3, 2, 4))
    for shape in ((0, 5, 5, 2), (2, 1, 5, 2)):
        results = value_and_gradients(
            lambda x, k: conv2d_relu_pool(x, k, implementation=implementation), jnp.ones(shape), kernel
        )
        assert results[0].shape == (shape[0], shape[1] // 2, 2, 4)
        np.testing.assert_array_equal(results[1], np.zeros(shape))
        np.testing.assert_array_equal(results[2], np.zeros_like(kernel))


def test_bfloat16_is_left_to_xla():
    x, kernel = random(1, 5, 5, 2).astype(jnp.bfloat16), random(3, 3, 2, 2, seed=1).astype(jnp.bfloat16)
    assert conv2d_relu_pool(x, kernel).dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="needs float32"):
        conv2d_relu_pool(x, kernel, implementation="cpp")


@pytest.mark.parametrize(
    "kernel_shape, arguments, message",
    [((3, 3, 2, 1), {}, "2 channels"), ((5, 3, 1, 1), {"padding": "VALID"}, "no rows"), ((3, 3, 1), {}, "kernel must")],
)
def test_a_kernel_that_does_not_fit_is_refused(kernel_shape, arguments, message):
    with pytest.raises(ValueError, match=message):
        conv2d_relu_pool(jnp.zeros((1, 4, 4, 1)), jnp.zeros(kernel_shape), **arguments)
