"""Non-maximum suppression of rotated boxes (Lingvo: tasks/car/ops, NonMaxSuppression3D)."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from raylingvo.ops._native import Implementation, call, dispatch
from raylingvo.ops.geometry._rotated_boxes import RotatedBoxes, check_boxes, rotated_iou

# n boxes, C classes, M places for the boxes of a class.


class KeptBoxes(NamedTuple):
    """What `non_max_suppression_3d` returns, best first within a class, zeros behind the last.

    bbox_indices: i32[C, M], rows of the input. bbox_scores: f32[C, M]. valid_mask: f32[C, M], 1.0 where there is a box.
    """

    bbox_indices: jax.Array
    bbox_scores: jax.Array
    valid_mask: jax.Array


def non_max_suppression_3d(
    bboxes: Any,
    scores: Any,
    nms_iou_threshold: Any,
    score_threshold: Any,
    max_boxes_per_class: int,
    *,
    implementation: Implementation = "auto",
) -> KeptBoxes:
    """Keeps the boxes with the highest scores that do not overlap a better one by more than a threshold.

    Each class by itself: boxes with a score >= score_threshold are visited from the highest score down (the lower row
    first where scores are equal; Lingvo leaves that open), and kept if their intersection over union with every box
    kept so far is <= nms_iou_threshold, until there are max_boxes_per_class. For a batch of images use jax.vmap of
    "xla", or a loop: there is no dimension for it.

    Args:
      bboxes: f32[n, 7], as those of `pairwise_iou3d`.
      scores: f32[n, C]. A NaN is below every threshold.
      nms_iou_threshold, score_threshold: f32[C].
      max_boxes_per_class: M >= 0.
      implementation: see raylingvo.ops; both give the same, up to overlaps within 1e-5 of the threshold (of boxes that
        are more than 300 times as long as wide, more: see `pairwise_iou3d`).

    Raises:
      ValueError: a shape is wrong, or an unknown implementation.
      RuntimeError: implementation="cpp" where there is none.
    """
    boxes_nx7 = check_boxes("bboxes", bboxes)
    scores_nxC = jnp.asarray(scores, jnp.float32)
    if scores_nxC.ndim != 2 or len(scores_nxC) != len(boxes_nx7):
        raise ValueError(
            f"scores must be [n, C], a row for each of the {len(boxes_nx7)} bboxes (got shape {scores_nxC.shape})"
        )
    thresholds = []
    for name, given in (("nms_iou_threshold", nms_iou_threshold), ("score_threshold", score_threshold)):
        threshold_C = jnp.asarray(given, jnp.float32)
        if threshold_C.shape != scores_nxC.shape[1:]:
            raise ValueError(
                f"{name} must be [C], a value for each of the {scores_nxC.shape[1]} columns of scores "
                f"(got shape {threshold_C.shape})"
            )
        thresholds.append(threshold_C)
    if max_boxes_per_class < 0:
        raise ValueError(f"max_boxes_per_class must be >= 0 (got {max_boxes_per_class})")
    return KeptBoxes(
        *dispatch(
            implementation,
            xla=_suppress_xla,
            cpp=_suppress_cpp,
            args=(boxes_nx7, scores_nxC, *thresholds),
            max_boxes=max_boxes_per_class,
        )
    )


@functools.partial(jax.jit, static_argnames="max_boxes")
def _suppress_xla(
    boxes_nx7: jax.Array,
    scores_nxC: jax.Array,
    iou_threshold_C: jax.Array,
    score_threshold_C: jax.Array,
    *,
    max_boxes: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    n, num_classes = scores_nxC.shape
    if n == 0 or max_boxes == 0:
        empty_CxM = jnp.zeros((num_classes, max_boxes))
        return empty_CxM.astype(jnp.int32), empty_CxM, empty_CxM
    boxes = RotatedBoxes.from_array(boxes_nx7)

    def suppress(scores_n: jax.Array, iou_threshold: jax.Array, score_threshold: jax.Array):
        # One step per kept box rather than per box; and a row of overlaps at a time, so that n x n are never stored.
        def more(carry):
            i, left_n, *_ = carry
            return (i < max_boxes) & left_n.any()

        def keep_best(carry):
            i, left_n, index_M, score_M, mask_M = carry
            best = jnp.where(left_n, scores_n, -jnp.inf).argmax()
            # The highest score may be -inf.
            best = jnp.where(left_n[best], best, left_n.argmax())
            iou_n = rotated_iou(boxes.map(lambda field: field[best][None]), boxes)
            left_n &= ~(iou_n > iou_threshold) & (jnp.arange(n) != best)
            index_M, score_M = index_M.at[i].set(best.astype(jnp.int32)), score_M.at[i].set(scores_n[best])
            return i + 1, left_n, index_M, score_M, mask_M.at[i].set(1)

        zeros_M = jnp.zeros(max_boxes)
        start = jnp.int32(0), scores_n >= score_threshold, zeros_M.astype(jnp.int32), zeros_M, zeros_M
        return jax.lax.while_loop(more, keep_best, start)[2:]

    return jax.vmap(suppress, in_axes=(1, 0, 0))(scores_nxC, iou_threshold_C, score_threshold_C)


@functools.partial(jax.jit, static_argnames="max_boxes")
def _suppress_cpp(
    boxes_nx7: jax.Array,
    scores_nxC: jax.Array,
    iou_threshold_C: jax.Array,
    score_threshold_C: jax.Array,
    *,
    max_boxes: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    shape = scores_nxC.shape[1], max_boxes
    results = tuple(jax.ShapeDtypeStruct(shape, dtype) for dtype in (jnp.int32, jnp.float32, jnp.float32))
    return call("RaylingvoNonMaxSuppression3D", results, boxes_nx7, scores_nxC, iou_threshold_C, score_threshold_C)
