"""Average precision: plain loops over what KITTI's and VOC's rules say, cases worked by hand, and Lingvo's figures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylingvo.ops import _native
from raylingvo.ops.geometry.average_precision3d import average_precision3d
from raylingvo.ops.geometry.pairwise_iou3d import pairwise_iou3d

needs_cpp = pytest.mark.skipif(bool(_native.why_unavailable()), reason=_native.why_unavailable() or "-")
each_implementation = pytest.mark.parametrize("implementation", ["xla", pytest.param("cpp", marks=needs_cpp)])

NAMES = (
    *("groundtruth_bbox", "groundtruth_imageid", "groundtruth_ignore"),
    *("prediction_bbox", "prediction_imageid", "prediction_ignore", "prediction_score"),
)


def cubes(*xs):
    return np.array([[x, 0, 0, 2, 2, 2, 0] for x in xs], np.float32).reshape(-1, 7)


def scene(truths, predictions):
    """Arguments from (x, image, ignore) of cubes, and (x, image, ignore, score)."""
    truths, predictions = list(zip(*truths, strict=True)) or [()] * 3, list(zip(*predictions, strict=True)) or [()] * 4
    columns = [cubes(*truths[0]), *truths[1:], cubes(*predictions[0]), *predictions[1:]]
    dtypes = np.float32, np.int32, np.int32, np.float32, np.int32, np.int32, np.float32
    return {name: np.array(*given) for name, *given in zip(NAMES, columns, dtypes, strict=True)}


def random_scene(seed, n=18, m=30):
    """Cubes in a row in 3 images: overlaps are in steps of 0.3 of a side, and scores in a few steps."""
    rng = np.random.default_rng(seed)

    def places(size):
        return zip((rng.integers(0, 40, size) * 0.6).tolist(), rng.integers(0, 3, size).tolist(), strict=True)

    ignores = rng.choice(3, n, p=[0.6, 0.2, 0.2]).tolist()
    truths = [(*place, ignore) for place, ignore in zip(places(n), ignores, strict=True)]
    scores = rng.permutation(np.arange(m) - 3) / m  # distinct, some negative
    predictions = [
        (*place, int(rng.uniform() < 0.2), score) for place, score in zip(places(m), scores.tolist(), strict=True)
    ]
    return scene(truths, predictions)


def plain_match(args, iou, threshold, score_threshold, best_of):
    """{prediction: ground truth}: each box in turn, in all images at once, since boxes of others are too far."""
    match = {}
    for g in range(len(iou)):
        if args["groundtruth_ignore"][g] == 2:
            continue
        allowed = [
            p
            for p in range(iou.shape[1])
            if p not in match and iou[g, p] > threshold and args["prediction_score"][p] >= score_threshold
        ]
        if allowed:
            match[max(allowed, key=lambda p: best_of(g, p))] = g
    return match


def plain_kitti(args, iou, threshold, R, honour):
    truth_ignore, ignore = args["groundtruth_ignore"], args["prediction_ignore"]
    score = args["prediction_score"]
    match = plain_match(args, iou, threshold, 0, lambda g, p: (score[p], -p))
    hits = [float(p in match) for p in range(len(score))]
    found = sorted((score[p] for p, g in match.items() if truth_ignore[g] == 0 and ignore[p] == 0), reverse=True)
    G = sum(1 for kind in truth_ignore if kind == 0 or (kind == 2 and not honour))
    levels = []
    for i in range(1, len(found) + 1):
        left, right, target = (np.float32(x) / np.float32(y) for x, y in ((i, G), (i + 1, G), (len(levels), R - 1)))
        if right - target >= target - left or i == len(found):
            levels.append(found[i - 1])
    precisions = [0.0] * R
    for nth, level in enumerate(levels):
        match = plain_match(args, iou, threshold, level, lambda g, p: (ignore[p] == 0, iou[g, p], -p))
        right = total = 0
        for p in range(len(score)):
            if score[p] < level or ignore[p] or (p in match and truth_ignore[match[p]]):
                continue
            absorbed = [g for g in range(len(iou)) if truth_ignore[g] == 2 and iou[g, p] > threshold]
            if honour and p not in match and absorbed:
                continue
            total += 1
            right += p in match
        precisions[nth] = right / total if total else 1.0
    curve = [(max(precisions[i:]), i / (R - 1)) for i in range(R)]
    return sum(precisions) / R, curve, list(zip(score, hits, strict=True))


def plain_voc(args, iou, threshold, R):
    truth_ignore, score = args["groundtruth_ignore"], args["prediction_score"]
    num_truth = sum(1 for kind in truth_ignore if kind == 0)
    used, right, wrong, points = set(), 0, 0, []
    for p in sorted(range(len(score)), key=lambda p: (-score[p], p)):
        left = [g for g in range(len(iou)) if g not in used]
        g = max(left, key=lambda g: (iou[g, p], -g)) if left else None
        if g is None or iou[g, p] < threshold:
            wrong += 1
        else:
            if truth_ignore[g] != 2:
                used.add(g)
            if truth_ignore[g] != 0:
                continue
            right += 1
        points.append((right, right / (right + wrong)))
    levels = []
    for i in range(R + 1):
        levels.append(max((precision for n, precision in points if n * R >= i * num_truth), default=0.0))
    curve = [(levels[i], i / R) for i in range(R, 0, -1)]
    return sum(levels) / (R + 1), curve, [(-1, -1)] * len(score)


def overlaps(args):
    """Of boxes of different images: none."""
    iou = np.asarray(pairwise_iou3d(args["groundtruth_bbox"], args["prediction_bbox"], implementation="xla"))
    same = args["groundtruth_imageid"][:, None] == args["prediction_imageid"][None]
    return np.where(same, iou, 0)


def check(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, np.reshape(theirs, ours.shape), atol=1e-6)


@each_implementation
@settings(max_examples=25)
@given(
    seed=st.integers(0, 10**6), R=st.sampled_from([2, 11, 41]), threshold=st.sampled_from([0.1, 0.25, 0.6]),
    compat=st.sampled_from([None, "lingvo"]),
)  # fmt: skip
def test_kitti_is_the_plain_loop(implementation, seed, R, threshold, compat):
    args = random_scene(seed)
    options = {"num_recall_points": R, "compat": compat, "implementation": implementation}
    found = average_precision3d(threshold, **args, **options)
    check(found, plain_kitti(args, overlaps(args), threshold, R, honour=compat is None))


@each_implementation
@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), R=st.sampled_from([1, 10, 41]), threshold=st.sampled_from([0.1, 0.25, 0.6]))
def test_voc_is_the_plain_loop(implementation, seed, R, threshold):
    args = random_scene(seed)
    found = average_precision3d(threshold, **args, num_recall_points=R, algorithm="VOC", implementation=implementation)
    check(found, plain_voc(args, overlaps(args), threshold, R))


def perfect(n):
    return scene([(10 * i, 0, 0) for i in range(n)], [(10 * i, 0, 0, 1 - i / 1000) for i in range(n)])


@each_implementation
@pytest.mark.parametrize(("n", "expected"), [(4, 4 / 41), (40, 40 / 41), (41, 1), (100, 1)])
def test_perfect_predictions(implementation, n, expected):
    found = average_precision3d(0.5, **perfect(n), implementation=implementation)
    assert found.ap == pytest.approx(expected, abs=1e-6)
    np.testing.assert_array_equal(found.score_and_hit[:, 1], 1)
    voc = average_precision3d(0.5, **perfect(n), algorithm="VOC", implementation=implementation)
    assert voc.ap == 1


@each_implementation
@pytest.mark.parametrize(("n", "R", "expected"), [(7, 5, 0.94167), (11, 5, 0.96111), (19, 11, 0.97065)])
def test_where_rounding_to_float32_decides(implementation, n, R, expected):
    # All are found; in the middle one that is not there.
    predictions = [(10 * i, 0, 0, 1 - i / 1000) for i in range(n)] + [(-50, 0, 0, 1 - (n // 2 - 0.5) / 1000)]
    args = scene([(10 * i, 0, 0) for i in range(n)], predictions)
    found = average_precision3d(0.5, **args, num_recall_points=R, implementation=implementation)
    assert found.ap == pytest.approx(expected, abs=1e-5)


@each_implementation
def test_boxes_to_ignore(implementation):
    args = scene([(0, 0, 0), (10, 0, 2)], [(0, 0, 0, 0.8), (10, 0, 0, 0.9)])

    def kitti(compat):
        return average_precision3d(0.5, **args, num_recall_points=2, compat=compat, implementation=implementation)

    # Lingvo counts the second among those to be found, and its prediction as wrong.
    lingvo, fixed = kitti("lingvo"), kitti(None)
    np.testing.assert_array_equal(lingvo.score_and_hit, np.float32([[0.8, 1], [0.9, 0]]))
    np.testing.assert_allclose([lingvo.ap, fixed.ap], [0.25, 0.5])
    np.testing.assert_allclose(fixed.precision_recall, [[1, 0], [0, 1]])
    voc = average_precision3d(0.5, **args, algorithm="VOC", implementation=implementation)
    assert voc.ap == 1


@each_implementation
def test_thresholds_are_exclusive_for_kitti_and_inclusive_for_voc(implementation):
    args = scene([(0, 0, 0)], [(1, 0, 0, 0.5)])  # a third in common
    third = np.float32(1 / 3)
    for algorithm, threshold, expected in (
        ("KITTI", third, 0), ("KITTI", np.nextafter(third, np.float32(0)), 0.5), ("VOC", third, 1)
    ):  # fmt: skip
        found = average_precision3d(
            threshold, **args, num_recall_points=2, algorithm=algorithm, implementation=implementation
        )
        assert found.ap == pytest.approx(expected)


@each_implementation
def test_nothing_there(implementation):
    nothing, one = [], [(0, 0, 0)]
    for truths, predictions, kitti, voc in (
        (nothing, nothing, 0, np.nan),
        (nothing, [(0, 0, 0, 0.5)], 0, np.nan),
        (one, nothing, 0, 0),
        (one, [(0, 0, 0, -0.5)], 0, 1),  # negative scores match nothing
        (one, [(0, 7, 0, 0.5)], 0, 0),  # another image
    ):
        args = scene(truths, predictions)
        for algorithm, expected in (("KITTI", kitti), ("VOC", voc)):
            found = average_precision3d(
                0.5, **args, num_recall_points=3, algorithm=algorithm, implementation=implementation
            )
            np.testing.assert_array_equal(found.ap, np.float32(expected))
            assert found.precision_recall.shape == (3, 2) and found.score_and_hit.shape == (len(predictions), 2)


@needs_cpp
def test_threads_change_nothing():
    args = random_scene(0, 200, 400)
    for algorithm in ("KITTI", "VOC"):
        first = average_precision3d(0.25, **args, algorithm=algorithm, implementation="cpp")
        for _ in range(50):
            again = average_precision3d(0.25, **args, algorithm=algorithm, implementation="cpp")
            jax.tree.map(np.testing.assert_array_equal, again, first)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"algorithm": "COCO"}, r"^algorithm must be 'KITTI' or 'VOC' \(got 'COCO'\)"),
        ({"compat": "kitti"}, r"^compat must be None or 'lingvo' \(got 'kitti'\)"),
        ({"num_recall_points": 1}, r"^num_recall_points must be >= 2 for KITTI \(got 1\)"),
        ({"num_recall_points": 0, "algorithm": "VOC"}, r"^num_recall_points must be >= 1 for VOC \(got 0\)"),
        ({"iou_threshold": [0.5]}, r"^iou_threshold must be a scalar \(got shape \(1,\)\)"),
        ({"groundtruth_bbox": np.zeros((2, 6))}, r"^groundtruth_bbox must be \[n, 7\]"),
        ({"groundtruth_ignore": [0, 3]}, r"^groundtruth_ignore\[1\] must be in \[0, 2\] \(got 3\)"),
        ({"prediction_ignore": [2]}, r"^prediction_ignore\[0\] must be in \[0, 1\] \(got 2\)"),
        ({"prediction_imageid": [0, 1]}, r"^prediction_imageid must be of shape \(1,\), .*\(got shape \(2,\)\)"),
        ({"prediction_imageid": [0.5]}, r"^prediction_imageid must be integers \(got float"),
        ({"prediction_score": [np.nan]}, r"^prediction_score\[0\] must be a number \(got nan\)"),
    ],
)
def test_arguments_that_are_refused(changed, message):
    good = {"iou_threshold": 0.5, **scene([(0, 0, 0), (3, 0, 0)], [(0, 0, 0, 0.5)])}
    with pytest.raises(ValueError, match=message):
        average_precision3d(**{**good, **changed})


def test_inside_jit_it_is_refused():
    args = scene([(0, 0, 0)], [(0, 0, 0, 0.5)])
    with pytest.raises(ValueError, match="must be called outside jit"):
        jax.jit(lambda threshold: average_precision3d(threshold, **args))(0.5)


@each_implementation
def test_lingvo_finds_the_same(implementation, lingvo_vectors):
    cases = [(case, arrays) for case, arrays in lingvo_vectors("f_car") if case["op"] == "average_precision3d"]
    assert cases
    for case, arrays in cases:
        found = average_precision3d(
            **{name: arrays[name] for name in ("iou_threshold", *NAMES)},
            num_recall_points=case["num_recall_points"],
            algorithm=case["algorithm"],
            compat="lingvo",
            implementation=implementation,
        )
        for ours, name in zip(found, ("out_ap", "out_pr", "out_score_and_hit"), strict=True):
            np.testing.assert_allclose(ours, arrays[name], atol=2e-5, err_msg=case["id"])
