"""Average precision of rotated boxes, by the rules of KITTI or VOC (Lingvo: tasks/car/ops, AveragePrecision3D)."""

from __future__ import annotations

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from raylingvo.ops._native import Implementation, call, dispatch
from raylingvo.ops.geometry._average_precision3d_xla import average_precision3d_xla
from raylingvo.ops.geometry._rotated_boxes import check_boxes

# n ground truth boxes, m predictions, R recall levels.


class AveragePrecision(NamedTuple):
    """What `average_precision3d` returns.

    ap: f32[]. precision_recall: f32[R, 2], precision and recall, the precisions those that can be had at that recall or
    more. score_and_hit: f32[m, 2], in input order the score and 1.0 for a prediction that a ground truth box was
    matched with, an ignored one too ("KITTI"); -1 ("VOC").
    """

    ap: jax.Array
    precision_recall: jax.Array
    score_and_hit: jax.Array


def average_precision3d(
    iou_threshold: Any,
    groundtruth_bbox: Any,
    groundtruth_imageid: Any,
    groundtruth_ignore: Any,
    prediction_bbox: Any,
    prediction_imageid: Any,
    prediction_ignore: Any,
    prediction_score: Any,
    *,
    num_recall_points: int = 41,
    algorithm: Literal["KITTI", "VOC"] = "KITTI",
    compat: Literal["lingvo"] | None = "lingvo",
    implementation: Implementation = "auto",
) -> AveragePrecision:
    """Average precision of the predictions of one class over many images, on the host: not inside jit.

    "KITTI": image by image, each ground truth box in turn takes the prediction of the highest score that is left and
    overlaps it by more than iou_threshold; the scores found give up to R score thresholds, at steps in recall of
    1 / (R - 1). At each threshold it takes the one that overlaps most, one that is not ignored first. Precision leaves
    out ignored predictions and those matched with ignored boxes. ap is the sum of the precisions, not made monotone,
    over R: it is 1 for perfect predictions only if there are R boxes or more, and neither of KITTI's official 11 and
    40 points. Negative scores match nothing. Without ground truth it is 0.

    "VOC": predictions from the highest score down take the box that overlaps them most of those that are left in their
    image, if by iou_threshold or more. ap is the mean over R + 1 recall levels i / R of the highest precision at that
    recall or more; rows of precision_recall go from recall 1 down to 1 / R. Without ground truth it is NaN.

    Args:
      iou_threshold: f32[].
      groundtruth_bbox, prediction_bbox: f32[n, 7] and f32[m, 7], as those of `pairwise_iou3d`.
      groundtruth_imageid, prediction_imageid: i32[n] and i32[m], any numbers: boxes of different images never match.
      groundtruth_ignore: i32[n]: 0 to be found; 1 need not be found, and takes a prediction out of the count; 2 takes
        any number of predictions out of the count ("VOC").
      prediction_ignore: i32[m]: 1 to be left out of the count (by KITTI's rules too small); not used by "VOC".
      prediction_score: f32[m], no NaN.
      num_recall_points: R >= 1; >= 2 for "KITTI". 41 is what Lingvo's KITTI metric uses.
      algorithm: "KITTI" or "VOC".
      compat: a defect of Lingvo's "KITTI" is kept by default ("lingvo"), since figures are compared with published
        ones: boxes with ignore 2 count among those to be found, yet match nothing. None: they are not to be found, and
        a prediction without a match that overlaps one of them by more than iou_threshold is not counted.
      implementation: see raylingvo.ops; both give the same, up to overlaps within 1e-5 of the threshold (of boxes that
        are more than 300 times as long as wide, more: see `pairwise_iou3d`). "xla" computes overlaps in JAX and the
        rest, whose shapes depend on values, in NumPy.

    Raises:
      ValueError: an argument is out of range, or an unknown implementation.
      RuntimeError: implementation="cpp" where there is none.
    """
    if algorithm not in ("KITTI", "VOC"):
        raise ValueError(f"algorithm must be 'KITTI' or 'VOC' (got {algorithm!r})")
    if compat not in (None, "lingvo"):
        raise ValueError(f"compat must be None or 'lingvo' (got {compat!r})")
    fewest = 2 if algorithm == "KITTI" else 1
    if num_recall_points < fewest:
        raise ValueError(f"num_recall_points must be >= {fewest} for {algorithm} (got {num_recall_points})")
    threshold = jnp.asarray(iou_threshold, jnp.float32)
    if threshold.ndim:
        raise ValueError(f"iou_threshold must be a scalar (got shape {threshold.shape})")
    truth = check_boxes("groundtruth_bbox", groundtruth_bbox)
    prediction = check_boxes("prediction_bbox", prediction_bbox)
    args = (
        threshold,
        truth,
        _vector("groundtruth_imageid", groundtruth_imageid, len(truth), jnp.int32),
        _vector("groundtruth_ignore", groundtruth_ignore, len(truth), jnp.int32),
        prediction,
        _vector("prediction_imageid", prediction_imageid, len(prediction), jnp.int32),
        _vector("prediction_ignore", prediction_ignore, len(prediction), jnp.int32),
        _vector("prediction_score", prediction_score, len(prediction), jnp.float32),
    )
    if any(isinstance(arg, Tracer) for arg in args):
        raise ValueError("average_precision3d must be called outside jit: it is a metric that the host computes")
    for name, values, highest in (("groundtruth_ignore", args[3], 2), ("prediction_ignore", args[6], 1)):
        array = np.asarray(values)
        if (wrong := np.flatnonzero((array < 0) | (array > highest))).size:
            raise ValueError(f"{name}[{wrong[0]}] must be in [0, {highest}] (got {array[wrong[0]]})")
    if (wrong := np.flatnonzero(np.isnan(args[-1]))).size:
        raise ValueError(f"prediction_score[{wrong[0]}] must be a number (got nan)")
    return AveragePrecision(
        *dispatch(
            implementation,
            xla=average_precision3d_xla,
            cpp=_average_precision3d_cpp,
            args=args,
            num_recall_points=num_recall_points,
            kitti=algorithm == "KITTI",
            honour_ignore_all=compat is None,
        )
    )


@functools.partial(jax.jit, static_argnames=("num_recall_points", "kitti", "honour_ignore_all"))
def _average_precision3d_cpp(
    *args: jax.Array, num_recall_points: int, kitti: bool, honour_ignore_all: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    results = tuple(
        jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((), (num_recall_points, 2), (len(args[-1]), 2))
    )
    return call(
        "RaylingvoAveragePrecision3D",
        results,
        *args,
        kitti=np.bool_(kitti),
        honour_ignore_all=np.bool_(honour_ignore_all),
    )


def _vector(name: str, values: Any, length: int, dtype: Any) -> jax.Array:
    array = jnp.asarray(values)
    if array.shape != (length,):
        raise ValueError(f"{name} must be of shape {(length,)}, a value for each box (got shape {array.shape})")
    if dtype == jnp.int32 and array.size and not jnp.issubdtype(array.dtype, jnp.integer):
        raise ValueError(f"{name} must be integers (got {array.dtype})")
    if dtype == jnp.int32 and not isinstance(values, jax.Array):
        wide = np.asarray(values)
        if (wrong := np.flatnonzero(wide != wide.astype(np.int32))).size:
            raise ValueError(f"{name}[{wrong[0]}] must fit in 32 bits (got {wide[wrong[0]]})")
    return array.astype(dtype)
