"""Sampling of points: plain loops on a lattice, where distances are exact, chance, Lingvo's defects and its samples."""

from collections import Counter

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylingvo.ops import _native
from raylingvo.ops.geometry.sample_points import sample_points

needs_cpp = pytest.mark.skipif(bool(_native.why_unavailable()), reason=_native.why_unavailable() or "-")
each_implementation = pytest.mark.parametrize("implementation", ["xla", pytest.param("cpp", marks=needs_cpp)])

B, P, M, Q = 2, 60, 12, 5
DEFAULTS = {
    "center_selector": "farthest",
    "neighbor_sampler": "closest",
    "num_centers": M,
    "center_z_min": -1.0,
    "center_z_max": 1.5,
    "num_neighbors": Q,
    "max_distance": 2.0,
    "random_seed": 7,
}


def lattice(seed, num_points=P):
    rng = np.random.default_rng(seed)
    points = rng.integers(-8, 9, (B, num_points, 3)) * np.float32([0.5, 0.5, 0.25])
    return points.astype(np.float32), (rng.uniform(size=(B, num_points)) < 0.2).astype(np.float32)


def sample(points, padding, num_seeded=0, **kwargs):
    return jax.tree.map(np.asarray, sample_points(points, padding, num_seeded, **{**DEFAULTS, **kwargs}))


def candidates(points, padding, num_seeded=0):
    return [i for i in range(num_seeded, len(points)) if not padding[i] and -1 <= points[i, 2] <= 1.5]


def squared(points, i, j, dims):
    return float(((points[i, :dims] - points[j, :dims]) ** 2).sum())


def check_centers(points, padding, num_seeded, center, again=False):
    """Each center is the farthest from those before it; without seeded points, any is first."""
    left = candidates(points, padding, num_seeded)
    first = list(range(num_seeded)) or [int(center[0])]
    assert num_seeded or first[0] in left
    expected = first[:M]
    num_all = min(M, num_seeded + len(left))
    while len(expected) < num_all:
        free = left if again else [i for i in left if i not in expected]
        expected.append(max(free, key=lambda i: (min(squared(points, i, j, 2) for j in expected), -i)))
    np.testing.assert_array_equal(center, expected + [0] * (M - num_all))
    return num_all


def check_neighbors(points, padding, num_seeded, center, indices, indices_padding, closest):
    real = [i for i in range(num_seeded, len(points)) if not padding[i]]
    near = [i for i in real if squared(points, center, i, 3) <= 4]
    if closest:
        near.sort(key=lambda i: (squared(points, center, i, 3), i))
        np.testing.assert_array_equal(indices, (near + [0] * Q)[:Q])
    else:
        kept = indices[indices_padding == 0].tolist()
        assert len(set(kept)) == len(kept) and set(kept) <= set(near)
    np.testing.assert_array_equal(indices_padding, np.arange(Q) >= len(near))


@each_implementation
@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), num_seeded=st.sampled_from([0, 1, 4, 14]), closest=st.booleans())
def test_farthest_centers_and_their_neighbours(implementation, seed, num_seeded, closest):
    points, padding = lattice(seed)
    padding[1, 20:] = 1  # fewer candidates than centers
    sampler = "closest" if closest else "uniform"
    found = sample(points, padding, num_seeded, neighbor_sampler=sampler, implementation=implementation)
    assert [array.dtype for array in found] == [np.int32, np.float32, np.int32, np.float32]
    assert [array.shape for array in found] == [(B, M), (B, M), (B, M, Q), (B, M, Q)]
    for b in range(B):
        num_all = check_centers(points[b], padding[b], num_seeded, found.center[b])
        np.testing.assert_array_equal(found.center_padding[b], np.arange(M) >= num_all)
        for m in range(M):
            if m < num_all:
                check_neighbors(
                    *(points[b], padding[b], num_seeded, found.center[b, m]),
                    *(found.indices[b, m], found.indices_padding[b, m], closest),
                )
            else:
                assert not found.indices[b, m].any() and found.indices_padding[b, m].all()


