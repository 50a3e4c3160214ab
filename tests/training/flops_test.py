"""FLOPs of traced functions, against counts by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import toy
from jax import lax
from jax.extend import core

from raylingvo.errors import RequestError
from raylingvo.training import flops as flops_lib
from raylingvo.training.flops import PEAK, device_peak, flops, peak_flops
from raylingvo.training.shapes import StepForShapes
from raylingvo.training.state import init_state
from raylingvo.training.step import make_train_step

X = jnp.ones((8, 16))
W = jnp.ones((16, 4))
SQUARE = jnp.eye(16)
ONE = 2 * 8 * 16 * 16  # FLOPs of X @ SQUARE


def counted(function: Any, *args: Any) -> float | None:
    return flops(jax.jit(function).trace(*args).jaxpr)


def test_products() -> None:
    assert counted(lambda x, w: x @ w, X, W) == 2 * 8 * 16 * 4
    assert counted(lambda a, b: jnp.einsum("bik,bkj->bij", a, b), jnp.ones((3, 5, 7)), jnp.ones((3, 7, 2))) == 420
    assert counted(lambda x: x + 1, X) == 0
    assert counted(jax.grad(lambda w: (X @ w).sum()), W) == 2 * (2 * 8 * 16 * 4)  # forward, and the gradient of w


def test_convolutions() -> None:
    images, kernel = jnp.ones((2, 8, 8, 6)), jnp.ones((3, 3, 2, 9))
    grouped = {"window_strides": (2, 2), "padding": "SAME", "feature_group_count": 3}

    def conv(images: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(images, kernel, dimension_numbers=("NHWC", "HWIO", "NHWC"), **grouped)

    forward = 2 * (2 * 4 * 4 * 9) * (3 * 3 * 2)
    assert counted(conv, images, kernel) == forward
    gradient = jax.grad(lambda images, kernel: conv(images, kernel).sum(), argnums=0)
    assert counted(gradient, images, kernel) == 2 * forward  # products with the zeros of the dilation are none


def test_calls_loops_and_branches() -> None:
    def step(x: jax.Array) -> jax.Array:
        return x @ SQUARE

    assert counted(lambda x: lax.scan(lambda carry, _: (step(carry), None), x, length=5)[0], X) == 5 * ONE
    assert counted(lambda x: lax.fori_loop(0, 3, lambda _, carry: step(carry), x), X) == 3 * ONE
    assert counted(lambda x: lax.cond(x.sum() > 0, lambda x: step(step(x)), step, x), X) == 2 * ONE
    assert counted(lambda x: jax.jit(step)(jax.vmap(jnp.tanh)(x)), X) == ONE
    assert counted(lambda x: lax.while_loop(lambda x: x.sum() < 5, lambda x: x + 1, x), X) == 0
    assert counted(lambda x: lax.while_loop(lambda x: x.sum() < 5, step, x), X) is None


def test_what_is_computed_again_counts_again() -> None:
    def loss(x: jax.Array) -> jax.Array:
        return jnp.tanh(jnp.tanh(x @ SQUARE) @ SQUARE).sum()

    plain = counted(jax.grad(loss), X)
    assert plain == 4 * ONE
    assert counted(jax.grad(jax.checkpoint(loss)), X) == 6 * ONE


def test_code_that_is_not_jaxs_is_unknown() -> None:
    def outside(x: jax.Array) -> jax.Array:
        return jax.pure_callback(lambda x: x, jax.ShapeDtypeStruct(X.shape, X.dtype), x) @ SQUARE

    assert counted(outside, X) is None
    assert counted(lambda x: lax.cond(x.sum() > 0, outside, lambda x: x, x), X) is None


@pytest.mark.parametrize(("backend", "expected"), [("cpu", None), ("gpu", 2 * ONE), ("tpu", ONE)])
def test_only_what_the_devices_will_do_counts(
    monkeypatch: pytest.MonkeyPatch, backend: str, expected: float | None
) -> None:
    """As our ops have it: C++ on CPUs, JAX elsewhere."""

    def outside(x: jax.Array) -> jax.Array:
        return jax.pure_callback(lambda x: x, jax.ShapeDtypeStruct(X.shape, X.dtype), x)

    def chosen(x: jax.Array) -> jax.Array:
        return lax.platform_dependent(x, cpu=outside, cuda=lambda x: x @ SQUARE @ SQUARE, default=lambda x: x @ SQUARE)

    monkeypatch.setattr(flops_lib.jax, "default_backend", lambda: backend)
    assert counted(chosen, X) == expected


@pytest.mark.parametrize("axes", [{"a", "b"}, {"a"}])
def test_a_shard_counts_once_for_each_along_the_manual_axes(axes: set[str]) -> None:
    """Along the others its shapes are those of the whole."""
    mesh = jax.sharding.AbstractMesh((2, 2), ("a", "b"))
    split = jax.sharding.PartitionSpec(tuple(sorted(axes)))

    def mapped(x: jax.Array) -> jax.Array:
        return jax.shard_map(lambda x: x @ SQUARE, mesh=mesh, in_specs=split, out_specs=split, axis_names=axes)(x)

    assert counted(mapped, X) == ONE


def test_products_that_do_not_say_how_many_are_unknown() -> None:
    groups = jnp.array([5, 3])
    assert counted(lambda x, w: lax.ragged_dot(x, w, groups), X, jnp.ones((2, 16, 4))) is None
    queries = jnp.ones((2, 128, 4, 64), jnp.bfloat16)
    attention = core.Primitive("dot_product_attention_fwd_wrapper")  # as cuDNN's, which wants to see a GPU
    attention.def_abstract_eval(lambda query: query)
    assert counted(attention.bind, queries) is None
    # With a function of its own it is known.
    assert counted(lambda x: jax.nn.dot_product_attention(x, x, x), queries) == 2 * 2 * (2 * 4 * 128 * 128 * 64)


def test_a_train_step() -> None:
    experiment = toy.experiment()
    (batch,) = toy.batches(1)
    state = init_state(experiment, batch)
    layers = 2 * 8 * (4 * 6 + 6)
    # Forward, the gradients of the weights, and that of the hidden units.
    assert counted(make_train_step(experiment), state, batch) == 2 * layers + 2 * 8 * 6


def test_calls_of_several_shapes_are_averaged() -> None:
    step = StepForShapes(lambda first, batch: first + (batch["x"] @ W).sum())
    small, large = {"x": X}, {"x": jnp.ones((24, 16))}
    step.compile(jnp.zeros(()), [small, large])
    assert step.take_flops() is None
    for batch in (small, small, small, large):
        step(jnp.zeros(()), batch)
    assert step.take_flops() == 1.5 * 2 * 8 * 16 * 4
    assert step.take_flops() is None


KINDS = {  # as JAX calls them
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40": None,
    "NVIDIA L40S": None,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 80GB HBM3 MIG 1g.10gb": None,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835.5e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H200 NVL": 835.5e12,
    "TPU v4": 275e12,
    "TPU v4 lite": 138e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "cpu": None,
}


def test_peaks_of_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PEAK, raising=False)
    assert {kind: peak_flops(kind) for kind in KINDS} == KINDS
    assert device_peak() is None
    monkeypatch.setenv(PEAK, "2e9")
    assert peak_flops("cpu") == 2e9
    assert device_peak() == 2e9 * jax.device_count()


def test_devices_that_differ_have_no_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PEAK, raising=False)
    kinds = [SimpleNamespace(device_kind=kind) for kind in ("NVIDIA H200", "NVIDIA A100-SXM4-40GB")]
    monkeypatch.setattr(flops_lib.jax, "local_devices", lambda: kinds)
    assert device_peak() is None


@pytest.mark.parametrize("text", ["fast", "0", "-1", "inf", "nan"])
def test_a_peak_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(PEAK, text)
    with pytest.raises(RequestError, match=f"^{PEAK} must be a number above 0, .* \\(got '{text}'\\)$"):
        peak_flops("cpu")
