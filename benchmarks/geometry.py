"""Rotated overlaps and non-maximum suppression against the same vectorised over pairs in NumPy.

    python benchmarks/geometry.py [--rounds 3] [--rows 10000] [--columns 200] [--boxes 5000]

Scenes: "street", boxes of cars over 80 x 80 m, of which few pairs meet, as of anchors with ground truth; "heap", over
8 x 8 m, of which most do. Suppression takes boxes of one class over 80 x 80 m. Everything runs in this process, in
turns, so that what else the machine does hits all. Prints one JSON line:

iou_ratio, nms_ratio: seconds of NumPy over those of `pairwise_iou3d` and `non_max_suppression_3d` ("auto"), medians
over rounds; *_pruned_ratio: of NumPy where only pairs whose bounding circles and ranges of z meet are computed.
Exit status 1 if overlaps differ by more than 1e-5, or other boxes are kept.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from _compare import report

from raylingvo.ops.geometry.non_max_suppression_3d import non_max_suppression_3d
from raylingvo.ops.geometry.pairwise_iou3d import pairwise_iou3d

_IOU_THRESHOLD = 0.1
_PAIRS_AT_ONCE = 2**14  # fits the second level cache: faster than all at once


def numpy_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[K] of boxes [K, 7]: the area within the points where edges cross and the corners inside, sorted by angle."""
    corners_a, corners_b = _corners(a), _corners(b)
    edges_a, edges_b = np.roll(corners_a, -1, axis=1) - corners_a, np.roll(corners_b, -1, axis=1) - corners_b
    # Where edge i of a crosses edge j of b.
    offset = corners_b[:, None, :, :] - corners_a[:, :, None, :]
    cross = _cross(edges_a[:, :, None, :], edges_b[:, None, :, :])
    safe = np.where(cross == 0, 1, cross)
    s = _cross(offset, edges_b[:, None, :, :]) / safe
    t = _cross(offset, edges_a[:, :, None, :]) / safe
    crosses = (cross != 0) & (s >= 0) & (s <= 1) & (t >= 0) & (t <= 1)
    crossings = corners_a[:, :, None, :] + s[..., None] * edges_a[:, :, None, :]
    points = np.concatenate([crossings.reshape(-1, 16, 2), corners_a, corners_b], axis=1)
    valid = np.concatenate([crosses.reshape(-1, 16), _inside(corners_a, b), _inside(corners_b, a)], axis=1)

    count = valid.sum(axis=1)
    center = np.where(valid[..., None], points, 0).sum(axis=1) / np.maximum(count, 1)[:, None]
    points = points - center[:, None]
    angle = np.where(valid, np.arctan2(points[..., 1], points[..., 0]), np.inf)
    order = np.argsort(angle, axis=1)
    points = np.take_along_axis(points, order[..., None], axis=1)
    # Places behind the last point repeat the first, and add nothing.
    points = np.where((np.arange(24) < count[:, None])[..., None], points, points[:, :1])
    area = 0.5 * _cross(points, np.roll(points, -1, axis=1)).sum(axis=1)
    high = np.minimum(a[:, 2] + a[:, 5] / 2, b[:, 2] + b[:, 5] / 2)
    low = np.maximum(a[:, 2] - a[:, 5] / 2, b[:, 2] - b[:, 5] / 2)
    common = np.where(count > 2, area, 0) * np.maximum(high - low, 0)
    return common / (a[:, 3:6].prod(axis=1) + b[:, 3:6].prod(axis=1) - common)


def _cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0]


def _corners(boxes: np.ndarray) -> np.ndarray:
    """[K, 4, 2], counterclockwise."""
    cosine, sine = np.cos(boxes[:, 6])[:, None], np.sin(boxes[:, 6])[:, None]
    x = boxes[:, 3, None] / 2 * np.array([[-1, 1, 1, -1]])
    y = boxes[:, 4, None] / 2 * np.array([[-1, -1, 1, 1]])
    return boxes[:, None, :2] + np.stack([cosine * x - sine * y, sine * x + cosine * y], axis=-1)


