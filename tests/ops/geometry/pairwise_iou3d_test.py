"""Overlap of boxes: analytic cases, symmetries, clipped polygons, counts of random points, Lingvo's figures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylingvo.ops import _native
from raylingvo.ops.geometry.pairwise_iou3d import pairwise_iou3d

needs_cpp = pytest.mark.skipif(bool(_native.why_unavailable()), reason=_native.why_unavailable() or "-")
each_implementation = pytest.mark.parametrize("implementation", ["xla", pytest.param("cpp", marks=needs_cpp)])

PI = np.pi
N = 24  # boxes of most tests: one shape, one compilation


def random_boxes(rng, n=N, spread=4.0):
    sides = rng.uniform(0.3, 5, (n, 3))
    return np.concatenate(
        [rng.uniform(-spread, spread, (n, 2)), rng.uniform(-1, 1, (n, 1)), sides, rng.uniform(-7, 7, (n, 1))], axis=1
    ).astype(np.float32)


def corners(box):
    cx, cy, _, dx, dy, _, heading = (float(v) for v in box)
    along, across = np.array([np.cos(heading), np.sin(heading)]), np.array([-np.sin(heading), np.cos(heading)])
    signs = [(-1, -1), (1, -1), (1, 1), (-1, 1)]
    return [np.array([cx, cy]) + sx * dx / 2 * along + sy * dy / 2 * across for sx, sy in signs]


def clipped_iou(a, b):
    """Sutherland and Hodgman's clipping, in float64: what the op does not do."""
    polygon = corners(a)
    edges = corners(b)
    for p, q in zip(edges, edges[1:] + edges[:1], strict=True):
        normal = np.array([p[1] - q[1], q[0] - p[0]])  # inwards
        inside = [float(normal @ (v - p)) for v in polygon]
        clipped = []
        for i, v in enumerate(polygon):
            w, here, there = polygon[i - 1], inside[i], inside[i - 1]
            if (here > 0) != (there > 0):
                clipped.append(w + (v - w) * (there / (there - here)))
            if here > 0:
                clipped.append(v)
        polygon = clipped
    if len(polygon) < 3:
        return 0.0
    x, y = np.array(polygon).T
    area = 0.5 * float(x @ np.roll(y, -1) - y @ np.roll(x, -1))
    a, b = a.astype(np.float64), b.astype(np.float64)
    height = min(a[2] + a[5] / 2, b[2] + b[5] / 2) - max(a[2] - a[5] / 2, b[2] - b[5] / 2)
    common = max(area, 0) * max(height, 0)
    return common / (a[3:6].prod() + b[3:6].prod() - common)


def one(a, b, implementation):
    """Of two boxes, at shapes that other tests compile too."""
    boxes = np.zeros((2, N, 7), np.float32)
    boxes[0, 0], boxes[1, 0] = a, b
    return float(pairwise_iou3d(*boxes, implementation=implementation)[0, 0])


@each_implementation
@settings(max_examples=10)
@given(seed=st.integers(0, 10**6))
def test_it_is_that_of_clipped_polygons(implementation, seed):
    a, b = (random_boxes(np.random.default_rng(seed + i)) for i in range(2))
    expected = [[clipped_iou(x, y) for y in b] for x in a]
    np.testing.assert_allclose(pairwise_iou3d(a, b, implementation=implementation), expected, atol=2e-6)


@each_implementation
@settings(max_examples=10)
@given(seed=st.integers(0, 10**6))
def test_corners_on_edges_and_edges_on_edges(implementation, seed):
    rng = np.random.default_rng(seed)
    a, b = (random_boxes(rng) for _ in range(2))
    for boxes in (a, b):
        boxes[:, :6] = rng.integers(1, 5, (N, 6)) / 2
        boxes[:, 6] = rng.integers(-4, 5, N) * np.float32(PI / 4)
    expected = [[clipped_iou(x, y) for y in b] for x in a]
    np.testing.assert_allclose(pairwise_iou3d(a, b, implementation=implementation), expected, atol=2e-6)


