"""Points sorted into the cells of a regular grid (Lingvo: tasks/car/ops, PointToGrid)."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from raylingvo.ops._native import Implementation, call, dispatch

# n points of d numbers, a grid of X x Y x Z cells with places for m points each, G = XYZ.


class PointGrid(NamedTuple):
    """What `points_to_grid` returns.

    output_points: f32[X, Y, Z, m, d], zeros behind the last point of a cell. grid_centers: f32[X, Y, Z, 3].
    num_points: i32[X, Y, Z], those in output_points.
    """

    output_points: jax.Array
    grid_centers: jax.Array
    num_points: jax.Array


def points_to_grid(
    points: Any,
    num_points_per_cell: int,
    x_intervals: int,
    y_intervals: int,
    z_intervals: int,
    x_range: Sequence[float],
    y_range: Sequence[float],
    z_range: Sequence[float],
    *,
    implementation: Implementation = "auto",
) -> PointGrid:
    """Sorts points into the cells of a grid over [x_range) x [y_range) x [z_range); others are dropped.

    Along an axis, cells are (max - min) / intervals wide, and a point is in cell floor((v - min) / width), both in
    float32. Of a cell with too many points, num_points_per_cell are kept: those that come first in a shuffle that
    depends on n alone, so that a scan's first sweeps are not preferred. Points of a cell are in the order of that
    shuffle. Lingvo shuffles too, but differently from one C++ library to the next.

    Args:
      points: f32[n, d], d >= 3: x, y, z, and whatever else. NaNs are in no cell.
      num_points_per_cell: m >= 1.
      x_intervals, y_intervals, z_intervals: >= 1, the number of cells along each axis.
      x_range, y_range, z_range: (min, max), min < max, in the unit of points.
      implementation: see raylingvo.ops; both give the same.

    Raises:
      ValueError: an argument is out of range, or an unknown implementation.
      RuntimeError: implementation="cpp" where there is none.
    """
    points_nxd = jnp.asarray(points, jnp.float32)
    if points_nxd.ndim != 2 or points_nxd.shape[1] < 3:
        raise ValueError(f"points must be [n, d] with d >= 3 (got shape {points_nxd.shape})")
    if num_points_per_cell < 1:
        raise ValueError(f"num_points_per_cell must be >= 1 (got {num_points_per_cell})")
    intervals = x_intervals, y_intervals, z_intervals
    lower, width = np.zeros((2, 3), np.float32)
    for axis, (name, given) in enumerate(zip("xyz", (x_range, y_range, z_range), strict=True)):
        if intervals[axis] < 1:
            raise ValueError(f"{name}_intervals must be >= 1 (got {intervals[axis]})")
        low_high = np.asarray(given, np.float32)
        if low_high.shape != (2,) or not low_high[0] < low_high[1]:
            raise ValueError(f"{name}_range must be (min, max) with min < max (got {given})")
        lower[axis] = low_high[0]
        width[axis] = (low_high[1] - low_high[0]) / np.float32(intervals[axis])
    if (places := math.prod(intervals) * num_points_per_cell) >= 2**31:
        raise ValueError(f"num_points_per_cell must be lower: {places} places are more than 2^31 - 1")

    lower_3, width_3 = jnp.asarray(lower), jnp.asarray(width)
    cells, count = dispatch(
        implementation,
        xla=_points_to_grid_xla,
        cpp=_points_to_grid_cpp,
        args=(points_nxd, jnp.asarray(_visiting_order(len(points_nxd))), lower_3, width_3),
        intervals=intervals,
        num_per_cell=num_points_per_cell,
    )
    return PointGrid(cells, _centers(lower_3, width_3, intervals=intervals), count)


@functools.lru_cache(maxsize=8)
def _visiting_order(n: int) -> np.ndarray:
    """i32[n]. Of RandomState because NumPy promises to keep its stream."""
    return np.random.RandomState(16).permutation(n).astype(np.int32)


@functools.partial(jax.jit, static_argnames="intervals")
def _centers(lower_3: jax.Array, width_3: jax.Array, *, intervals: tuple[int, int, int]) -> jax.Array:
    axes = [lower_3[a] + (jnp.arange(intervals[a]) + 0.5) * width_3[a] for a in range(3)]
    return jnp.stack(jnp.meshgrid(*axes, indexing="ij"), axis=-1)


@functools.partial(jax.jit, static_argnames=("intervals", "num_per_cell"))
def _points_to_grid_xla(
    points_nxd: jax.Array,
    order_n: jax.Array,
    lower_3: jax.Array,
    width_3: jax.Array,
    *,
    intervals: tuple[int, int, int],
    num_per_cell: int,
) -> tuple[jax.Array, jax.Array]:
    n, d = points_nxd.shape
    num_cells = math.prod(intervals)
    # Behind a barrier widths are not known when this is compiled: XLA would multiply by the inverse of a constant.
    lower_3, width_3 = jax.lax.optimization_barrier((lower_3, width_3))
    points_nxd = points_nxd[order_n]
    cell_nx3 = jnp.floor((points_nxd[:, :3] - lower_3[None]) / width_3[None])
    inside_n = ((cell_nx3 >= 0) & (cell_nx3 < jnp.array(intervals, jnp.float32)[None])).all(axis=1)
    x, y, z = (jnp.where(inside_n, cell_nx3[:, a], 0).astype(jnp.int32) for a in range(3))
    cell_n = jnp.where(inside_n, (x * intervals[1] + y) * intervals[2] + z, num_cells)

    # Points ordered by cell; which of its cell each is.
    by_cell_n = jnp.argsort(cell_n, stable=True)
    cell_n = cell_n[by_cell_n]
    position_n = jnp.arange(n)
    begins_n = jnp.concatenate([jnp.ones(min(n, 1), bool), cell_n[1:] != cell_n[:-1]])
    nth_n = position_n - jax.lax.cummax(jnp.where(begins_n, position_n, 0))
    count_G = jnp.zeros(num_cells, jnp.int32).at[cell_n].add(1, mode="drop")
    place_n = jnp.where((cell_n < num_cells) & (nth_n < num_per_cell), cell_n * num_per_cell + nth_n, -1)
    place_n = jnp.where(place_n < 0, num_cells * num_per_cell, place_n)
    places = jnp.zeros((num_cells * num_per_cell, d)).at[place_n].set(points_nxd[by_cell_n], mode="drop")
    return places.reshape(*intervals, num_per_cell, d), jnp.minimum(count_G, num_per_cell).reshape(intervals)


@functools.partial(jax.jit, static_argnames=("intervals", "num_per_cell"))
def _points_to_grid_cpp(
    points_nxd: jax.Array,
    order_n: jax.Array,
    lower_3: jax.Array,
    width_3: jax.Array,
    *,
    intervals: tuple[int, int, int],
    num_per_cell: int,
) -> tuple[jax.Array, jax.Array]:
    results = (
        jax.ShapeDtypeStruct((*intervals, num_per_cell, points_nxd.shape[1]), jnp.float32),
        jax.ShapeDtypeStruct(intervals, jnp.int32),
    )
    return call("RaylingvoPointsToGrid", results, points_nxd, order_n, lower_3, width_3)