@needs_cpp
@settings(max_examples=15)
@given(
    seed=st.integers(0, 10**6),
    random_seed=st.integers(0, 2**40),
    chances=st.sampled_from([("farthest", "uniform"), ("uniform", "closest"), ("uniform", "uniform")]),
    defects=st.sampled_from([(None, "auto"), ("lingvo", "auto"), ("lingvo", "hash")]),
)
def test_both_implementations_draw_the_same(seed, random_seed, chances, defects):
    points, padding = lattice(seed)
    options = {"center_selector": chances[0], "neighbor_sampler": chances[1], "random_seed": random_seed}
    options |= {"compat": defects[0], "neighbor_algorithm": defects[1]}
    xla, cpp = (sample(points, padding, **options, implementation=name) for name in ("xla", "cpp"))
    jax.tree.map(np.testing.assert_array_equal, cpp, xla)


@each_implementation
def test_uniform_is_without_preference(implementation):
    points, padding = lattice(0)
    padding[1] = padding[0]
    points[1] = points[0]
    centers, neighbors, firsts = Counter(), Counter(), set()
    rounds = 300
    for i in range(rounds):
        found = sample(
            points,
            padding,
            center_selector="uniform",
            neighbor_sampler="uniform",
            max_distance=99.0,
            random_seed=i,
            implementation=implementation,
        )
        np.testing.assert_array_equal(found.center[0], found.center[1])  # a seed means the same in every example
        assert len(set(found.center[0].tolist())) == M
        centers.update(found.center[0].tolist())
        neighbors.update(found.indices[0].ravel().tolist())
        firsts.add(int(found.center[0, 0]))
    allowed = candidates(points[0], padding[0])
    real = np.flatnonzero(padding[0] == 0)
    assert set(centers) == set(allowed) and set(neighbors) == set(real)
    for counter, drawn, among in ((centers, M, len(allowed)), (neighbors, M * Q, len(real))):
        mean = rounds * drawn / among
        # 5 standard deviations of a binomial, more than those of draws without replacement.
        assert max(abs(count - mean) for count in counter.values()) < 5 * mean**0.5
    assert len(firsts) > 20


@each_implementation
def test_without_a_seed_each_call_differs(implementation):
    points, padding = lattice(0)
    points[1], padding[1] = points[0], padding[0]
    found = [sample(points, padding, random_seed=-1, implementation=implementation) for _ in range(4)]
    assert len({center.tobytes() for each in found for center in each.center}) > 4


@each_implementation
def test_points_on_one_another_are_centers_once(implementation):
    points, padding = np.zeros((B, P, 3), np.float32), np.ones((B, P), np.float32)
    points[:, 2] = 1
    padding[:, :4] = 0
    options = {"implementation": implementation}
    found = sample(points, padding, 1, **options)
    np.testing.assert_array_equal(found.center[0], [0, 2, 1, 3] + [0] * 8)
    lingvo = sample(points, padding, 1, compat="lingvo", **options)
    np.testing.assert_array_equal(lingvo.center[0], [0, 2, 1, 1] + [0] * 8)
    np.testing.assert_array_equal(lingvo.center_padding[0], [0] * 4 + [1] * 8)


