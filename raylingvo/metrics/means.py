"""Weighted means of metrics: exact on the host, and running totals on the device.

A metric is a pair (value, weight) of scalars (models/task.py). Its mean is sum(value * weight) / sum(weight); a name
that starts with `num_` is a count, whose total is sum(value * weight). A pair of weight 0 does not count, whatever its
value (the mean over no rows is often NaN). A mean whose total weight is 0 has no value and is absent from the result,
rather than a NaN that JSON cannot say; a count is then 0. A NaN or infinity of positive weight is real, and stays.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jax

# Metric name -> (sum(value * weight), sum(weight)), f32[] each: 16 million is the largest count they hold exactly.
Totals = dict[str, tuple["jax.Array", "jax.Array"]]


class WeightedMeans:
    """Accumulates metrics over batches on the host.

    The result is the correctly rounded one, hence the same number in whatever order the batches come. For that it
    keeps two floats per batch and metric.
    """

    def __init__(self) -> None:
        self._products: dict[str, list[float]] = {}
        self._weights: dict[str, list[float]] = {}

    def add(self, metrics: Mapping[str, tuple[Any, Any]]) -> None:
        """Adds a batch's metrics: name -> (value, weight), Python, NumPy or JAX scalars.

        JAX scalars are fetched one by one: `jax.device_get` the whole mapping first. Raises ValueError if a weight is
        negative or not finite.
        """
        for name, (value, weight) in metrics.items():
            weight = float(weight)
            if not 0 <= weight < math.inf:
                raise ValueError(f"the weight of {name} must be finite and >= 0 (got {weight})")
            products, weights = self._products.setdefault(name, []), self._weights.setdefault(name, [])
            if weight > 0:
                products.append(float(value) * weight)  # exact for f32 scalars: 24 + 24 bits fit in 53
                weights.append(weight)

    def result(self) -> dict[str, float]:
        """Metric name -> mean, or total of a count, in the order in which the names were first added."""
        return _results({name: (_sum(self._products[name]), _sum(self._weights[name])) for name in self._products})


def zeros_like_metrics(metrics: Mapping[str, Any]) -> Totals:
    """Empty totals for the names of `metrics`. Every array is its own, so that the totals can be donated."""
    import jax.numpy as jnp

    return {name: (jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32)) for name in metrics}


def accumulate(totals: Totals, metrics: Mapping[str, tuple[Any, Any]]) -> Totals:
    """`totals` and one batch's metrics. Pure: for use inside a jitted step.

    A batch need not have all of them: of several tasks, each has its own. Raises ValueError for a name without a total.
    """
    import jax.numpy as jnp

    if not metrics.keys() <= totals.keys():
        raise ValueError(f"metrics must be among {', '.join(totals)} (got {', '.join(metrics)})")
    sums = dict(totals)
    for name, (value, weight) in metrics.items():
        total, total_weight = totals[name]
        value, weight = jnp.asarray(value, jnp.float32), jnp.asarray(weight, jnp.float32)
        sums[name] = (total + jnp.where(weight > 0, value * weight, 0.0), total_weight + weight)
    return sums


def to_means(totals: Mapping[str, tuple[Any, Any]]) -> dict[str, float]:
    """On the host, after `jax.device_get`: totals -> the same kind of result as `WeightedMeans.result`."""
    return _results({name: (float(total), float(weight)) for name, (total, weight) in totals.items()})


def _results(sums: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    results: dict[str, float] = {}
    for name, (total, weight) in sums.items():
        if name.startswith("num_"):
            results[name] = total
        elif weight > 0:
            results[name] = total / weight
    return results


def _sum(values: list[float]) -> float:
    """The sum, rounded once, and so independent of the order; NaN and infinities as in plain addition."""
    return math.fsum(values) if all(map(math.isfinite, values)) else sum(values)