@each_implementation
def test_it_is_the_share_of_random_points(implementation):
    a, b = (random_boxes(np.random.default_rng(i), spread=0.8) for i in (3, 4))
    points = np.random.default_rng(5).uniform(-6, 6, (400_000, 3))

    def inside(box):
        offset = points - box[:3]
        c, s = np.cos(box[6]), np.sin(box[6])
        along, across = c * offset[:, 0] + s * offset[:, 1], c * offset[:, 1] - s * offset[:, 0]
        return (abs(along) < box[3] / 2) & (abs(across) < box[4] / 2) & (abs(offset[:, 2]) < box[5] / 2)

    iou = pairwise_iou3d(a, b, implementation=implementation)
    for i in range(4):
        in_a, in_b = inside(a[i]), inside(b[i])
        # 4 standard deviations.
        union = (in_a | in_b).sum()
        assert abs((in_a & in_b).sum() / union - iou[i, i]) < 2 / union**0.5


@each_implementation
def test_boxes_equal_and_contained(implementation):
    a = random_boxes(np.random.default_rng(0))
    b = a.copy()
    b[:, 3:6] /= 2
    np.testing.assert_allclose(np.diag(pairwise_iou3d(a, a, implementation=implementation)), 1, atol=1e-6)
    np.testing.assert_allclose(np.diag(pairwise_iou3d(a, b, implementation=implementation)), 1 / 8, rtol=1e-5)


@each_implementation
def test_a_regular_octagon(implementation):
    area = 2 * (2**0.5 - 1)  # in common, of a unit square and one turned by 45 degrees
    iou = one([3, 4, 5, 1, 1, 1, 0.2], [3, 4, 5, 1, 1, 1, 0.2 + PI / 4], implementation)
    assert iou == pytest.approx(area / (2 - area), abs=1e-6)


@each_implementation
@pytest.mark.parametrize(
    ("b", "expected"),
    [
        ([1, 0, 0, 2, 2, 2, 0], 1 / 3),
        ([1, 1, 1, 2, 2, 2, 0], 1 / 15),
        ([0, 0, 1.5, 2, 2, 2, PI / 2], 2 / 14),
        ([2, 0, 0, 2, 2, 2, 0], 0),  # a side
        ([2, 2, 0, 2, 2, 2, 0], 0),  # an edge
        ([0, 0, 2, 2, 2, 2, 0.3], 0),  # above
        ([1 + 2**0.5, 0, 0, 2, 2, 2, PI / 4], 0),  # a corner on a side
        ([100, 0, 0, 2, 2, 2, 0], 0),
        ([0, 0, 0, 0, 2, 2, 0], 0),
        ([0, 0, 0, 2, 0, 2, 0], 0),
        ([0, 0, 0, 2, 2, 0, 0], 0),
        ([0, 0, 0, 2, 2, -1, 0], 0),
        ([0, 0, 0, -2, -2, 2, 0], 0),
        ([0, 0, 0, 9.99e-4, 2, 2, 0], 0),
        ([0, 0, 0, 1e-3, 2, 2, 0], 5e-4),  # float32(1e-3) is just above 1e-3
        ([0, 0, 0, 1e6, 2, 2, 0], 0),
        ([0, 0, 0, np.nan, 2, 2, 0], 0),
        ([np.nan, 0, 0, 2, 2, 2, 0], 0),
        ([0, 0, 0, 2, 2, 2, np.nan], 0),
    ],
)
def test_with_a_cube_of_side_2(implementation, b, expected):
    a = [0, 0, 0, 2, 2, 2, 0]
    assert one(a, b, implementation) == pytest.approx(expected, abs=1e-6)
    assert one(b, a, implementation) == pytest.approx(expected, abs=1e-6)


@each_implementation
@pytest.mark.parametrize("b", [[2, 0, 0, 2, 2, 2, 0], [0, 2, 0, 2, 2, 2, 0], [0, 0, 2, 2, 2, 2, 0]])
def test_boxes_that_touch_have_exactly_nothing_in_common(implementation, b):
    assert one([0, 0, 0, 2, 2, 2, 0], b, implementation) == 0


@each_implementation
def test_it_stays_with_other_names_for_the_same_boxes(implementation):
    a, b = (random_boxes(np.random.default_rng(i)) for i in (6, 7))

    def iou(a, b):
        return np.asarray(pairwise_iou3d(a, b, implementation=implementation))

    expected = iou(a, b)
    assert 0.1 < (expected > 0).mean() < 0.9
    np.testing.assert_allclose(iou(b, a).T, expected, atol=1e-6)
    for turn, sides in ((2 * PI, [3, 4]), (PI, [3, 4]), (PI / 2, [4, 3])):
        turned = b.copy()
        turned[:, 6] += np.float32(turn)
        turned[:, 3:5] = b[:, sides]
        np.testing.assert_allclose(iou(a, turned), expected, atol=5e-6)
    moved = [boxes + np.array([512, -1024, 256, 0, 0, 0, 0], np.float32) for boxes in (a, b)]
    np.testing.assert_allclose(iou(*moved), expected, atol=1e-4)  # the boxes themselves are rounded there


