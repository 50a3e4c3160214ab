"""Centers of a point cloud and the neighbours of each (Lingvo: tasks/car/ops, SamplePoints)."""

from __future__ import annotations

import functools
import secrets
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from raylingvo.ops._native import Implementation, call, dispatch

# B examples of P points, M centers, Q neighbours of a center.

# Centers whose distances to all points are in memory at once.
_CENTERS_AT_ONCE = 16


class SampledPoints(NamedTuple):
    """What `sample_points` returns: rows of points.

    center: i32[B, M]. center_padding: f32[B, M], 1.0 where there is none (center 0). indices: i32[B, M, Q], the
    neighbours of a center. indices_padding: f32[B, M, Q], 1.0 where there is none (index 0).
    """

    center: jax.Array
    center_padding: jax.Array
    indices: jax.Array
    indices_padding: jax.Array


def sample_points(
    points: Any,
    points_padding: Any,
    num_seeded_points: Any = 0,
    *,
    center_selector: Literal["farthest", "uniform"],
    neighbor_sampler: Literal["uniform", "closest"],
    neighbor_algorithm: Literal["auto", "hash"] = "auto",
    num_centers: int,
    center_z_min: float,
    center_z_max: float,
    num_neighbors: int,
    max_distance: float,
    random_seed: Any = -1,
    compat: Literal["lingvo"] | None = None,
    implementation: Implementation = "auto",
) -> SampledPoints:
    """Selects centers, and for each center points within max_distance of it.

    Candidates are real points, not seeded, with center_z_min <= z <= center_z_max. Centers are first the seeded points,
    rows 0 to num_seeded_points - 1, then candidates, each once, until there are none. "farthest" takes the candidate
    farthest in x and y from the centers so far (z does not count; the lower row of equal ones), "uniform" any, the
    first center without seeded points too.

    Neighbours are real points, not seeded, at most max_distance away in x, y and z; the center is one of its own.
    "closest" takes the nearest, nearest first (the lower row of equal ones), "uniform" any.

    Two defects of Lingvo are fixed, and reproduced by compat="lingvo": where all candidates that are left lie on
    centers, it selects one twice; with neighbor_algorithm="hash", "farthest" sees only the 27 cubes of side
    max_distance around each center (of a grid that begins max_distance before the real points, seeded ones included),
    and takes points elsewhere at random before all others. Without compat, the algorithm makes no difference. Lingvo's
    random numbers are not reproduced.

    Args:
      points: f32[B, P, 3], P >= 1: x, y, z. One with a NaN counts as padded.
      points_padding: f32[B, P], 0.0 for real points.
      num_seeded_points: integer or i32[], in [0, P]; 0 for "uniform" centers. The padding of seeded points is not
        looked at.
      center_selector, neighbor_sampler, neighbor_algorithm: see above.
      num_centers, num_neighbors: M >= 1 and Q >= 1.
      center_z_min, center_z_max, max_distance: in the unit of points; max_distance > 0.
      random_seed: integer or i32[]. The same numbers for every example of the batch, so that the result of one depends
        on nothing else; -1: others for each and at each call (inside jit: drawn when it is traced). Traced it may have
        any value, and each is a seed: -1 too then stands for one that stays the same.
      compat: None or "lingvo", see above.
      implementation: see raylingvo.ops; both give the same, up to rounding where distances are equal to 1e-6.

    Raises:
      ValueError: an argument is out of range, or an unknown implementation.
      RuntimeError: implementation="cpp" where there is none.
    """
    points_BxPx3 = jnp.asarray(points, jnp.float32)
    if points_BxPx3.ndim != 3 or points_BxPx3.shape[2] != 3 or points_BxPx3.shape[1] == 0:
        raise ValueError(f"points must be [B, P, 3] with P >= 1 (got shape {points_BxPx3.shape})")
    padding_BxP = jnp.asarray(points_padding, jnp.float32)
    if padding_BxP.shape != points_BxPx3.shape[:2]:
        raise ValueError(
            f"points_padding must be [B, P] = {list(points_BxPx3.shape[:2])} (got shape {padding_BxP.shape})"
        )
    for name, value, choices in (
        ("center_selector", center_selector, ("farthest", "uniform")),
        ("neighbor_sampler", neighbor_sampler, ("uniform", "closest")),
        ("neighbor_algorithm", neighbor_algorithm, ("auto", "hash")),
        ("compat", compat, (None, "lingvo")),
    ):
        if value not in choices:
            raise ValueError(f"{name} must be {choices[0]!r} or {choices[1]!r} (got {value!r})")
    for name, value in (("num_centers", num_centers), ("num_neighbors", num_neighbors)):
        if value < 1:
            raise ValueError(f"{name} must be >= 1 (got {value})")
    if not max_distance > 0:
        raise ValueError(f"max_distance must be > 0 (got {max_distance})")
    num_points = points_BxPx3.shape[1]
    if center_selector == "uniform" and (isinstance(num_seeded_points, Tracer) or num_seeded_points != 0):
        raise ValueError(f"num_seeded_points must be 0 if center_selector is 'uniform' (got {num_seeded_points})")
    if not isinstance(num_seeded_points, Tracer) and not 0 <= num_seeded_points <= num_points:
        raise ValueError(f"num_seeded_points must be in [0, P] = [0, {num_points}] (got {num_seeded_points})")

    num_seeded = jnp.clip(jnp.asarray(num_seeded_points, jnp.int32), 0, num_points)
    seed_B = _seeds(random_seed, len(points_BxPx3))
    max_distance = jnp.float32(max_distance)
    start_BxP, real_BxP = _candidates(
        points_BxPx3, padding_BxP, num_seeded, seed_B, np.float32(center_z_min), np.float32(center_z_max)
    )
    is_farthest, is_lingvo = center_selector == "farthest", compat == "lingvo"
    nearby = is_farthest and is_lingvo and neighbor_algorithm == "hash"
    cube_BxPx3 = _cubes(points_BxPx3, padding_BxP, max_distance) if nearby else jnp.zeros((0, 0, 3), jnp.int32)
    return SampledPoints(
        *dispatch(
            implementation,
            xla=_sample_xla,
            cpp=_sample_cpp,
            args=(points_BxPx3, start_BxP, real_BxP, num_seeded, seed_B, max_distance, cube_BxPx3),
            num_centers=num_centers,
            num_neighbors=num_neighbors,
            farthest=is_farthest,
            closest=neighbor_sampler == "closest",
            again=is_farthest and is_lingvo,
            nearby=nearby,
        )
    )