def _inside(points: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """[K, 4], with a margin: of equal boxes all corners are inside."""
    offset = points - boxes[:, None, :2]
    cosine, sine = np.cos(boxes[:, 6])[:, None], np.sin(boxes[:, 6])[:, None]
    x, y = cosine * offset[..., 0] + sine * offset[..., 1], cosine * offset[..., 1] - sine * offset[..., 0]
    return (abs(x) <= boxes[:, 3, None] / 2 + 1e-9) & (abs(y) <= boxes[:, 4, None] / 2 + 1e-9)


def numpy_pairwise(a: np.ndarray, b: np.ndarray, pruned: bool) -> np.ndarray:
    a, b = a.astype(np.float64), b.astype(np.float64)
    iou = np.zeros((len(a), len(b)))
    rows = max(1, (2**20 if pruned else _PAIRS_AT_ONCE) // max(len(b), 1))
    for begin in range(0, len(a), rows):
        part = a[begin : begin + rows]
        if pruned:
            i, j = np.nonzero(_may_meet(part, b))
        else:
            i, j = (index.ravel() for index in np.indices((len(part), len(b))))
        for first in range(0, len(i), _PAIRS_AT_ONCE):
            of = slice(first, first + _PAIRS_AT_ONCE)
            iou[begin + i[of], j[of]] = numpy_iou(part[i[of]], b[j[of]])
    return iou


def _may_meet(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    squared = ((a[:, None, :2] - b[None, :, :2]) ** 2).sum(axis=-1)
    reach = np.hypot(a[:, 3], a[:, 4])[:, None] / 2 + np.hypot(b[:, 3], b[:, 4])[None] / 2
    apart = abs(a[:, None, 2] - b[None, :, 2])
    return (squared < reach**2) & (apart < (a[:, None, 5] + b[None, :, 5]) / 2)


def numpy_suppress(boxes: np.ndarray, scores: np.ndarray, pruned: bool) -> list[int]:
    kept = []
    left = np.argsort(-scores, kind="stable")
    while len(left):
        best, left = left[0], left[1:]
        kept.append(int(best))
        left = left[numpy_pairwise(boxes[best][None], boxes[left], pruned)[0] <= _IOU_THRESHOLD]
    return kept


def cars(rng: np.random.Generator, n: int, spread: float) -> np.ndarray:
    x, y = rng.uniform(0, spread, (2, n))
    sides = [rng.uniform(low, high, n) for low, high in ((3.2, 5), (1.4, 2), (1.3, 1.9))]
    return np.stack([x, y, rng.uniform(-0.3, 0.3, n), *sides, rng.uniform(-np.pi, np.pi, n)], axis=1).astype(np.float32)


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = jax.block_until_ready(function())
    return time.perf_counter() - start, result


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--columns", type=int, default=200)
    parser.add_argument("--boxes", type=int, default=5000)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    scenes = {
        name: (cars(rng, args.rows, spread), cars(rng, args.columns, spread))
        for name, spread in (("street", 80), ("heap", 8))
    }
    boxes, scores = cars(rng, args.boxes, 80), rng.uniform(0, 1, args.boxes).astype(np.float32)

    def suppress() -> Any:
        return non_max_suppression_3d(boxes, scores[:, None], [_IOU_THRESHOLD], [0.0], args.boxes)

    contenders: dict[str, dict[str, Callable[[], Any]]] = {}
    for name, (a, b) in scenes.items():
        contenders[f"iou_{name}"] = {
            "auto": lambda a=a, b=b: pairwise_iou3d(a, b),
            "xla": lambda a=a, b=b: pairwise_iou3d(a, b, implementation="xla"),
            "numpy": lambda a=a, b=b: numpy_pairwise(a, b, pruned=False),
            "numpy_pruned": lambda a=a, b=b: numpy_pairwise(a, b, pruned=True),
        }
    contenders["nms"] = {
        "auto": suppress,
        "numpy": lambda: numpy_suppress(boxes, scores, pruned=False),
        "numpy_pruned": lambda: numpy_suppress(boxes, scores, pruned=True),
    }
    for task in contenders.values():
        for name in ("auto", "xla"):
            if name in task:
                jax.block_until_ready(task[name]())  # compiles

    seconds: dict[str, dict[str, list[float]]] = {task: {name: [] for name in by} for task, by in contenders.items()}
    results: dict[str, dict[str, Any]] = {task: {} for task in contenders}
    for i in range(args.rounds):
        for task, by_name in contenders.items():
            for name, contender in by_name.items():
                print(f"round {i + 1}/{args.rounds}: {task} {name}", file=sys.stderr)
                spent, results[task][name] = timed(contender)
                seconds[task][name].append(spent)

    difference = max(
        float(abs(np.asarray(results[task]["auto"]) - results[task][name]).max())
        for task in ("iou_street", "iou_heap")
        for name in ("xla", "numpy", "numpy_pruned")
    )
    indices, _, mask = (np.asarray(array[0]) for array in results["nms"]["auto"])
    kept = indices[: int(mask.sum())].tolist()
    same = difference < 1e-5 and kept == results["nms"]["numpy"] == results["nms"]["numpy_pruned"]

    def ratio(task: str, name: str) -> float:
        return round(
            statistics.median(b / a for a, b in zip(seconds[task]["auto"], seconds[task][name], strict=True)), 1
        )

    report(
        "geometry",
        iou_ratio=ratio("iou_street", "numpy"),
        iou_pruned_ratio=ratio("iou_street", "numpy_pruned"),
        iou_heap_ratio=ratio("iou_heap", "numpy"),
        nms_ratio=ratio("nms", "numpy"),
        nms_pruned_ratio=ratio("nms", "numpy_pruned"),
        milliseconds={
            task: {name: round(1e3 * statistics.median(spent), 2) for name, spent in by_name.items()}
            for task, by_name in seconds.items()
        },
        pairs=[args.rows, args.columns],
        pairs_that_meet={
            task: round(float((results[task]["numpy"] > 0).mean()), 4) for task in ("iou_street", "iou_heap")
        },
        boxes=args.boxes,
        boxes_kept=len(kept),
        largest_difference=difference,
        same=same,
        rounds=args.rounds,
        cpus=len(os.sched_getaffinity(0)),
    )
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
