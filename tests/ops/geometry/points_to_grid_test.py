"""A grid of points: a plain loop, points on the edges of cells, and Lingvo's grids."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylingvo.ops import _native
from raylingvo.ops.geometry.points_to_grid import points_to_grid

needs_cpp = pytest.mark.skipif(bool(_native.why_unavailable()), reason=_native.why_unavailable() or "-")
each_implementation = pytest.mark.parametrize("implementation", ["xla", pytest.param("cpp", marks=needs_cpp)])

RANGES = (-1.0, 2.0), (0.0, 0.7), (-0.3, 0.3)
INTERVALS = 10, 7, 3


def plain(points, num_per_cell):
    """What the docstring says, in the order that it leaves open."""
    cells = np.zeros((*INTERVALS, num_per_cell, points.shape[1]), np.float32)
    count = np.zeros(INTERVALS, int)
    for i in np.random.RandomState(16).permutation(len(points)):
        cell = []
        for v, (low, high), intervals in zip(points[i], RANGES, INTERVALS, strict=False):
            width = (np.float32(high) - np.float32(low)) / np.float32(intervals)
            cell.append(int(np.floor((v - np.float32(low)) / width)))
        cell = tuple(cell)
        if all(0 <= c < intervals for c, intervals in zip(cell, INTERVALS, strict=True)) and count[cell] < num_per_cell:
            cells[*cell, count[cell]] = points[i]
            count[cell] += 1
    return cells, count


@each_implementation
@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), num_per_cell=st.sampled_from([1, 3]), on_edges=st.booleans())
def test_it_is_the_plain_loop(implementation, seed, num_per_cell, on_edges):
    rng = np.random.default_rng(seed)
    points = rng.uniform(-1.1, 2.1, (300, 4)) * [1, 0.4, 0.2, 1]
    if on_edges:
        points = np.round(points, 1)
    points = points.astype(np.float32)
    grid = points_to_grid(points, num_per_cell, *INTERVALS, *RANGES, implementation=implementation)
    cells, count = plain(points, num_per_cell)
    assert count.sum() > 50
    np.testing.assert_array_equal(grid.num_points, count)
    np.testing.assert_array_equal(grid.output_points, cells)
    assert (grid.output_points.dtype, grid.num_points.dtype) == (jnp.float32, jnp.int32)


@each_implementation
def test_centers_and_upper_bounds(implementation):
    points = [[0, 0, 0, 1], [2, 0, 0, 2], [1.99, 0, 0, 3], [-0.01, 0, 0, 4], [np.nan, 0, 0, 5], [0, 1, 0, 6]]
    grid = points_to_grid(points, 2, 2, 1, 1, (0, 2), (0, 1), (-1, 1), implementation=implementation)
    np.testing.assert_array_equal(grid.grid_centers.reshape(2, 3), [[0.5, 0.5, 0], [1.5, 0.5, 0]])
    np.testing.assert_array_equal(grid.num_points.ravel(), [1, 1])
    np.testing.assert_array_equal(
        grid.output_points.reshape(2, 2, 4), np.float32([[[0, 0, 0, 1], [0] * 4], [[1.99, 0, 0, 3], [0] * 4]])
    )


@each_implementation
def test_no_points(implementation):
    grid = points_to_grid(np.zeros((0, 3)), 2, 2, 1, 1, (0, 2), (0, 1), (-1, 1), implementation=implementation)
    assert grid.output_points.shape == (2, 1, 1, 2, 3)
    assert not grid.output_points.any() and not grid.num_points.any()


@each_implementation
def test_a_crowded_cell_keeps_points_from_all_over_the_scan(implementation):
    points = np.zeros((1000, 4), np.float32)
    points[:, 3] = np.arange(1000)
    grid = points_to_grid(points, 50, 1, 1, 1, (-1, 1), (-1, 1), (-1, 1), implementation=implementation)
    assert grid.num_points.item() == 50
    kept = np.asarray(grid.output_points)[0, 0, 0, :, 3]
    assert len(set(kept.tolist())) == 50
    assert np.histogram(kept, 5, (0, 1000))[0].min() > 2


@needs_cpp
def test_threads_change_nothing():
    points = np.random.default_rng(0).uniform(-1.1, 2.1, (30_000, 5)).astype(np.float32)
    first = points_to_grid(points, 3, *INTERVALS, *RANGES, implementation="cpp")
    for _ in range(50):
        again = points_to_grid(points, 3, *INTERVALS, *RANGES, implementation="cpp")
        jax.tree.map(np.testing.assert_array_equal, again, first)


def test_inside_jit():
    points = np.random.default_rng(0).uniform(-1, 2, (300, 4)).astype(np.float32)
    expected = points_to_grid(points, 3, *INTERVALS, *RANGES)
    grid = jax.jit(lambda points: points_to_grid(points, 3, *INTERVALS, *RANGES))(points)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), grid, expected)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"points": np.zeros(3)}, r"^points must be \[n, d\] with d >= 3 \(got shape \(3,\)\)"),
        ({"points": np.zeros((3, 2))}, r"^points must be \[n, d\] with d >= 3"),
        ({"num_points_per_cell": 0}, r"^num_points_per_cell must be >= 1 \(got 0\)"),
        ({"y_intervals": 0}, r"^y_intervals must be >= 1 \(got 0\)"),
        ({"z_range": (1, 1)}, r"^z_range must be \(min, max\) with min < max \(got \(1, 1\)\)"),
        ({"x_range": (0, 1, 2)}, r"^x_range must be"),
        ({"num_points_per_cell": 2**31}, r"^num_points_per_cell must be lower: 2147483648 places"),
    ],
)
def test_arguments_that_are_refused(changed, message):
    good = dict.fromkeys(("num_points_per_cell", "x_intervals", "y_intervals", "z_intervals"), 1)
    good |= dict.fromkeys(("x_range", "y_range", "z_range"), (0, 1)) | {"points": np.zeros((2, 3))}
    with pytest.raises(ValueError, match=message):
        points_to_grid(**{**good, **changed})


@each_implementation
def test_lingvo_makes_the_same_grid(implementation, lingvo_vectors):
    cases = [(case, arrays) for case, arrays in lingvo_vectors("f_car") if case["op"] == "point_to_grid"]
    assert cases
    for case, arrays in cases:
        names = [f"{axis}_{what}" for what in ("intervals", "range") for axis in "xyz"]
        grid = points_to_grid(
            arrays["points"],
            case["num_points_per_cell"],
            **{name: case[name] for name in names},
            implementation=implementation,
        )
        np.testing.assert_array_equal(grid.num_points, arrays["out_num_points"], err_msg=case["id"])
        np.testing.assert_allclose(grid.grid_centers, arrays["out_centers"], atol=1e-5, err_msg=case["id"])
        # Which points of a cell are kept depends on the C++ library that Lingvo was built with.
        for cell in np.argwhere(arrays["out_num_points"] < case["num_points_per_cell"]):
            ours, theirs = (np.asarray(points)[*cell] for points in (grid.output_points, arrays["out_points"]))
            assert sorted(ours.tolist()) == sorted(theirs.tolist()), case["id"]
