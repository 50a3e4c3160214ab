"""Non-maximum suppression: a plain loop, ties, and Lingvo's results."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from raylingvo.ops import _native
from raylingvo.ops.geometry.non_max_suppression_3d import non_max_suppression_3d
from raylingvo.ops.geometry.pairwise_iou3d import pairwise_iou3d

needs_cpp = pytest.mark.skipif(bool(_native.why_unavailable()), reason=_native.why_unavailable() or "-")
each_implementation = pytest.mark.parametrize("implementation", ["xla", pytest.param("cpp", marks=needs_cpp)])


def random_boxes(rng, n, spread):
    columns = [rng.uniform(-spread, spread, (n, 2)), np.zeros((n, 1)), rng.uniform(1, 3, (n, 3))]
    return np.concatenate([*columns, rng.uniform(-4, 4, (n, 1))], axis=1).astype(np.float32)


def plain(iou, scores, iou_threshold, score_threshold, max_boxes):
    """What the docstring says, word for word."""
    shape = scores.shape[1], max_boxes
    indices, kept_scores, mask = np.zeros(shape, int), np.zeros(shape), np.zeros(shape)
    for c in range(scores.shape[1]):
        kept = []
        for i in sorted(range(len(scores)), key=lambda i: (-scores[i, c], i)):
            if scores[i, c] >= score_threshold[c] and all(iou[i, j] <= iou_threshold[c] for j in kept):
                kept.append(i)
        kept = kept[:max_boxes]
        indices[c, : len(kept)], kept_scores[c, : len(kept)], mask[c, : len(kept)] = kept, scores[kept, c], 1
    return indices, kept_scores, mask


def between(iou, near):
    """f32, a threshold that no overlap of two boxes comes close to."""
    values = np.sort(iou[(iou > near * 0.9) & (iou < near * 1.1)])
    widest = np.diff(values).argmax()
    assert values[widest + 1] - values[widest] > 1e-5
    return np.float32(values[widest : widest + 2].mean())


def check(boxes, scores, iou_threshold, score_threshold, max_boxes, implementation):
    iou = np.asarray(pairwise_iou3d(boxes, boxes, implementation="xla"))
    kept = non_max_suppression_3d(
        boxes, scores, iou_threshold, score_threshold, max_boxes, implementation=implementation
    )
    assert [array.dtype for array in kept] == [jnp.int32, jnp.float32, jnp.float32]
    for ours, expected in zip(kept, plain(iou, scores, iou_threshold, score_threshold, max_boxes), strict=True):
        np.testing.assert_array_equal(ours, expected)
    return kept


@each_implementation
@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), max_boxes=st.sampled_from([1, 6, 30]), ties=st.booleans())
def test_it_is_the_plain_loop(implementation, seed, max_boxes, ties):
    rng = np.random.default_rng(seed)
    boxes = random_boxes(rng, 24, spread=2)
    scores = rng.integers(0, 4, (24, 3)) / 4 if ties else rng.uniform(-1, 1, (24, 3))
    thresholds = rng.uniform(0.02, 0.6, 3).astype(np.float32), np.array([-2, 0.25, 0.5], np.float32)
    iou = np.asarray(pairwise_iou3d(boxes, boxes, implementation="xla"))
    assume(abs(iou[:, :, None] - thresholds[0][None, None]).min() > 2e-6)
    check(boxes, scores.astype(np.float32), *thresholds, max_boxes, implementation)


@each_implementation
def test_more_boxes_than_are_held_against_each_other_at_once(implementation):
    rng = np.random.default_rng(0)
    boxes = random_boxes(rng, 700, spread=25)
    scores = rng.uniform(0, 1, (700, 2)).astype(np.float32)
    iou = np.asarray(pairwise_iou3d(boxes, boxes, implementation="xla"))
    thresholds = np.array([between(iou, 0.1), between(iou, 0.02)])
    kept = check(boxes, scores, thresholds, np.float32([0.1, 0]), 600, implementation)
    assert 256 < kept.valid_mask[0].sum() < 600


def cubes(*xs):
    return np.array([[x, 0, 0, 2, 2, 2, 0] for x in xs], np.float32).reshape(-1, 7)


@each_implementation
def test_of_equal_scores_the_lower_row_stays(implementation):
    kept = non_max_suppression_3d(
        cubes(0, 0.5, 9), np.full((3, 1), 0.5), [0.1], [0.5], 4, implementation=implementation
    )
    np.testing.assert_array_equal(kept.bbox_indices, [[0, 2, 0, 0]])
    np.testing.assert_array_equal(kept.bbox_scores, np.float32([[0.5, 0.5, 0, 0]]))
    np.testing.assert_array_equal(kept.valid_mask, [[1, 1, 0, 0]])


@each_implementation
def test_thresholds_at_their_limits(implementation):
    def rows(scores, iou_threshold, score_threshold):
        scores = np.array(scores)[:, None]
        boxes = cubes(0, 2, 4)  # that touch
        kept = non_max_suppression_3d(
            boxes, scores, [iou_threshold], [score_threshold], 3, implementation=implementation
        )
        return kept.bbox_indices[0, : int(kept.valid_mask.sum())].tolist()

    assert rows([0.1, 0.3, 0.2], 0.0, 0.0) == [1, 2, 0]
    assert rows([0.1, 0.3, 0.2], 0.0, 0.2) == [1, 2]
    assert rows([0.1, 0.3, 0.2], -0.1, 0.0) == [1]
    assert rows([np.nan, 0.3, 0.2], 0.0, -np.inf) == [1, 2]
    assert rows([-np.inf, np.inf, 0.2], 0.0, -np.inf) == [1, 2, 0]
    assert rows([0.1, 0.3, 0.2], 0.0, 0.4) == []


@each_implementation
def test_nothing_to_keep_or_no_place_for_it(implementation):
    for n, num_classes, max_boxes in ((0, 2, 3), (3, 0, 2), (3, 2, 0)):
        kept = non_max_suppression_3d(
            cubes(*range(n)),
            np.ones((n, num_classes)),
            np.ones(num_classes),
            np.ones(num_classes),
            max_boxes,
            implementation=implementation,
        )
        assert {array.shape for array in kept} == {(num_classes, max_boxes)}
        assert not any(array.any() for array in kept)


@needs_cpp
def test_threads_change_nothing():
    rng = np.random.default_rng(1)
    args = random_boxes(rng, 700, 12), rng.uniform(0, 1, (700, 3)), np.full(3, 0.2), np.zeros(3), 700
    first = non_max_suppression_3d(*args, implementation="cpp")
    for _ in range(50):
        jax.tree.map(np.testing.assert_array_equal, non_max_suppression_3d(*args, implementation="cpp"), first)


def test_a_batch_by_vmap():
    rng = np.random.default_rng(2)
    boxes = np.stack([random_boxes(rng, 24, 2) for _ in range(3)])
    scores = rng.uniform(0, 1, (3, 24, 2)).astype(np.float32)

    def suppress(boxes, scores):
        return non_max_suppression_3d(boxes, scores, [0.2, 0.3], [0.1, 0.2], 6, implementation="xla")

    batched = jax.vmap(suppress)(jnp.asarray(boxes), jnp.asarray(scores))
    for i in range(3):
        for one, each in zip(suppress(boxes[i], scores[i]), batched, strict=True):
            np.testing.assert_array_equal(each[i], one)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"bboxes": np.zeros((3, 6))}, r"^bboxes must be \[n, 7\]"),
        (
            {"scores": np.zeros((2, 2))},
            r"^scores must be \[n, C\], a row for each of the 3 bboxes \(got shape \(2, 2\)",
        ),
        ({"nms_iou_threshold": 0.5}, r"^nms_iou_threshold must be \[C\], .* 2 columns of scores \(got shape \(\)\)"),
        ({"score_threshold": [1.0]}, r"^score_threshold must be \[C\]"),
        ({"max_boxes_per_class": -1}, r"^max_boxes_per_class must be >= 0 \(got -1\)"),
    ],
)
def test_arguments_that_are_refused(changed, message):
    good = {
        "bboxes": cubes(0, 1, 2),
        "scores": np.zeros((3, 2)),
        "nms_iou_threshold": np.zeros(2),
        "score_threshold": np.zeros(2),
        "max_boxes_per_class": 2,
    }
    with pytest.raises(ValueError, match=message):
        non_max_suppression_3d(**{**good, **changed})


@each_implementation
def test_lingvo_keeps_the_same(implementation, lingvo_vectors):
    cases = [(case, arrays) for case, arrays in lingvo_vectors("f_car") if case["op"] == "non_max_suppression_3d"]
    assert cases
    for case, arrays in cases:
        names = "bboxes", "scores", "nms_iou_threshold", "score_threshold"
        kept = non_max_suppression_3d(
            *(arrays[name] for name in names), case["max_boxes_per_class"], implementation=implementation
        )
        for ours, name in zip(kept, ("out_indices", "out_scores", "out_mask"), strict=True):
            np.testing.assert_array_equal(ours, arrays[name], err_msg=case["id"])
