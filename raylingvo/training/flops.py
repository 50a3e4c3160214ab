"""How many floating-point operations a step takes, and how many the devices could."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax.extend import core

from raylingvo.errors import RequestError

# A device with another peak, or one that is not listed: operations a second of one device, as in 9.89e14.
PEAK = "RAYLINGVO_PEAK_FLOPS"

# Dense bfloat16 operations a second of a JAX device: its `device_kind`, or the words that this begins with; the longest
# counts. GPUs: NVIDIA's data sheets of each, which mostly tell the number with sparsity, twice the dense one. TPUs: the
# page of each version in Google's documentation of Cloud TPU, by the chip.
_PEAKS = {
    "TPU v2": 22.5e12,  # a core: half of a chip
    "TPU v3": 61.5e12,  # so too
    "TPU v4": 275e12,
    "TPU v4 lite": 138e12,  # v4i: Jouppi et al., Ten Lessons From Three Generations Shaped Google's TPUv4i, ISCA 2021
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,  # A100 data sheet: 312 without sparsity, as SXM and as PCIe
    "NVIDIA L4": 121e12,  # L4 data sheet: 242 with sparsity
    "NVIDIA H100 PCIe": 756e12,  # H100 data sheet: 1513 with sparsity
    "NVIDIA H100 NVL": 835.5e12,  # H100 data sheet: 1671 with sparsity
    "NVIDIA H100": 989e12,  # H100 data sheet, SXM: 1979 with sparsity
    "NVIDIA H200 NVL": 835.5e12,  # H200 data sheet: 1671 with sparsity
    "NVIDIA H200": 989e12,  # H200 data sheet, SXM: 1979 with sparsity
    "NVIDIA B200": 2250e12,  # HGX B200 data sheet: 4500 with sparsity
}
# Products, of which the equation does not say how many: of a group's sizes, of a sparse array, of cuDNN.
_PRODUCTS = re.compile("attention|dot|matmul|gemm")


def peak_flops(device_kind: str) -> float | None:
    """Operations a second of one device: what RAYLINGVO_PEAK_FLOPS says, else of those that are known; else None.

    Raises RequestError if the variable is no number above 0.
    """
    if text := os.environ.get(PEAK):
        try:
            given = float(text)
        except ValueError:
            given = 0.0
        if not 0 < given < math.inf:
            raise RequestError(f"{PEAK} must be a number above 0, operations a second of one device (got {text!r})")
        return given
    if " MIG " in device_kind:
        return None  # a part of a GPU
    known = [kind for kind in _PEAKS if re.match(rf"{kind}(?!\w)", device_kind)]  # not L4 of an L40
    return _PEAKS[max(known, key=len)] if known else None


def flops(jaxpr: core.ClosedJaxpr | core.Jaxpr) -> float | None:
    """Of the matrix products and convolutions of a traced function: a multiplication and an addition are 2.

    What is computed again in the backward pass (remat) counts again, as it is work of the devices. Of the branches of
    a condition the dearest counts. None if it cannot be known: of a loop that ends on a condition, of products of
    ragged or sparse arrays, and of code that is not JAX's, such as cuDNN's attention.
    """
    total = 0.0
    for equation in _body(jaxpr).eqns:
        found = _of_equation(equation)
        if found is None:
            return None
        total += found
    return total


def _of_equation(equation: Any) -> float | None:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return _of_product(equation)
    if name == "conv_general_dilated":
        return _of_convolution(equation)
    if name in ("ffi_call", "custom_call", "pure_callback", "io_callback"):
        return None
    if name == "pallas_call":
        estimate = params.get("cost_estimate")
        return None if estimate is None else float(estimate.flops)
    if name == "cond":
        branches = [flops(branch) for branch in _branches(params)]
        return None if None in branches else max(branch for branch in branches if branch is not None)
    inner = [flops(part) for part in _parts(params)]
    if not inner and _PRODUCTS.search(name):
        return None
    if name == "while":
        return 0.0 if not any(part is None or part for part in inner) else None
    if None in inner:
        return None
    return _times(name, params) * sum(part for part in inner if part is not None)


def _branches(params: dict[str, Any]) -> Sequence[Any]:
    """Of a choice between platforms, which looks like a condition, only what this process's devices will do."""
    platforms = params.get("branches_platforms")
    if platforms is None:
        return params["branches"]
    backend = jax.default_backend()
    here = {"cuda", "rocm", "oneapi"} if backend == "gpu" else {backend}
    of_all = zip(params["branches"], platforms, strict=True)
    return [next(branch for branch, of in of_all if of is None or here.intersection(of))]


def _times(name: str, params: dict[str, Any]) -> int:
    """How often an equation calls its functions, over all devices."""
    if name == "scan":
        return params["length"]
    if name == "shard_map":  # along the axes that are not manual the shapes are those of the whole
        axes = params["newly_manual_axes"] if "newly_manual_axes" in params else params["manual_axes"]  # JAX 0.9
        return math.prod(params["mesh"].shape[axis] for axis in axes)
    return 1


def _of_product(equation: Any) -> float:
    left = equation.invars[0].aval.shape
    (contracted, _), _ = equation.params["dimension_numbers"]
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)


def _of_convolution(equation: Any) -> float:
    out, kernel = equation.outvars[0].aval.shape, equation.invars[1].aval.shape
    spec = equation.params["dimension_numbers"].rhs_spec  # (out features, in features of a group, space..)
    # Where the input is dilated with zeros, as in the gradient of a strided one, most products are with these.
    zeros = math.prod(equation.params["lhs_dilation"])
    return 2.0 * math.prod(out) * math.prod(kernel[axis] for axis in spec[1:]) / zeros


def _parts(params: dict[str, Any]) -> Iterator[Any]:
    """The functions that an equation calls, whatever its kind."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, core.ClosedJaxpr | core.Jaxpr):
                yield item


def _body(jaxpr: core.ClosedJaxpr | core.Jaxpr) -> core.Jaxpr:
    return jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr


def device_peak() -> float | None:
    """Of all devices together, if those of this process are alike and known."""
    peaks = {peak_flops(device.device_kind) for device in jax.local_devices()}
    peak = peaks.pop()
    return None if peak is None or peaks else peak * jax.device_count()
