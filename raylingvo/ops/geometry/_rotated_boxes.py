"""Boxes [cx, cy, cz, dx, dy, dz, heading] in pure JAX: float32, static shapes, no branches."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# Slivers thinner than this share of the boxes' size are rounding of float32: the boxes touch.
_SLIVER = 4e-7


class RotatedBoxes(NamedTuple):
    """f32[...] each. half_x, half_y: half the sides. valid: bool[...], Lingvo's rule."""

    cx: jax.Array
    cy: jax.Array
    cz: jax.Array
    half_x: jax.Array
    half_y: jax.Array
    dz: jax.Array
    cosine: jax.Array
    sine: jax.Array
    valid: jax.Array

    @classmethod
    def from_array(cls, boxes: jax.Array) -> RotatedBoxes:
        """boxes: f32[..., 7]."""
        cx, cy, cz, dx, dy, dz, heading = (boxes[..., i] for i in range(7))
        # float32(1e-3) is more than 1e-3, and so a valid side.
        valid = (dz > 0) & (dx >= 1e-3) & (dx < 1e6) & (dy >= 1e-3) & (dy < 1e6)
        return cls(cx, cy, cz, dx / 2, dy / 2, dz, jnp.cos(heading), jnp.sin(heading), valid)

    def map(self, function: Any) -> RotatedBoxes:
        return RotatedBoxes(*map(function, self))


def check_boxes(name: str, boxes: Any) -> jax.Array:
    """f32[n, 7]. Raises ValueError for another shape."""
    array = jnp.asarray(boxes)
    if array.ndim != 2 or array.shape[1] != 7:
        raise ValueError(f"{name} must be [n, 7]: cx, cy, cz, dx, dy, dz, heading (got shape {array.shape})")
    return array.astype(jnp.float32)


def rotated_iou(a: RotatedBoxes, b: RotatedBoxes) -> jax.Array:
    """f32[...], the intersection over union of a and b, element by element.

    Coordinates are relative to a, whose frame b is turned into: float32 is then exact enough far from the origin too.
    The base area in common is the integral of -clamp(y) dx counterclockwise around b, where clamp keeps to a's extent.
    """
    dx, dy = b.cx - a.cx, b.cy - a.cy
    x, y = a.cosine * dx + a.sine * dy, a.cosine * dy - a.sine * dx
    c, s = a.cosine * b.cosine + a.sine * b.sine, a.cosine * b.sine - a.sine * b.cosine
    ux, uy, vx, vy = c * b.half_x, s * b.half_x, -s * b.half_y, c * b.half_y
    corners = [
        (x - ux - vx, y - uy - vy),
        (x + ux - vx, y + uy - vy),
        (x + ux + vx, y + uy + vy),
        (x - ux + vx, y - uy + vy),
    ]
    area = jnp.zeros_like(x)
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        area -= _edge_integral(x0, y0, x1, y1, a.half_x, a.half_y)
    # Relative to a, as x and y.
    high = jnp.minimum(a.dz / 2, b.cz - a.cz + b.dz / 2)
    low = jnp.maximum(-a.dz / 2, b.cz - a.cz - b.dz / 2)
    height = high - low
    meet = a.valid & b.valid & (height > _SLIVER * jnp.minimum(a.dz, b.dz)) & (area > 1e-8)
    # Boxes are apart where they are along a side of one of them.
    for position, reach in (
        (x, a.half_x + jnp.abs(ux) + jnp.abs(vx)),
        (y, a.half_y + jnp.abs(uy) + jnp.abs(vy)),
        (c * x + s * y, b.half_x + jnp.abs(c) * a.half_x + jnp.abs(s) * a.half_y),
        (c * y - s * x, b.half_y + jnp.abs(s) * a.half_x + jnp.abs(c) * a.half_y),
    ):
        meet &= jnp.abs(position) < reach * (1 - _SLIVER)
    common = area * height
    union = 4 * (a.half_x * a.half_y * a.dz + b.half_x * b.half_y * b.dz) - common
    return jnp.where(meet, common / jnp.where(meet, union, 1), 0)


def _edge_integral(
    x0: jax.Array, y0: jax.Array, x1: jax.Array, y1: jax.Array, half_x: jax.Array, half_y: jax.Array
) -> jax.Array:
    """The integral of clamp(y, -half_y, half_y) dx over the part of the edge with |x| <= half_x."""
    xa, xb = jnp.clip(x0, -half_x, half_x), jnp.clip(x1, -half_x, half_x)
    ya = y0 + _fraction(xa - x0, x1 - x0) * (y1 - y0)
    yb = y0 + _fraction(xb - x0, x1 - x0) * (y1 - y0)
    # The mean of clamp(y) as y goes from ya to yb: below -half_y, within and above half_y for three stretches.
    ca, cb = jnp.clip(ya, -half_y, half_y), jnp.clip(yb, -half_y, half_y)
    crossings = _fraction(-half_y - ya, yb - ya) + _fraction(half_y - ya, yb - ya)
    return (xb - xa) * (cb + 0.5 * (ca - cb) * crossings)


def _fraction(part: jax.Array, whole: jax.Array) -> jax.Array:
    """part / whole in [0, 1]; anything where whole is 0, since an edge without extent is the same all along."""
    return jnp.clip(part / jnp.where(jnp.abs(whole) < 1e-30, 1, whole), 0, 1)
