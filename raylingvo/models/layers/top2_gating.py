"""Which two experts each token goes to (GShard, Lepikhin et al. 2020; Lingvo: gshard_layers.Top2GatingOnLogits).

G groups, S tokens of a group, E experts, C capacity: tokens of a group that an expert takes.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

SecondExpert = Literal["all", "sampling", "random"]


class Gating(NamedTuple):
    """aux_loss: f32[], 1 for experts that are chosen evenly, E if one is chosen always.

    combine: f32[G, S, E, C], the gate with which expert e's output at its place c counts for a token.
    dispatch: bool[G, S, E, C], where the gate is not 0.
    """

    aux_loss: jax.Array
    combine: jax.Array
    dispatch: jax.Array


def expert_capacity(group_size: int, num_experts: int, capacity_factor: float | None, minimum: int = 0) -> int:
    """C: at least `minimum`; with a factor, at least int(group_size * factor / num_experts), to the next multiple of 4.

    4 where that is 0. Raises ValueError if there is neither a factor nor a minimum.
    """
    if capacity_factor is None:
        if minimum <= 0:
            raise ValueError(f"the minimum capacity must be > 0 without a capacity_factor (got {minimum})")
        return minimum
    wanted = int(group_size * capacity_factor / num_experts) or 4
    return minimum if minimum >= wanted else -(-wanted // 4) * 4


def top2_gating(
    logits_GxSxE: jax.Array,
    *,
    capacity: int,
    paddings_GxS: jax.Array | None = None,
    importance_GxS: jax.Array | None = None,
    second_expert: SecondExpert = "all",
    second_expert_threshold: float = 0.0,
    legacy_mtf: bool = True,
    rng: jax.Array | None = None,
) -> Gating:
    """Sends each token to its best and second best expert, in the order of tokens, until an expert is full.

    All tokens' best experts come before any second one. A token for which there is no place has gate 0.
    paddings: f32, 1.0 = padded: such tokens go nowhere. importance: f32: tokens below 1 have no best expert, and with
      paddings those at 0 no second one; given it, paddings no longer keep a token from its best expert, as in Lingvo.
    second_expert: "all": the second best; "sampling": drawn from the softmax without the best; "random": the second
      best, kept with probability gate / second_expert_threshold. Without an rng, both are "all".
    legacy_mtf: gates are normalised to sum to 1 before tokens are dropped; otherwise among those that are left, and the
      aux loss is of real tokens' mean.
    Raises ValueError for another policy, or a capacity that is not > 0.
    """
    if second_expert not in get_args(SecondExpert):
        raise ValueError(f"second_expert must be one of {get_args(SecondExpert)} (got {second_expert!r})")
    if capacity <= 0:
        raise ValueError(f"capacity must be > 0 (got {capacity})")
    num_experts = logits_GxSxE.shape[-1]
    logits_GxSxE = logits_GxSxE.astype(jnp.float32)
    gates_GxSxE = jax.nn.softmax(logits_GxSxE)
    weight_GxS = jnp.ones(logits_GxSxE.shape[:2]) if paddings_GxS is None else 1.0 - paddings_GxS
    has_best_GxS = weight_GxS
    if importance_GxS is not None:
        weight_GxS, has_best_GxS = importance_GxS, (importance_GxS == 1.0).astype(jnp.float32)

    best_GxSxE = jax.nn.one_hot(jnp.argmax(gates_GxSxE, -1), num_experts) * has_best_GxS[..., None]
    # A token without a best expert keeps all its gates here.
    others_GxSxE = gates_GxSxE * (1 - best_GxSxE)
    choice_GxS = jnp.argmax(others_GxSxE, -1)
    policy_rng = None if rng is None or second_expert == "all" else rng
    if policy_rng is not None and second_expert == "sampling":
        noisy = logits_GxSxE + jax.random.gumbel(policy_rng, logits_GxSxE.shape)
        choice_GxS = jnp.argmax(jnp.where(best_GxSxE > 0, -jnp.inf, noisy), -1)
    second_GxSxE = jax.nn.one_hot(choice_GxS, num_experts)
    if paddings_GxS is not None:
        second_GxSxE = second_GxSxE * (weight_GxS > 0)[..., None]
    gate1_GxS = jnp.sum(gates_GxSxE * best_GxSxE, -1)
    gate2_GxS = jnp.sum(others_GxSxE * second_GxSxE, -1)
    if legacy_mtf:
        total_GxS = gate1_GxS + gate2_GxS + 1e-9
        gate1_GxS, gate2_GxS = gate1_GxS / total_GxS, gate2_GxS / total_GxS

    # Before any token is dropped: a full expert must not look like one that is chosen less.
    share_GxE, mean_GxE = best_GxSxE.mean(1), (gates_GxSxE * has_best_GxS[..., None]).mean(1)
    if not legacy_mtf:
        real_Gx1 = weight_GxS.mean(1)[:, None] + 1e-6
        share_GxE, mean_GxE = share_GxE / real_Gx1, mean_GxE / real_Gx1
    aux_loss = jnp.mean(share_GxE * mean_GxE) * num_experts**2

    best_GxSxE, place1_GxS = _places(best_GxSxE, jnp.zeros_like(share_GxE), capacity)
    if policy_rng is not None and second_expert == "random":
        threshold = max(second_expert_threshold, 1e-9)
        kept_GxS = jax.random.uniform(policy_rng, gate2_GxS.shape) < gate2_GxS / threshold
        second_GxSxE = second_GxSxE * kept_GxS[..., None]
    second_GxSxE, place2_GxS = _places(second_GxSxE, best_GxSxE.sum(1), capacity)
    gate1_GxS, gate2_GxS = gate1_GxS * best_GxSxE.sum(-1), gate2_GxS * second_GxSxE.sum(-1)
    if not legacy_mtf:
        total_GxS = gate1_GxS + gate2_GxS
        total_GxS = jnp.where(total_GxS > 0, total_GxS, 1.0)
        gate1_GxS, gate2_GxS = gate1_GxS / total_GxS, gate2_GxS / total_GxS

    combine = jnp.zeros(())
    for gate_GxS, chosen_GxSxE, place_GxS in (
        (gate1_GxS, best_GxSxE, place1_GxS),
        (gate2_GxS, second_GxSxE, place2_GxS),
    ):
        place_GxSxC = jax.nn.one_hot(place_GxS, capacity)
        combine = combine + jnp.einsum("GSE,GSC->GSEC", gate_GxS[..., None] * chosen_GxSxE, place_GxSxC)
    return Gating(aux_loss, combine, combine > 0)


def _places(chosen_GxSxE: jax.Array, taken_GxE: jax.Array, capacity: int) -> tuple[jax.Array, jax.Array]:
    """Those choices that find a place at their expert, of which `taken` are taken; and the place, i32[G, S]."""
    place_GxSxE = jnp.cumsum(chosen_GxSxE, axis=1) - chosen_GxSxE + taken_GxE[:, None]
    chosen_GxSxE = chosen_GxSxE * (place_GxSxE < capacity)
    return chosen_GxSxE, jnp.sum(place_GxSxE * chosen_GxSxE, -1).astype(jnp.int32)