@each_implementation
def test_far_away_it_is_as_exact(implementation):
    a, b = (random_boxes(np.random.default_rng(i)) for i in (8, 9))
    for boxes in (a, b):
        boxes[:, :3] = np.round(boxes[:, :3] * 4) / 4  # exact there too
    expected = pairwise_iou3d(a, b, implementation=implementation)
    moved = [boxes + np.array([4096, -8192, 1024, 0, 0, 0, 0], np.float32) for boxes in (a, b)]
    np.testing.assert_allclose(pairwise_iou3d(*moved, implementation=implementation), expected, atol=1e-6)


@each_implementation
@pytest.mark.parametrize(("n", "m"), [(0, 3), (3, 0), (1, 130)])
def test_any_number_of_boxes(implementation, n, m):
    a, b = (random_boxes(np.random.default_rng(i), size) for i, size in enumerate((n, m)))
    iou = pairwise_iou3d(a, b, implementation=implementation)
    assert (iou.shape, iou.dtype) == ((n, m), jnp.float32)
    np.testing.assert_allclose(iou, np.reshape([clipped_iou(x, y) for x in a for y in b], (n, m)), atol=2e-6)


@needs_cpp
def test_threads_change_nothing():
    a, b = (random_boxes(np.random.default_rng(i), 500) for i in (10, 11))
    first = pairwise_iou3d(a, b, implementation="cpp")
    for _ in range(50):
        np.testing.assert_array_equal(pairwise_iou3d(a, b, implementation="cpp"), first)


def test_inside_jit_and_with_gradients():
    a, b = (jnp.asarray(random_boxes(np.random.default_rng(i))) for i in (0, 1))
    np.testing.assert_allclose(jax.jit(pairwise_iou3d)(a, b), pairwise_iou3d(a, b), atol=1e-6)

    def overlap(b):
        return pairwise_iou3d(a, b, implementation="xla").sum()

    gradient = jax.grad(overlap)(b)
    step = jnp.zeros_like(b).at[0, 0].set(1e-2)
    slope = (overlap(b + step) - overlap(b - step)) / 2e-2
    np.testing.assert_allclose(gradient[0, 0], slope, rtol=2e-2)
    assert jnp.isfinite(jax.grad(lambda b: pairwise_iou3d(a, b, implementation="xla").sum())(a)).all()


@pytest.mark.parametrize("shape", [(7,), (2, 6), (1, 2, 7)])
def test_shapes_that_are_refused(shape):
    with pytest.raises(ValueError, match=r"^b must be \[n, 7\]: cx, .*\(got shape"):
        pairwise_iou3d(np.zeros((2, 7)), np.zeros(shape))


@each_implementation
def test_lingvo_computes_the_same(implementation, lingvo_vectors):
    cases = [(case, arrays) for case, arrays in lingvo_vectors("f_car") if case["op"] == "pairwise_iou3d"]
    assert cases
    for case, arrays in cases:
        iou = pairwise_iou3d(arrays["boxes_a"], arrays["boxes_b"], implementation=implementation)
        np.testing.assert_allclose(iou, arrays["out"], atol=5e-5, err_msg=case["id"])


@needs_cpp
@pytest.mark.parametrize("ratio", [300, 10_000])
def test_long_boxes_agree_as_well_as_is_promised(ratio):
    rng = np.random.default_rng(ratio)
    a = np.zeros((N, 7), np.float32)
    a[:, :2], a[:, 3], a[:, 4:6], a[:, 6] = rng.normal(size=(N, 2)) / 3, ratio, 1, rng.uniform(0, 6, N)
    b = a + np.pad(rng.normal(size=(N, 3)) / 3, ((0, 0), (0, 4))).astype(np.float32)
    b[:, 6] += rng.normal(size=N) / (3 * ratio)
    xla, cpp = (np.asarray(pairwise_iou3d(a, b, implementation=name)) for name in ("xla", "cpp"))
    assert cpp.max() > 0.3
    np.testing.assert_allclose(xla, cpp, atol=max(1e-5, 5e-8 * ratio))
