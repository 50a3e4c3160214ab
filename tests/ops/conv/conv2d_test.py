"""conv2d against XLA's convolution, forward and both gradients, whatever the shapes and the instruction set."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from raylingvo.ops import _native
from raylingvo.ops.conv import _conv2d_cpp
from raylingvo.ops.conv.conv2d import conv2d

needs_cpp = pytest.mark.skipif(bool(_native.why_unavailable()), reason=f"no C++ ops: {_native.why_unavailable()}")
# N, H, W, C, Kh, Kw, F, strides, padding, dilation
SHAPES = [
    (3, 28, 28, 1, 5, 5, 20, (1, 1), "SAME", (1, 1)),
    (2, 14, 14, 20, 5, 5, 50, (1, 1), "SAME", (1, 1)),
    (1, 9, 11, 3, 3, 2, 7, (2, 3), "VALID", (1, 2)),
    (2, 13, 8, 5, 3, 3, 33, (2, 2), ((0, 2), (3, 1)), (2, 1)),
    (2, 6, 7, 2, 1, 1, 3, (3, 3), "SAME", (1, 1)),  # pixels that nothing reads
    (40, 8, 8, 3, 3, 3, 70, (1, 1), "SAME", (2, 2)),  # several images a task
    (2, 40, 20, 16, 3, 3, 129, (2, 2), "SAME", (1, 1)),  # several strips an image
    (1, 3, 2, 1, 7, 5, 1, (1, 2), "SAME", (1, 1)),  # smaller than the kernel
    (1, 1, 9, 4, 1, 4, 9, (1, 3), ((0, 0), (5, 4)), (1, 2)),
    (2, 4, 4, 130, 3, 3, 200, (1, 1), "VALID", (1, 1)),  # a kernel gradient too large for a total for each task
]


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def lax_conv(x, kernel, strides, padding, dilation):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, kernel, strides, padding, rhs_dilation=dilation, dimension_numbers=numbers, precision="highest"
    )


def value_and_gradients(function, *args):
    y, vjp = jax.vjp(function, *args)
    return y, *vjp(random(*y.shape, seed=7))


def assert_close(ours, expected, tolerance=1e-5):
    for a, b in zip(ours, expected, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * float(jnp.abs(b).max()))


@needs_cpp
@pytest.mark.parametrize("N, H, W, C, Kh, Kw, F, strides, padding, dilation", SHAPES)
def test_value_and_gradients_equal_xla(N, H, W, C, Kh, Kw, F, strides, padding, dilation):
    x, kernel = random(N, H, W, C), random(Kh, Kw, C, F, seed=1)

    def ours(x, kernel):
        return conv2d(x, kernel, strides=strides, padding=padding, dilation=dilation, implementation="cpp")

    both = jax.jit(
        lambda x, kernel: (
            value_and_gradients(ours, x, kernel),
            value_and_gradients(lambda x, k: lax_conv(x, k, strides, padding, dilation), x, kernel),
        )
    )
    assert_close(*both(x, kernel))


@needs_cpp
@pytest.mark.parametrize("seed", range(6))
def test_random_shapes_equal_xla(seed):
    rng = np.random.default_rng(seed)
    N, C, F = rng.integers(1, 4), rng.integers(1, 20), rng.integers(1, 70)
    Kh, Kw = rng.integers(1, 5, 2)
    strides, dilation = tuple(rng.integers(1, 4, 2).tolist()), tuple(rng.integers(1, 3, 2).tolist())
    H, W = (int(rng.integers((k - 1) * d + 1, 16)) for k, d in zip((Kh, Kw), dilation, strict=True))
    padding = [tuple(map(tuple, rng.integers(0, 4, (2, 2)).tolist())), "SAME", "VALID"][seed % 3]
    test_value_and_gradients_equal_xla(N, H, W, C, Kh, Kw, F, strides, padding, dilation)


@needs_cpp
@pytest.mark.parametrize("width", [4, 8])
@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[3], SHAPES[6], SHAPES[8]])
def test_every_instruction_set_computes_the_same(monkeypatch, width, shape):
    monkeypatch.setattr(_conv2d_cpp, "MAX_WIDTH", width)
    jax.clear_caches()
    test_value_and_gradients_equal_xla(*shape)
    jax.clear_caches()


@needs_cpp
def test_threads_change_nothing():
    x, kernel = random(64, 12, 10, 7), random(3, 3, 7, 19, seed=1)
    compute = jax.jit(lambda x, k: value_and_gradients(lambda x, k: conv2d(x, k, implementation="cpp"), x, k))
    first = compute(x, kernel)
    for _ in range(20):
        for a, b in zip(compute(x, kernel), first, strict=True):
            np.testing.assert_array_equal(a, b)


@needs_cpp
def test_eager_equals_jit():
    x, kernel = random(3, 7, 6, 2), random(3, 2, 2, 5, seed=1)
    for strides in ((1, 1), (2, 1)):

        def function(x, k, strides=strides):
            return conv2d(x, k, strides=strides, implementation="cpp")

        eager, jitted = value_and_gradients(function, x, kernel), jax.jit(function)(x, kernel)
        np.testing.assert_array_equal(eager[0], jitted)
        assert_close(eager, value_and_gradients(lambda x, k, s=strides: lax_conv(x, k, s, "SAME", (1, 1)), x, kernel))


@needs_cpp
def test_vmap_is_one_call_for_each_element():
    x, kernel = random(3, 2, 7, 6, 2), random(3, 3, 2, 2, 5, seed=1)

    def gradients(x, kernel):
        return value_and_gradients(lambda x, k: conv2d(x, k, implementation="cpp"), x, kernel)

    together = jax.vmap(gradients)(x, kernel)
    for i in range(3):
        assert_close([part[i] for part in together], gradients(x[i], kernel[i]), 1e-6)


def test_auto_is_lowered_for_each_platform():
    traced = jax.jit(conv2d).trace(jnp.zeros((2, 8, 8, 1)), jnp.zeros((5, 5, 1, 3)))
    for platform in ("tpu", "cuda"):
        assert "stablehlo.convolution" in traced.lower(lowering_platforms=(platform,)).as_text()
    expected = "stablehlo.convolution" if _native.why_unavailable() else "RaylingvoConv2d"
    assert expected in traced.lower(lowering_platforms=("cpu",)).as_text()


@pytest.mark.parametrize("implementation", ["xla", pytest.param("cpp", marks=needs_cpp)])
def test_no_images(implementation):
    def function(x, k):
        return conv2d(x, k, implementation=implementation)

    y, x_grad, kernel_grad = value_and_gradients(function, jnp.zeros((0, 5, 5, 2)), jnp.ones((3, 3, 2, 4)))
    assert y.shape == (0, 5, 5, 4) and x_grad.shape == (0, 5, 5, 2)
    np.testing.assert_array_equal(kernel_grad, np.zeros((3, 3, 2, 4)))


@needs_cpp
def test_nan_is_where_it_is_read():
    x = jnp.zeros((1, 6, 6, 1)).at[0, 2, 3, 0].set(jnp.nan)
    y = conv2d(x, jnp.ones((3, 3, 1, 2)), implementation="cpp")
    expected = np.zeros((6, 6), bool)
    expected[1:4, 2:5] = True
    np.testing.assert_array_equal(np.isnan(y[0, :, :, 1]), expected)


def test_bfloat16_is_left_to_xla():
    x, kernel = random(1, 5, 5, 2).astype(jnp.bfloat16), random(3, 3, 2, 2, seed=1).astype(jnp.bfloat16)
    y = conv2d(x, kernel)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, conv2d(x, kernel, implementation="xla"))
    with pytest.raises(ValueError, match=r"needs float32 \(got bfloat16\)"):
        conv2d(x, kernel, implementation="cpp")


@pytest.mark.parametrize(
    "x_shape, kernel_shape, arguments, message",
    [
        ((4, 4, 1), (3, 3, 1, 1), {}, r"x must be floats of 4 dimensions \(got float32\[4, 4, 1\]\)"),
        ((1, 4, 4, 2), (3, 3, 1, 1), {}, "kernel's 1 channels"),
        ((1, 4, 0, 1), (3, 3, 1, 1), {}, r"must not be empty.*\[1, 4, 0, 1\]"),
        ((1, 4, 4, 1), (3, 3, 1, 0), {}, "must not be empty"),
        ((1, 4, 4, 1), (3, 3, 1, 1), {"strides": (0, 1)}, r"strides must be a pair of integers >= 1 \(got \(0, 1\)\)"),
        ((1, 4, 4, 1), (3, 3, 1, 1), {"strides": 2}, r"strides must be a pair of integers \(got 2\)"),
        ((1, 4, 4, 1), (3, 3, 1, 1), {"dilation": (1, 1.5)}, "dilation must be a pair"),
        ((1, 4, 4, 1), (3, 3, 1, 1), {"padding": "same"}, r"padding must be 'SAME', 'VALID' or two pairs.*'same'"),
        ((1, 4, 4, 1), (3, 3, 1, 1), {"padding": ((0, -1), (0, 0))}, r"padding\[0\] must be.*>= 0 \(got \(0, -1\)\)"),
        ((1, 2, 4, 1), (3, 3, 1, 1), {"padding": "VALID"}, "the result would have no rows"),
        ((1, 4, 4, 1), (3, 3, 1, 1), {"padding": "VALID", "dilation": (1, 2)}, "no columns.*spans 5"),
        ((1, 4, 4, 1), (3, 3, 1, 1), {"implementation": "gpu"}, "implementation must be"),
    ],
)
def test_wrong_arguments_are_named(x_shape, kernel_shape, arguments, message):
    with pytest.raises(ValueError, match=message):
        conv2d(jnp.zeros(x_shape), jnp.zeros(kernel_shape), **arguments)