@each_implementation
@settings(max_examples=8)
@given(seed=st.integers(0, 10**6))
def test_of_hash_only_lingvo_compatibility_is_random(implementation, seed):
    points, padding = lattice(seed)
    options = {"implementation": implementation}
    plain = sample(points, padding, 2, **options)
    jax.tree.map(np.testing.assert_array_equal, sample(points, padding, 2, neighbor_algorithm="hash", **options), plain)
    hashed = {"neighbor_algorithm": "hash", "compat": "lingvo"}
    # Where the cubes hold all points, it sees them all.
    wide = {"max_distance": 20.0, "compat": "lingvo", **options}
    jax.tree.map(
        np.testing.assert_array_equal,
        sample(points, padding, 2, **wide | hashed),
        sample(points, padding, 2, **wide),
    )
    # Points in no cube around a center come before all others, in an order that depends on the seed.
    orders = set()
    for random_seed in range(3):
        found = sample(points, padding, **hashed, random_seed=random_seed, max_distance=0.5, **options)
        orders.add(found.center[0].tobytes())
        chosen = [int(found.center[0, 0])]
        left = candidates(points[0], padding[0])
        # The grid begins a side before the real points.
        cube = np.floor((points[0] - (points[0, padding[0] == 0].min(axis=0) - np.float32(0.5))) / np.float32(0.5))
        for center in found.center[0, 1:].tolist():
            unseen = [i for i in left if all(abs(cube[i] - cube[j]).max() > 1 for j in chosen)]
            assert not unseen or center in unseen
            chosen.append(center)
    assert len(orders) == 3


@each_implementation
@pytest.mark.parametrize(("x", "order"), [(1.85, [0, 1, 2]), (1.95, [0, 2, 1])])
def test_lingvos_grid_begins_before_the_first_real_point(implementation, x, order):
    # Its cubes are [-1.1, -0.1), [-0.1, 0.9), [0.9, 1.9), ... along x. From point 0 it does not see point 2 at 1.95, so
    # it takes it before point 1, which is farther away. Padding moves no cubes.
    points = np.float32([[[0, 0, 0], [-0.1, 1.99, 0], [x, 0, 0], [-0.55, 0, 0], [9, 0, 0]]])
    padding = np.float32([[0, 0, 0, 1, 1]])
    options = {"neighbor_algorithm": "hash", "compat": "lingvo", "max_distance": 1.0, "num_centers": 3}
    found = sample(points, padding, 1, implementation=implementation, **options)
    assert found.center[0].tolist() == order


@each_implementation
def test_more_neighbours_than_points(implementation):
    points, padding = lattice(1, num_points=4)
    found = sample(points, np.zeros_like(padding), max_distance=99.0, implementation=implementation)
    assert sorted(found.indices[0, 0, :4].tolist()) == [0, 1, 2, 3]
    np.testing.assert_array_equal(found.indices_padding[0, 0], [0, 0, 0, 0, 1])


@each_implementation
def test_points_that_are_not_numbers_are_padding(implementation):
    points, padding = lattice(2)
    padding[:, :30] = 1
    for options in ({}, {"compat": "lingvo", "neighbor_algorithm": "hash"}):
        expected = sample(points, padding, implementation=implementation, **options)
        assert not expected.center_padding.all() and not expected.indices_padding.all()
        broken, claimed = points.copy(), padding.copy()
        broken[:, :30, 0] = broken[:, 5:10] = np.nan
        claimed[:, :30] = 0
        found = sample(broken, claimed, implementation=implementation, **options)
        jax.tree.map(np.testing.assert_array_equal, found, expected)


@needs_cpp
def test_threads_change_nothing():
    rng = np.random.default_rng(0)
    points, padding = rng.normal(size=(4, 700, 3)), rng.integers(0, 2, (4, 700))
    options = {"num_centers": 40, "num_neighbors": 16, "implementation": "cpp"}
    for sampler in ("closest", "uniform"):
        first = sample(points, padding, 3, neighbor_sampler=sampler, **options)
        for _ in range(25):
            again = sample(points, padding, 3, neighbor_sampler=sampler, **options)
            jax.tree.map(np.testing.assert_array_equal, again, first)