def _seeds(random_seed: Any, batch_size: int) -> jax.Array:
    """u32[B]"""
    if isinstance(random_seed, Tracer):
        return jnp.broadcast_to(random_seed.astype(jnp.uint32), (batch_size,))
    if random_seed == -1:
        return jnp.asarray(np.array([secrets.randbits(32) for _ in range(batch_size)], np.uint32))
    return jnp.full(batch_size, int(random_seed) % 2**32, jnp.uint32)


def _hash(value: jax.Array) -> jax.Array:
    """u32 -> u32, every bit of which depends on every bit of value (C. Wellons' lowbias32); as in sample_points.cc."""
    value = (value ^ (value >> 16)) * jnp.uint32(0x7FEB352D)
    value = (value ^ (value >> 15)) * jnp.uint32(0x846CA68B)
    return value ^ (value >> 16)


@jax.jit
def _candidates(
    points_BxPx3: jax.Array,
    padding_BxP: jax.Array,
    num_seeded: jax.Array,
    seed_B: jax.Array,
    z_min: jax.Array,
    z_max: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """f32[B, P], the squared distance from the centers at the start, at random in [1e30, 1.1e30), -1 where there is no
    candidate; and bool[B, P], points that are real and not seeded."""
    row_P = jnp.arange(points_BxPx3.shape[1], dtype=jnp.uint32)
    random_BxP = _hash(_hash(seed_B)[:, None] + row_P[None]) >> 12
    # By bits, and not as 1e30 + random * 1e29, which the compiler may round in more than one way.
    start_BxP = jax.lax.bitcast_convert_type(jnp.float32(1e30), jnp.uint32) + random_BxP
    real_BxP = (padding_BxP == 0) & (row_P[None] >= num_seeded) & ~jnp.isnan(points_BxPx3).any(axis=2)
    z_BxP = points_BxPx3[:, :, 2]
    candidate_BxP = real_BxP & (z_BxP >= z_min) & (z_BxP <= z_max)
    return jnp.where(candidate_BxP, jax.lax.bitcast_convert_type(start_BxP, jnp.float32), -1), real_BxP


@jax.jit
def _cubes(points_BxPx3: jax.Array, padding_BxP: jax.Array, side: jax.Array) -> jax.Array:
    """i32[B, P, 3], the cube of Lingvo's grid that each point is in."""
    is_real_BxPx1 = (padding_BxP == 0)[..., None] & ~jnp.isnan(points_BxPx3).any(axis=2, keepdims=True)
    origin_Bx1x3 = jnp.where(is_real_BxPx1, points_BxPx3, jnp.inf).min(axis=1, keepdims=True) - side
    return jnp.floor((points_BxPx3 - origin_Bx1x3) / side).astype(jnp.int32)


@functools.partial(jax.jit, static_argnames=("num_centers", "num_neighbors", "farthest", "closest", "again", "nearby"))
def _sample_xla(
    points_BxPx3: jax.Array,
    start_BxP: jax.Array,
    real_BxP: jax.Array,
    num_seeded: jax.Array,
    seed_B: jax.Array,
    max_distance: jax.Array,
    cube_BxPx3: jax.Array,
    *,
    num_centers: int,
    num_neighbors: int,
    farthest: bool,
    closest: bool,
    again: bool,
    nearby: bool,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    num_points = points_BxPx3.shape[1]

    def select(points_Px3: jax.Array, start_P: jax.Array, cube_Px3: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        num_all = num_seeded + (start_P >= 0).sum()

        def step(i: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            distance_P, center_M = carry
            center = jnp.where(i < num_seeded, i, distance_P.argmax().astype(jnp.int32))
            updated_P = distance_P
            if farthest:
                offset_Px2 = points_Px3[:, :2] - points_Px3[center, :2][None]
                squared_P = (offset_Px2**2).sum(axis=1)
                updated_P = jnp.where(squared_P < distance_P, squared_P, distance_P)
            if cube_Px3 is not None:
                seen_P = (jnp.abs(cube_Px3 - cube_Px3[center][None]) <= 1).all(axis=1)
                updated_P = jnp.where(seen_P, updated_P, distance_P)
            if not again:
                updated_P = updated_P.at[center].set(-1)
            return updated_P, center_M.at[i].set(jnp.where(i < num_all, center, 0))

        _, center_M = jax.lax.fori_loop(0, num_centers, step, (start_P, jnp.zeros(num_centers, jnp.int32)))
        return center_M, jnp.arange(num_centers) < num_all

    k = min(num_neighbors, num_points)
    row_P = jnp.arange(num_points, dtype=jnp.uint32)

    def find(
        points_Px3: jax.Array, real_P: jax.Array, seed: jax.Array, center_M: jax.Array, is_center_M: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        def of_center(args: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            i, center, is_center = args
            distance_P = ((points_Px3 - points_Px3[center][None]) ** 2).sum(axis=1)
            found_P = real_P & (distance_P <= max_distance**2) & is_center
            if closest:
                rank_P = jnp.where(found_P, -distance_P, -jnp.inf)
            else:
                random_P = _hash(_hash(seed ^ _hash(i + 1)) + row_P) >> 1
                rank_P = jnp.where(found_P, random_P.astype(jnp.int32), -1)
            _, index_k = jax.lax.top_k(rank_P, k)
            return index_k, found_P[index_k]

        args = jnp.arange(num_centers, dtype=jnp.uint32), center_M, is_center_M
        return jax.lax.map(of_center, args, batch_size=min(num_centers, _CENTERS_AT_ONCE))

    center_BxM, is_center_BxM = jax.vmap(select)(points_BxPx3, start_BxP, cube_BxPx3 if nearby else None)
    index_BxMxk, found_BxMxk = jax.lax.map(
        lambda args: find(*args), (points_BxPx3, real_BxP, seed_B, center_BxM, is_center_BxM)
    )
    rest = ((0, 0), (0, 0), (0, num_neighbors - k))
    return (
        center_BxM,
        1 - is_center_BxM.astype(jnp.float32),
        jnp.pad(jnp.where(found_BxMxk, index_BxMxk, 0), rest),
        jnp.pad(1 - found_BxMxk.astype(jnp.float32), rest, constant_values=1),
    )


@functools.partial(jax.jit, static_argnames=("num_centers", "num_neighbors", "farthest", "closest", "again", "nearby"))
def _sample_cpp(
    points_BxPx3: jax.Array,
    start_BxP: jax.Array,
    real_BxP: jax.Array,
    num_seeded: jax.Array,
    seed_B: jax.Array,
    max_distance: jax.Array,
    cube_BxPx3: jax.Array,
    *,
    num_centers: int,
    num_neighbors: int,
    farthest: bool,
    closest: bool,
    again: bool,
    nearby: bool,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    shape = len(points_BxPx3), num_centers
    results = tuple(
        jax.ShapeDtypeStruct(dims, dtype)
        for dims in (shape, (*shape, num_neighbors))
        for dtype in (jnp.int32, jnp.float32)
    )
    return call(
        "RaylingvoSamplePoints",
        results,
        points_BxPx3,
        start_BxP,
        real_BxP,
        num_seeded,
        seed_B,
        max_distance,
        cube_BxPx3,
        farthest=np.bool_(farthest),
        closest=np.bool_(closest),
        again=np.bool_(again),
        nearby=np.bool_(nearby),
    )
