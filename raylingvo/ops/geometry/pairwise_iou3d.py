"""Intersection over union of rotated boxes (Lingvo: tasks/car/ops, PairwiseIou3D)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from raylingvo.ops._native import Implementation, call, dispatch
from raylingvo.ops.geometry._rotated_boxes import RotatedBoxes, check_boxes, rotated_iou

# n and m boxes.


def pairwise_iou3d(a: Any, b: Any, *, implementation: Implementation = "auto") -> jax.Array:
    """Intersection over union of every box of `a` with every box of `b`, in [0, 1].

    A box that is flat, or has a base side not within 1e-3 and 1e6, overlaps nothing: 0, as for boxes that touch. "cpp"
    computes in float64, "xla" in float32 relative to one of the boxes: they agree to 1e-5 unless a box is more than 300
    times as long as wide. Of such boxes float32 does not know the direction well enough: what "xla" finds is off by up
    to 5e-8 times that ratio (measured: 1.2e-5 at 500, 2e-4 at 10,000, 2e-3 at 100,000).

    Args:
      a: f32[n, 7], a box a row: center x, y, z, size along its own x, y, z, and heading, the counterclockwise angle in
        radians about z. All lengths in one unit.
      b: f32[m, 7].
      implementation: see raylingvo.ops; both give the same, up to what is said above.

    Returns:
      f32[n, m].

    Raises:
      ValueError: a shape is wrong, or an unknown implementation.
      RuntimeError: implementation="cpp" where there is none.
    """
    args = check_boxes("a", a), check_boxes("b", b)
    return dispatch(implementation, xla=_pairwise_iou3d_xla, cpp=_pairwise_iou3d_cpp, args=args)


@jax.jit
def _pairwise_iou3d_xla(a_nx7: jax.Array, b_mx7: jax.Array) -> jax.Array:
    a, b = RotatedBoxes.from_array(a_nx7), RotatedBoxes.from_array(b_mx7)
    return rotated_iou(a.map(lambda field: field[:, None]), b.map(lambda field: field[None, :]))


@jax.jit
def _pairwise_iou3d_cpp(a_nx7: jax.Array, b_mx7: jax.Array) -> jax.Array:
    result = jax.ShapeDtypeStruct((len(a_nx7), len(b_mx7)), jnp.float32)
    return call("RaylingvoPairwiseIou3D", result, a_nx7, b_mx7)
