"""ConvBlock: Lingvo's values, and the order of its parts."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from layer_gradients import assert_grad, assert_output, outputs_and_grads

from raylingvo.models.layers.batch_norm import BatchNorm
from raylingvo.models.layers.conv_block import ConvBlock
from raylingvo.models.layers.padded_conv import PaddedConv2D
from raylingvo.models.layers.time_windows import TimeWindow

CONV = {"kernel": "w", "bias": "b", "scale": "g"}
NORM = {"scale": "bn.gamma", "bias": "bn.beta", "mean": "bn.moving_mean", "variance": "bn.moving_variance"}
ACTIVATIONS = {"SWISH": "silu", "GELU_APPROXIMATE": "gelu_tanh", "GELU_RAW": "gelu_tanh"}


def block_of(params):
    p = dict(params)
    rows, columns, inputs, outputs = p.pop("filter_shape")
    window = TimeWindow(
        size=(rows, columns),
        stride=tuple(p.pop("filter_stride")),
        dilation=tuple(p.pop("dilation_rate", (1, 1))),
        causal=p.pop("causal_convolution", False),
        compat="lingvo",
    )
    conv_last, p["partial"] = p.pop("conv_last", False), p.pop("partial_conv", False)
    name = p.pop("activation", "RELU")
    name = ACTIVATIONS.get(name, name.lower())
    p.pop("bn_fold_weights", None)  # the same numbers in another way
    norm = None
    if p.pop("batch_norm", True):
        norm = BatchNorm(inputs if conv_last else outputs, decay=p.pop("bn_decay", 0.999), rngs=nnx.Rngs(0))
    conv = PaddedConv2D(inputs, outputs, window, rngs=nnx.Rngs(0), **p)
    return ConvBlock(conv, norm, activation=name, conv_last=conv_last)


def test_blocks_are_lingvos(lingvo_vectors):
    cases = [case for case in lingvo_vectors("i_layers") if case[0]["layer"] == "Conv2DLayer"]
    assert len(cases) >= 5
    for case, arrays in cases:
        block = block_of(case["params"])
        for part, names in ((block.conv, CONV), (block.norm, NORM)):
            for ours, theirs in names.items():
                assert hasattr(part, ours) == (f"w_{theirs}" in arrays)
                if hasattr(part, ours):
                    getattr(part, ours)[...] = jnp.asarray(arrays[f"w_{theirs}"])
        definition, params, rest = nnx.split(block, nnx.Param, ...)
        paddings, training = jnp.asarray(arrays["in_paddings"]), not case["eval_mode"]

        def run(params, x, definition=definition, rest=rest, paddings=paddings, training=training):
            block = nnx.merge(definition, params, rest, copy=True)
            y, out_paddings = block(x, paddings, training=training)
            statistics = (
                {} if block.norm is None else {"mean": block.norm.mean[...], "variance": block.norm.variance[...]}
            )
            return y, (out_paddings, statistics)

        y, (out_paddings, statistics), (grads, x) = outputs_and_grads(
            run, (params, jnp.asarray(arrays["in_x"])), jnp.asarray(arrays["fix_y"])
        )
        assert_output(y, arrays["out_y"], case["id"])
        np.testing.assert_array_equal(out_paddings, arrays["out_out_paddings"], err_msg=case["id"])
        for name, value in statistics.items():
            if f"post_w_bn.moving_{name}" in arrays:
                assert_output(value, arrays[f"post_w_bn.moving_{name}"], case["id"])
        if "gin_x" in arrays:
            assert_grad(x, arrays["gin_x"], case["id"])
            for part, names in (("conv", CONV), ("norm", NORM)):
                for name, grad in grads.get(part, {}).items():
                    assert_grad(grad[...], arrays[f"gw_{names[name]}"], case["id"])


X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 4, 3)), jnp.float32)
PADDINGS = jnp.asarray(np.arange(5) >= np.array([[5], [3]]), jnp.float32)


def test_conv_last_normalises_the_input():
    block = block_of({"filter_shape": (3, 3, 3, 2), "filter_stride": (1, 1), "conv_last": True, "bias": True})
    y, paddings = block(X, PADDINGS, training=True)
    norm = BatchNorm(3, rngs=nnx.Rngs(0))
    expected, _ = block.conv(jax.nn.relu(norm(X, PADDINGS, training=True)), PADDINGS)
    np.testing.assert_allclose(y, jnp.where(PADDINGS[:, :, None, None] > 0, 0, expected), atol=1e-5)
    np.testing.assert_array_equal(paddings, PADDINGS)


def test_padding_never_leaks_and_its_results_are_0():
    block = block_of({"filter_shape": (3, 3, 3, 2), "filter_stride": (2, 1), "activation": "SIGMOID", "bias": True})
    y, paddings = block(X, PADDINGS, training=True)
    garbage, _ = block(jnp.where(PADDINGS[:, :, None, None] > 0, 1e3, X), PADDINGS, training=True)
    np.testing.assert_array_equal(y, garbage)
    assert (jnp.where(paddings[:, :, None, None] > 0, y, 0) == 0).all()
    without, none = block(X)
    assert none is None
    assert without.shape == y.shape