def test_inside_jit():
    points, padding = lattice(3)

    @jax.jit
    def jitted(points, num_seeded, random_seed):
        return sample_points(points, padding, num_seeded, **{**DEFAULTS, "random_seed": random_seed})

    for num_seeded in (0, 3):
        found = jitted(points, num_seeded, 11)
        jax.tree.map(np.testing.assert_array_equal, found, sample(points, padding, num_seeded, random_seed=11))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"points": np.zeros((2, 3))}, r"^points must be \[B, P, 3\] with P >= 1 \(got shape \(2, 3\)\)"),
        ({"points": np.zeros((2, 3, 4))}, r"^points must be \[B, P, 3\]"),
        ({"points_padding": np.zeros((2, 3))}, r"^points_padding must be \[B, P\] = \[2, 4\] \(got shape \(2, 3\)\)"),
        ({"num_seeded_points": 5}, r"^num_seeded_points must be in \[0, P\] = \[0, 4\] \(got 5\)"),
        ({"num_seeded_points": 1, "center_selector": "uniform"}, r"^num_seeded_points must be 0 .*\(got 1\)"),
        ({"center_selector": "nearest"}, r"^center_selector must be 'farthest' or 'uniform' \(got 'nearest'\)"),
        ({"neighbor_sampler": "farthest"}, r"^neighbor_sampler must be 'uniform' or 'closest'"),
        ({"neighbor_algorithm": "tree"}, r"^neighbor_algorithm must be 'auto' or 'hash'"),
        ({"compat": "tf"}, r"^compat must be None or 'lingvo' \(got 'tf'\)"),
        ({"num_centers": 0}, r"^num_centers must be >= 1 \(got 0\)"),
        ({"num_neighbors": 0}, r"^num_neighbors must be >= 1 \(got 0\)"),
        ({"max_distance": 0}, r"^max_distance must be > 0 \(got 0\)"),
    ],
)
def test_arguments_that_are_refused(changed, message):
    good = {**DEFAULTS, "points": np.zeros((2, 4, 3)), "points_padding": np.zeros((2, 4))}
    with pytest.raises(ValueError, match=message):
        sample_points(**{**good, **changed})


@pytest.mark.parametrize(
    ("implementation", "compat"),
    [("xla", None), pytest.param("cpp", None, marks=needs_cpp), pytest.param("cpp", "lingvo", marks=needs_cpp)],
)
def test_lingvo_samples_the_same(implementation, compat, lingvo_vectors):
    cases = [(case, arrays) for case, arrays in lingvo_vectors("f_car") if case["op"] == "sample_points"]
    assert cases
    for case, arrays in cases:
        points, padding = arrays["points"], arrays["points_padding"]
        found = sample_points(
            points,
            padding,
            case["num_seeded_points"],
            **{name: case[name] for name in [*DEFAULTS, "neighbor_algorithm"]},
            compat=compat,
            implementation=implementation,
        )
        found = jax.tree.map(np.asarray, found)
        np.testing.assert_array_equal(found.center_padding, arrays["out_center_padding"], err_msg=case["id"])
        if case["deterministic"]:
            np.testing.assert_array_equal(found.center, arrays["out_center"], err_msg=case["id"])
            ours = np.sort(np.where(found.indices_padding == 0, found.indices, -1))
            theirs = np.sort(np.where(arrays["out_indices_padding"] == 0, arrays["out_indices"], -1))
            np.testing.assert_array_equal(ours, theirs, err_msg=case["id"])
        else:
            # Both begin at random, and go on by the same rule.
            assert case["num_seeded_points"] == 0
            for center in (found.center, arrays["out_center"]):
                for b in range(len(points)):
                    chosen = center[b][arrays["out_center_padding"][b] == 0]
                    squared_PxM = ((points[b, :, None, :2] - points[b, chosen][None, :, :2]) ** 2).sum(axis=-1)
                    for m in range(1, len(chosen)):
                        nearest_P = squared_PxM[:, :m].min(axis=1)
                        assert nearest_P[chosen[m]] >= nearest_P[padding[b] == 0].max() - 1e-4, case["id"]
