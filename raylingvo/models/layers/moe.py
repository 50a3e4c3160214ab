"""A mixture of experts in place of a Transformer's feed-forward network (GShard; Lingvo: MoEBuilder).

B batch, T time, G groups, S tokens of a group, D model dimension, E experts, C capacity, F inner dimension.
"""

from __future__ import annotations

import dataclasses
from typing import get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from raylingvo.models.layers.activations import Activation, activation
from raylingvo.models.layers.dropout import dropout, split
from raylingvo.models.layers.initializers import uniform
from raylingvo.models.layers.top2_gating import SecondExpert, expert_capacity, top2_gating
from raylingvo.models.layers.variables import param
from raylingvo.ops.product import einsum


@dataclasses.dataclass(frozen=True, kw_only=True)
class MoeConfig:
    """What a `MoeFeedForward` is.

    hidden_dim: F. gated: as in `FeedForwardConfig`; activation "relu" is GShard's. num_groups: G, into which all tokens
    of a batch are cut, in order; None: each row is a group. Experts take as many tokens of a group as `expert_capacity`
    says, of capacity_factor and min_capacity. The rest is as in `top2_gating`. dropout_rate: of the inner layer.

    A full expert drops the tokens that come last in their group, and how many it takes goes by the group's length,
    padding too. So with other rows, packed instead of padded or in another batch, other tokens may be dropped, and
    outputs differ; they are equal only if there is room for all.
    """

    num_experts: int
    hidden_dim: int
    activation: Activation = "relu"
    gated: bool = False
    num_groups: int | None = None
    capacity_factor: float | None = 2.0
    min_capacity: int = 0
    second_expert: SecondExpert = "all"
    second_expert_threshold: float = 0.0
    legacy_mtf: bool = True
    dropout_rate: float = 0.0

    def __post_init__(self) -> None:
        if self.num_experts < 2:
            raise ValueError(f"num_experts must be >= 2 (got {self.num_experts})")
        if self.hidden_dim <= 0:
            raise ValueError(f"hidden_dim must be > 0 (got {self.hidden_dim})")
        activation(self.activation)
        if self.num_groups is not None and self.num_groups <= 0:
            raise ValueError(f"num_groups must be > 0 or None (got {self.num_groups})")
        if self.capacity_factor is not None and self.capacity_factor <= 0:
            raise ValueError(f"capacity_factor must be > 0 or None (got {self.capacity_factor})")
        if self.capacity_factor is None and self.min_capacity <= 0:
            raise ValueError(f"min_capacity must be > 0 without a capacity_factor (got {self.min_capacity})")
        if self.second_expert not in get_args(SecondExpert):
            raise ValueError(f"second_expert must be one of {get_args(SecondExpert)} (got {self.second_expert!r})")
        if not 0 <= self.dropout_rate < 1:
            raise ValueError(f"dropout_rate must be in [0, 1) (got {self.dropout_rate})")


class MoeFeedForward(nnx.Module):
    """Weights: router [D, E], up [E, D, F], gate [E, D, F] if gated, down [E, F, D]: U(-l, l) with l = sqrt(3 / rows).

    Sharded along "expert", the compiler exchanges tokens between devices; groups are then best as many as devices.
    """

    def __init__(self, config: MoeConfig, dim: int, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32) -> None:
        self.config, self.dtype = config, dtype
        E, F = config.num_experts, config.hidden_dim
        into = uniform((3 / dim) ** 0.5)
        axes = ("expert", "embed", "mlp")
        self.router = param(rngs, into, (dim, E), ("embed", None))
        self.gate = param(rngs, into, (E, dim, F), axes) if config.gated else None
        self.up = param(rngs, into, (E, dim, F), axes)
        self.down = param(rngs, uniform((3 / F) ** 0.5), (E, F, dim), ("expert", "mlp", "embed"))

    def __call__(
        self,
        x_BxTxD: jax.Array,
        nonpadding_BxTx1: jax.Array | None = None,
        *,
        by_row: bool = False,
        rng: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Output [B, T, D], 0 for tokens that no expert takes, and the auxiliary loss f32[].

        by_row: each row is a group, whatever num_groups is: for steps of decoding.
        Raises ValueError if num_groups does not divide B * T.
        """
        config = self.config
        policy_rng, dropout_rng = split(rng, 2)
        B, T, D = x_BxTxD.shape
        groups = B if by_row or config.num_groups is None else config.num_groups
        if B * T % groups:
            raise ValueError(f"num_groups must divide the number of tokens {B * T} (got {groups})")
        x_GxSxD = x_BxTxD.reshape(groups, -1, D)
        gating = top2_gating(
            # In float32: the choice of experts must not depend on rounding to bfloat16.
            einsum("GSD,DE->GSE", x_GxSxD.astype(jnp.float32), self.router[...]),
            capacity=expert_capacity(x_GxSxD.shape[1], config.num_experts, config.capacity_factor, config.min_capacity),
            paddings_GxS=None if nonpadding_BxTx1 is None else 1 - nonpadding_BxTx1.reshape(groups, -1),
            second_expert=config.second_expert,
            second_expert_threshold=config.second_expert_threshold,
            legacy_mtf=config.legacy_mtf,
            rng=policy_rng,
        )

        def weight(of: nnx.Param) -> jax.Array:
            return of[...].astype(self.dtype)

        tokens = einsum("GSEC,GSD->EGCD", gating.dispatch.astype(self.dtype), x_GxSxD.astype(self.dtype))
        hidden = einsum("EGCD,EDF->EGCF", tokens, weight(self.up))
        function = activation(config.activation)
        if self.gate is None:
            hidden = function(hidden)
        else:
            hidden = function(einsum("EGCD,EDF->EGCF", tokens, weight(self.gate))) * hidden
        hidden = dropout(hidden, config.dropout_rate, dropout_rng)
        experts = einsum("EGCF,EFD->EGCD", hidden, weight(self.down))
        y_GxSxD = einsum("GSEC,EGCD->GSD", gating.combine.astype(self.dtype), experts)
        return y_GxSxD.reshape(B, T, D), gating.aux_loss
