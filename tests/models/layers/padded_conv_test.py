"""Padded convolutions: Lingvo's values, a loop over windows, and that padding never leaks."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from layer_gradients import assert_grad, assert_output, outputs_and_grads

from raylingvo.models.layers.padded_conv import DepthwiseConv2D, PaddedConv2D
from raylingvo.models.layers.time_windows import TimeWindow

NAMES = {"kernel": "w", "bias": "b", "scale": "g"}
KINDS = (
    "Conv2DLayerWithPadding",
    "CausalConv2DLayerWithPadding",
    "DepthwiseConv2DLayer",
    "CausalDepthwiseConv2DLayer",
)


def layer_of(case):
    p = dict(case["params"])
    rows, columns, inputs, outputs = p.pop("filter_shape")
    window = TimeWindow(
        size=(rows, columns),
        stride=tuple(p.pop("filter_stride")),
        dilation=tuple(p.pop("dilation_rate", (1, 1))),
        causal=case["layer"].startswith("Causal"),
        align="first" if p.pop("v2_padding", False) else "same",
        compat="lingvo",
    )
    options = {name: p.pop(old) for name, old in (("bias", "bias"), ("weight_norm", "weight_norm")) if old in p}
    options["partial"] = p.pop("partial_conv", False)
    assert not p
    if "Depthwise" in case["layer"]:
        return DepthwiseConv2D(inputs, window, multiplier=outputs, rngs=nnx.Rngs(0), **options)
    return PaddedConv2D(inputs, outputs, window, rngs=nnx.Rngs(0), **options)


def test_convolutions_are_lingvos(lingvo_vectors):
    cases = [case for case in lingvo_vectors("i_layers") if case[0]["layer"] in KINDS]
    assert len(cases) >= 4
    for case, arrays in cases:
        layer = layer_of(case)
        for ours, theirs in NAMES.items():
            assert hasattr(layer, ours) == (f"w_{theirs}" in arrays)
            if hasattr(layer, ours):
                variable = getattr(layer, ours)
                variable[...] = jnp.asarray(arrays[f"w_{theirs}"]).reshape(variable.shape)
        definition, params = nnx.split(layer)
        paddings = jnp.asarray(arrays["in_paddings"])
        y, out_paddings, (grads, x) = outputs_and_grads(
            lambda params, x, definition=definition, paddings=paddings: nnx.merge(definition, params)(x, paddings),
            (params, jnp.asarray(arrays["in_x"])),
            jnp.asarray(arrays["fix_y"]),
        )
        assert_output(y, arrays["out_y"], case["id"])
        np.testing.assert_array_equal(out_paddings, arrays["out_out_paddings"], err_msg=case["id"])
        if "gin_x" in arrays:  # TensorFlow has no gradient of dilated convolutions on CPUs.
            assert_grad(x, arrays["gin_x"], case["id"])
            for name, grad in grads.items():
                assert_grad(grad[...], arrays[f"gw_{NAMES[name]}"], case["id"])


X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 7, 4, 3)), jnp.float32)
PADDINGS = jnp.asarray(np.arange(7) >= np.array([[7], [4]]), jnp.float32)
WINDOWS = {
    "plain": TimeWindow(size=(3, 2)),
    "strided": TimeWindow(size=(3, 3), stride=(2, 2)),
    "first": TimeWindow(size=(3, 3), stride=(2, 2), align="first"),
    "causal": TimeWindow(size=(3, 3), causal=True, dilation=(2, 1)),
    "causal, strided": TimeWindow(size=(3, 1), causal=True, stride=(2, 1)),
}


def by_windows(x, kernel, window):
    """[B, t, f, C, ...] sums of kernel[Kh, Kw, C, ...] * x, not summed over channels."""
    (top, bottom), (left, right) = window.padding(*x.shape[1:3])
    padded = np.pad(np.asarray(x, np.float64), ((0, 0), (top, bottom), (left, right), (0, 0)))
    rows, columns = (-(-n // s) for n, s in zip(x.shape[1:3], window.stride, strict=True))
    y = np.zeros((x.shape[0], rows, columns, *kernel.shape[2:]))
    for t in range(rows):
        for f in range(columns):
            for i in range(window.size[0]):
                for j in range(window.size[1]):
                    row = t * window.stride[0] + i * window.dilation[0]
                    pixel = padded[:, row, f * window.stride[1] + j * window.dilation[1]]
                    y[:, t, f] += pixel.reshape(*pixel.shape, *(1,) * (kernel.ndim - 3)) * kernel[i, j]
    return y


@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS.keys())
def test_layers_equal_a_loop_over_windows_and_padding_never_leaks(window):
    full = PaddedConv2D(3, 5, window, bias=True, rngs=nnx.Rngs(0))
    each = DepthwiseConv2D(3, window, multiplier=2, rngs=nnx.Rngs(0))
    full.bias[...] = jnp.arange(5.0)
    kept = jnp.where(PADDINGS[:, :, None, None] > 0, 0.0, X)
    run = nnx.jit(lambda layer, x: layer(x, PADDINGS))
    y, paddings = run(full, X)
    z, _ = run(each, X)
    expected = by_windows(kept, np.asarray(full.kernel), window).sum(3) + np.arange(5.0)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    expected = by_windows(kept, np.asarray(each.kernel), window)
    np.testing.assert_allclose(z, expected.reshape(*z.shape), atol=1e-5)
    assert paddings.shape == y.shape[:2]

    garbage = jnp.where(PADDINGS[:, :, None, None] > 0, jnp.nan, X)
    np.testing.assert_array_equal(run(full, garbage)[0], y)
    np.testing.assert_array_equal(run(each, garbage)[0], z)


def test_with_align_first_more_padding_changes_nothing():
    layer = PaddedConv2D(3, 5, WINDOWS["first"], rngs=nnx.Rngs(0))
    longer = jnp.pad(X, ((0, 0), (0, 1), (0, 0), (0, 0)), constant_values=9.0)
    y, paddings = layer(X, PADDINGS)
    y_longer, paddings_longer = layer(longer, jnp.pad(PADDINGS, ((0, 0), (0, 1)), constant_values=1.0))
    np.testing.assert_allclose(y, y_longer, atol=1e-6)
    np.testing.assert_array_equal(paddings, paddings_longer)


def test_a_causal_convolution_does_not_see_the_future():
    layer = PaddedConv2D(3, 5, WINDOWS["causal"], rngs=nnx.Rngs(0))
    np.testing.assert_allclose(layer(X)[0][:, :4], layer(X[:, :4])[0], atol=1e-6)
    assert layer(X)[1] is None


def test_partial_convolution_makes_up_for_what_is_missing():
    """A constant sequence stays constant, up to its ends."""
    layer = PaddedConv2D(1, 1, TimeWindow(size=(5, 1)), partial=True, bias=True, rngs=nnx.Rngs(0))
    layer.bias[...] = jnp.ones(1)
    layer.kernel[...] = jnp.ones((5, 1, 1, 1))
    y, _ = layer(jnp.ones((2, 7, 1, 1)), PADDINGS)
    np.testing.assert_allclose(y[0], 6, atol=1e-5)
    np.testing.assert_allclose(y[1, :6], 6, atol=1e-5)
    np.testing.assert_allclose(y[1, 6], 1, atol=1e-5)


def test_partial_convolution_of_lingvo_scales_the_bias_too():
    window = TimeWindow(size=(3, 1), compat="lingvo")
    layer = PaddedConv2D(1, 1, window, partial=True, bias=True, rngs=nnx.Rngs(0))
    layer.bias[...] = jnp.ones(1)
    layer.kernel[...] = jnp.ones((3, 1, 1, 1))
    y, _ = layer(jnp.ones((2, 7, 1, 1)), PADDINGS)
    # (sum + 1) * 3 / frames; of row 1, four frames are in the sequence.
    np.testing.assert_allclose(y[0, :, 0, 0], [4.5, 4, 4, 4, 4, 4, 4.5], atol=1e-5)
    np.testing.assert_allclose(y[1, :, 0, 0], [4.5, 4, 4, 4.5, 6, 0, 0], atol=1e-5)


def test_weight_norm_makes_each_kernel_as_long_as_its_scale():
    window = TimeWindow(size=(3, 2))
    for layer, plain in (
        (
            PaddedConv2D(3, 5, window, weight_norm=True, rngs=nnx.Rngs(0)),
            PaddedConv2D(3, 5, window, rngs=nnx.Rngs(0)),
        ),
        (
            DepthwiseConv2D(3, window, multiplier=2, weight_norm=True, rngs=nnx.Rngs(0)),
            DepthwiseConv2D(3, window, multiplier=2, rngs=nnx.Rngs(0)),
        ),
    ):
        axes = (0, 1, 2) if isinstance(layer, PaddedConv2D) else (0, 1)
        kernel = np.asarray(layer.kernel)
        layer.scale[...] = jnp.full(layer.scale.shape, 1.0)
        plain.kernel[...] = jnp.asarray(2 * kernel / np.sqrt((kernel**2).sum(axes, keepdims=True)))
        np.testing.assert_allclose(layer(X)[0], plain(X)[0], atol=1e-5)


def test_bf16_computes_in_bf16():
    y, _ = PaddedConv2D(3, 5, WINDOWS["plain"], bias=True, rngs=nnx.Rngs(0), dtype=jnp.bfloat16)(X, PADDINGS)
    assert y.dtype == jnp.bfloat16
    y, _ = DepthwiseConv2D(3, WINDOWS["plain"], partial=True, rngs=nnx.Rngs(0), dtype=jnp.bfloat16)(X, PADDINGS)
    assert y.dtype == jnp.bfloat16
