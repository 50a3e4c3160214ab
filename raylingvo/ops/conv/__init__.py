"""Convolution for CPUs."""

from raylingvo.ops.conv.conv2d import conv2d as conv2d
from raylingvo.ops.conv.conv2d_relu_pool import conv2d_relu_pool as conv2d_relu_pool
