"""Geometry for 3-D detection: boxes and points."""

from raylingvo.ops.geometry.average_precision3d import AveragePrecision as AveragePrecision
from raylingvo.ops.geometry.average_precision3d import average_precision3d as average_precision3d
from raylingvo.ops.geometry.non_max_suppression_3d import KeptBoxes as KeptBoxes
from raylingvo.ops.geometry.non_max_suppression_3d import non_max_suppression_3d as non_max_suppression_3d
from raylingvo.ops.geometry.pairwise_iou3d import pairwise_iou3d as pairwise_iou3d
from raylingvo.ops.geometry.points_to_grid import PointGrid as PointGrid
from raylingvo.ops.geometry.points_to_grid import points_to_grid as points_to_grid
from raylingvo.ops.geometry.sample_points import SampledPoints as SampledPoints
from raylingvo.ops.geometry.sample_points import sample_points as sample_points
