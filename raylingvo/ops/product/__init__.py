"""Products of arrays, made for CPUs."""

from raylingvo.ops.product.einsum import einsum as einsum
from raylingvo.ops.product.policies import Remat as Remat
from raylingvo.ops.product.policies import remat_policy as remat_policy
