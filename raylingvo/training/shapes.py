"""A function compiled once for each shape of batch that comes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np


class StepForShapes:
    """`function(first, batch)`, compiled ahead of time: batches of a bucketed dataset come in a few shapes.

    first: of the same shapes at every call. Keyword arguments are those of `jax.jit`.
    """

    def __init__(self, function: Callable[[Any, Any], Any], **jit: Any):
        self._jitted = jax.jit(function, **jit)
        self._compiled: dict[Any, Any] = {}

    def __call__(self, first: Any, batch: Mapping[str, np.ndarray]) -> Any:
        compiled = self._compiled.get(_shapes(batch))
        if compiled is None:
            self.compile_for(first, batch)
            compiled = self._compiled[_shapes(batch)]
        return compiled(first, batch)

    def compile_for(self, first: Any, batch: Mapping[str, Any]) -> Any:
        """Compiles for the shapes of these arguments (arrays or ShapeDtypeStructs); returns the `lowered` program."""
        lowered = self._jitted.lower(first, batch)
        self._compiled[_shapes(batch)] = lowered.compile()
        return lowered


def _shapes(batch: Mapping[str, Any]) -> Any:
    return tuple((name, x.shape, x.dtype) for name, x in batch.items())
