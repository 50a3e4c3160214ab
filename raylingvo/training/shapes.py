"""A function compiled once for each shape of batch that comes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from raylingvo.data.host_fields import device_fields
from raylingvo.training.flops import flops


class StepForShapes:
    """`function(first, batch, *rest)`, compiled ahead of time for each of the few shapes in which batches come.

    Nothing is compiled when it is called: no step is slower than another, whichever bucket its batch is of. What of a
    batch stays on the host (data/host_fields.py) is left out.
    first, rest: of the same shapes at every call. Keyword arguments are those of `jax.jit`.
    """

    def __init__(self, function: Callable[..., Any], **jit: Any):
        self._jitted = jax.jit(function, **jit)
        self._compiled: dict[Any, Any] = {}
        self._flops: dict[Any, float] = {}  # of a call; NaN: unknown
        self._flops_of_calls, self._num_calls = 0.0, 0  # since `take_flops`

    def __call__(self, first: Any, batch: Mapping[str, Any], *rest: Any) -> Any:
        """Raises ValueError for a batch of a shape that it was not compiled for."""
        batch = device_fields(batch)
        compiled = self._compiled.get(shapes := _shapes(batch))
        if compiled is None:
            got = ", ".join(f"{name}: {dtype}{list(shape)}" for name, shape, dtype in shapes)
            raise ValueError(f"batch must be of a shape that Batches.samples() gives (got {got})")
        self._flops_of_calls += self._flops[shapes]
        self._num_calls += 1
        return compiled(first, batch, *rest)

    def take_flops(self) -> float | None:
        """Of a call, on average of those since this was asked last; None if there were none, or if it is unknown."""
        mean = self._flops_of_calls / self._num_calls if self._num_calls else math.nan
        self._flops_of_calls, self._num_calls = 0.0, 0
        return None if math.isnan(mean) else mean

    def compile(self, first: Any, samples: Iterable[Mapping[str, Any]], *rest: Any) -> Any:
        """Compiles for `first`, `rest` and each of the samples; returns the `lowered` program of the first sample.

        Arrays or ShapeDtypeStructs. Samples may repeat a shape: it is compiled once. Raises ValueError if there is no
        sample.
        """
        lowered_first = None
        for batch in map(device_fields, samples):
            shapes = _shapes(batch)
            if shapes in self._compiled:
                continue
            traced = self._jitted.trace(first, batch, *rest)
            lowered = traced.lower()
            counted = flops(traced.jaxpr)
            self._flops[shapes] = math.nan if counted is None else counted
            self._compiled[shapes] = lowered.compile()
            lowered_first = lowered_first or lowered
        if lowered_first is None:
            raise ValueError("samples must have at least one batch (got none)")
        return lowered_first


def _shapes(batch: Mapping[str, Any]) -> tuple[tuple[str, tuple[int, ...], Any], ...]:
    # Sorted, as JAX sorts them: in which order a dataset names its fields makes no other program.
    return tuple((name, x.shape, x.dtype) for name, x in sorted(batch.items()))
