"""What a recomputed block keeps, where its products are those of `einsum`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax

from raylingvo.ops.product import _einsum_cpp

Remat = Literal["nothing_saveable", "dots_saveable", "dots_with_no_batch_dims_saveable"]


def remat_policy(name: Remat) -> Callable[..., Any]:
    """That of `jax.checkpoint_policies` for `jax.checkpoint`, to which a product of `einsum` is a dot as any other."""
    policy = getattr(jax.checkpoint_policies, name)

    def with_products(primitive: Any, *args: Any, **params: Any) -> Any:
        if primitive is not _einsum_cpp.PRIMITIVE or name == "nothing_saveable":
            return policy(primitive, *args, **params)
        equation = params["equation"]
        return name == "dots_saveable" or not set(equation.x) & set(equation.y) & set(equation.result)

    return with_products
