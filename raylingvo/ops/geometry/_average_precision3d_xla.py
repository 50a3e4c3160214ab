"""`average_precision3d` without C++: overlaps in JAX, each once, the matching in NumPy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from raylingvo.ops.geometry._rotated_boxes import RotatedBoxes, rotated_iou

# Of one image: g ground truth boxes, p predictions. K pairs of boxes of the same image, S score thresholds.

_MOST_PAIRS = 2**20
_FEWEST_PAIRS = 2**10


class _Image(NamedTuple):
    """truth i64[g], prediction i64[p]: rows, in input order. iou: f32[g, p]."""

    truth: np.ndarray
    prediction: np.ndarray
    iou: np.ndarray


def average_precision3d_xla(
    iou_threshold: jax.Array,
    truth_nx7: jax.Array,
    truth_image_n: jax.Array,
    truth_ignore_n: jax.Array,
    prediction_mx7: jax.Array,
    prediction_image_m: jax.Array,
    prediction_ignore_m: jax.Array,
    score_m: jax.Array,
    *,
    num_recall_points: int,
    kitti: bool,
    honour_ignore_all: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    threshold = np.asarray(iou_threshold)
    boxes = np.asarray(truth_nx7), np.asarray(prediction_mx7)
    images = list(_images(*boxes, np.asarray(truth_image_n), np.asarray(prediction_image_m)))
    ignored, score = np.asarray(truth_ignore_n), np.asarray(score_m)
    if kitti:
        results = _kitti(
            images, threshold, ignored, np.asarray(prediction_ignore_m), score, num_recall_points, honour_ignore_all
        )
    else:
        results = _voc(images, threshold, ignored, score, num_recall_points)
    ap, precision_recall, score_and_hit = (jnp.asarray(result, jnp.float32) for result in results)
    return ap, precision_recall, score_and_hit


def _images(
    truth: np.ndarray, prediction: np.ndarray, truth_image: np.ndarray, prediction_image: np.ndarray
) -> Iterator[_Image]:
    rows = []
    for image in np.union1d(truth_image, prediction_image):
        rows.append((np.flatnonzero(truth_image == image), np.flatnonzero(prediction_image == image)))
    if not rows:
        return
    a_K = np.concatenate([np.repeat(g, len(p)) for g, p in rows])
    b_K = np.concatenate([np.tile(p, len(g)) for g, p in rows])
    iou_K = _iou_of_rows(truth, prediction, a_K, b_K)
    end = np.cumsum([len(g) * len(p) for g, p in rows])
    for (g, p), part in zip(rows, np.split(iou_K, end[:-1]), strict=True):
        yield _Image(g, p, part.reshape(len(g), len(p)))


def _iou_of_rows(truth: np.ndarray, prediction: np.ndarray, a_K: np.ndarray, b_K: np.ndarray) -> np.ndarray:
    """f32[K]. In parts of few sizes: one program is compiled for each."""
    parts = [np.zeros(0, np.float32)]
    for begin in range(0, len(a_K), _MOST_PAIRS):
        a, b = a_K[begin : begin + _MOST_PAIRS], b_K[begin : begin + _MOST_PAIRS]
        size = max(_FEWEST_PAIRS, 1 << (len(a) - 1).bit_length())
        pairs = np.zeros((2, size, 7), np.float32)
        pairs[0, : len(a)], pairs[1, : len(b)] = truth[a], prediction[b]
        parts.append(np.asarray(_iou_of_pairs(pairs[0], pairs[1]))[: len(a)])
    return np.concatenate(parts)


@jax.jit
def _iou_of_pairs(a_Kx7: jax.Array, b_Kx7: jax.Array) -> jax.Array:
    return rotated_iou(RotatedBoxes.from_array(a_Kx7), RotatedBoxes.from_array(b_Kx7))


def _kitti(
    images: list[_Image],
    iou_threshold: np.ndarray,
    truth_ignore: np.ndarray,
    prediction_ignore: np.ndarray,
    score: np.ndarray,
    num_recall_points: int,
    honour_ignore_all: bool,
) -> tuple[float, np.ndarray, np.ndarray]:
    hit = np.zeros(len(score), bool)
    scores = []
    for image in images:
        score_p = score[image.prediction]
        free_p = score_p >= 0
        for g, iou_p in zip(image.truth, image.iou, strict=True):
            match_p = free_p & (iou_p > iou_threshold)
            if truth_ignore[g] == 2 or not match_p.any():
                continue
            best = int(np.where(match_p, score_p, -np.inf).argmax())
            free_p[best], hit[image.prediction[best]] = False, True
            if truth_ignore[g] == 0 and prediction_ignore[image.prediction[best]] == 0:
                scores.append(score_p[best])
    to_be_found = int((truth_ignore == 0).sum() if honour_ignore_all else (truth_ignore != 1).sum())
    threshold_S = _score_thresholds(scores, to_be_found, num_recall_points)

    right_S, counted_S = np.zeros((2, len(threshold_S)), np.int64)
    for image in images:
        right, counted = _count(
            image, iou_threshold, threshold_S, truth_ignore, prediction_ignore, score, honour_ignore_all
        )
        right_S += right
        counted_S += counted
    precision = np.zeros(num_recall_points)
    precision[: len(threshold_S)] = np.where(counted_S > 0, right_S / np.maximum(counted_S, 1), 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    recall = np.arange(num_recall_points) / (num_recall_points - 1)
    return (
        precision.sum() / num_recall_points,
        np.stack([best, recall], axis=1),
        np.stack([score, hit.astype(np.float32)], axis=1),
    )


def _score_thresholds(scores: list[np.floating], to_be_found: int, num_recall_points: int) -> np.ndarray:
    """f32[S], S <= R: the scores at which recall comes closest to each of the levels, from the highest down."""
    chosen: list[np.floating] = []
    for i, score in enumerate(sorted(scores, reverse=True), start=1):
        # In float32, as Lingvo: ties are common, and rounding decides them.
        left, right = np.float32(i) / np.float32(to_be_found), np.float32(i + 1) / np.float32(to_be_found)
        level = np.float32(len(chosen)) / np.float32(num_recall_points - 1)
        if right - level >= level - left or i == len(scores):
            chosen.append(score)
    return np.array(chosen, np.float32)


def _count(
    image: _Image,
    iou_threshold: np.ndarray,
    threshold_S: np.ndarray,
    truth_ignore: np.ndarray,
    prediction_ignore: np.ndarray,
    score: np.ndarray,
    honour_ignore_all: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """i64[S] each, for all score thresholds at once: true positives, and predictions that count."""
    counts_p = prediction_ignore[image.prediction] == 0
    present_Sxp = score[image.prediction][None] >= threshold_S[:, None]
    free_Sxp = present_Sxp.copy()
    right_Sxp, left_out_Sxp = np.zeros((2, *free_Sxp.shape), bool)
    over_gxp = image.iou > iou_threshold
    for g, iou_p, over_p in zip(image.truth, image.iou, over_gxp, strict=True):
        match_Sxp = free_Sxp & over_p[None]
        if truth_ignore[g] == 2 or not match_Sxp.any():
            continue
        # Ignored predictions only where there is no other.
        rank_p = np.where(counts_p, iou_p, iou_p - 2)
        row_S = np.flatnonzero(np.any(match_Sxp, axis=1))
        best_S = np.where(match_Sxp, rank_p[None], -3)[row_S].argmax(axis=1)
        free_Sxp[row_S, best_S] = False
        (right_Sxp if truth_ignore[g] == 0 else left_out_Sxp)[row_S, best_S] = True
    if honour_ignore_all:
        left_out_Sxp |= free_Sxp & np.any(over_gxp[truth_ignore[image.truth] == 2], axis=0, keepdims=True)
    counted_Sxp = present_Sxp & counts_p[None] & ~left_out_Sxp
    return (right_Sxp & counted_Sxp).sum(axis=1), counted_Sxp.sum(axis=1)


def _voc(
    images: list[_Image],
    iou_threshold: np.ndarray,
    truth_ignore: np.ndarray,
    score: np.ndarray,
    num_recall_points: int,
) -> tuple[float, np.ndarray, np.ndarray]:
    outcome = np.full(len(score), -1)  # 1 right, 0 wrong, -1 not counted
    for image in images:
        left_g = np.ones(len(image.truth), bool)
        for p in np.argsort(-score[image.prediction], kind="stable"):
            iou_g = np.where(left_g, image.iou[:, p], -1)
            best = int(iou_g.argmax()) if iou_g.size else -1
            if best < 0 or not left_g[best] or iou_g[best] < iou_threshold:
                outcome[image.prediction[p]] = 0
                continue
            ignore = truth_ignore[image.truth[best]]
            left_g[best] = ignore == 2
            outcome[image.prediction[p]] = 1 if ignore == 0 else -1
    outcome = outcome[np.argsort(-score, kind="stable")]
    right, counted = np.cumsum(outcome == 1), np.cumsum(outcome >= 0)
    right, counted = right[outcome >= 0], counted[outcome >= 0]
    num_truth = int((truth_ignore == 0).sum())
    if num_truth == 0:
        # There is no curve. Lingvo then has the recalls of KITTI's.
        with np.errstate(invalid="ignore"):
            recall = np.arange(num_recall_points) / np.float32(num_recall_points - 1)
        return np.nan, np.stack([np.zeros(num_recall_points), recall], axis=1), np.full((len(score), 2), -1)
    # Levels i / R, and the first prediction with that recall; in float32, as Lingvo: rounding decides which.
    level = (right.astype(np.float32) / np.float32(num_truth) * np.float32(num_recall_points)).astype(np.int64)
    first = np.searchsorted(level, np.arange(num_recall_points + 1))
    best = np.append(np.maximum.accumulate((right / counted)[::-1])[::-1], 0)[first]
    recall = np.arange(num_recall_points + 1) / num_recall_points
    return (
        best.mean(),
        np.stack([best, recall], axis=1)[:0:-1],
        np.full((len(score), 2), -1),
    )
