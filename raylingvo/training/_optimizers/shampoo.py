"""Shampoo: gradients preconditioned by roots of matrices of their second moments, one matrix for each axis."""

from __future__ import annotations

import dataclasses
import itertools
import string
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from raylingvo.ops.product import einsum
from raylingvo.training._optimizers.base import Optimizer, check_fraction, check_positive, with_lengths
from raylingvo.training._optimizers.inverse_root import inverse_root

# Of the largest eigenvalue (or more: of a norm), what float32 keeps apart from 0 in sums and products of matrices.
_RESOLUTION = 1e-6
# A root with a larger error is not used: the former one stays. Lingvo's bound, of the error of its own method.
_MAX_ERROR = 0.05


class ShampooState(NamedTuple):
    """Slots by variable, in the dicts of the weights.

    statistics, preconditioners: in the place of a variable a tuple with, for each of its blocks, a tuple of matrices
    f32[d, d], one for each axis that has one; () for a variable that has none. directions: None for that.
    """

    num_updates: jax.Array  # i32[]
    lengths: Any  # of optax: Adagrad's sum of squares, and its momentum
    directions: Any  # of optax: the momentum of preconditioned gradients
    statistics: Any
    preconditioners: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistributedShampoo(Optimizer):
    """Shampoo (arXiv:2002.09018) with the lengths of Adagrad's steps, Lingvo's defaults.

    For each axis of a variable, S is the sum of the products of gradients with themselves over the other axes, with
    `second_moment_averaging` below 1 a moving average. The gradient is multiplied along each axis by
    (S + matrix_epsilon I)^(-1/(2 r)), r the number of axes that have a matrix. The step has the direction of the moving
    average of these by `momentum`, and for each variable the length of Adagrad's own average. Before
    `start_preconditioning_steps` updates it is Adagrad's; in as many updates again it goes over linearly.

    An axis has a matrix if its size is neither 1 nor above `fallback_to_diagonal_dim`. A variable of one axis, of size
    1, or with an axis above `max_any_dim` has none; its step is Adagrad's. An axis longer than
    `block_partition_threshold_size` is cut into blocks of `block_size`, each with matrices of its own.

    S grows at every `statistics_computation_frequency`-th update. After every `preconditioning_frequency`-th the roots
    are computed anew; until the first they are 0, and where a computation fails the former ones stay.

    Lingvo: core/distributed_shampoo.py and optimizer.DistributedShampoo. Deviations: the roots are computed within the
    step, on the device, in float32, by Newton's iteration and not by singular values in float64 on the host, from where
    they come some steps late; in Lingvo they are due after every loop of steps on the device. To S goes at least 1e-6
    of its norm, as float32 resolves no less. Updates are counted, not steps. `block_partition_threshold_size` and
    `fallback_to_diagonal_dim` have effect; Lingvo's class does not hand them on.
    """

    momentum: float = 0.9
    start_preconditioning_steps: int = 1000
    initial_accumulator_value: float = 0.0
    block_size: int = 4096
    block_partition_threshold_size: int = 1_000_000
    max_any_dim: int = 8192
    matrix_epsilon: float = 1e-6
    second_moment_averaging: float = 1.0
    fallback_to_diagonal_dim: int = 4096
    statistics_computation_frequency: int = 1
    preconditioning_frequency: int = 1000  # Lingvo's default `tpu_steps_per_loop`

    def __post_init__(self) -> None:
        check_fraction(self, "momentum")
        check_positive(self, "matrix_epsilon", "second_moment_averaging")
        if self.second_moment_averaging > 1:
            raise ValueError(f"second_moment_averaging must be in (0, 1] (got {self.second_moment_averaging})")
        for field in ("start_preconditioning_steps", "initial_accumulator_value"):
            if not getattr(self, field) >= 0:
                raise ValueError(f"{field} must be >= 0 (got {getattr(self, field)})")
        for field in (
            "block_size",
            "block_partition_threshold_size",
            "max_any_dim",
            "fallback_to_diagonal_dim",
            "statistics_computation_frequency",
            "preconditioning_frequency",
        ):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be >= 1 (got {getattr(self, field)})")

    def build(self) -> optax.GradientTransformationExtraArgs:
        momentum = optax.ema(self.momentum, debias=False) if self.momentum else optax.identity()
        adagrad = optax.chain(optax.scale_by_rss(self.initial_accumulator_value, eps=1e-30), momentum)

        def init(params: optax.Params) -> ShampooState:
            return ShampooState(
                num_updates=jnp.zeros((), jnp.int32),
                lengths=adagrad.init(params),
                directions=momentum.init(jax.tree.map(lambda p: p if self._cuts(p.shape) else None, params)),
                statistics=jax.tree.map(self._matrices, params),
                preconditioners=jax.tree.map(self._matrices, params),
            )

        def update(
            updates: optax.Updates, state: Any, params: optax.Params | None = None, *, rate: Any = 1.0, **_: Any
        ) -> tuple[optax.Updates, ShampooState]:
            del params
            t = state.num_updates
            grads, treedef = jax.tree.flatten(updates)
            roots = treedef.flatten_up_to(state.preconditioners)
            preconditioned = treedef.unflatten(map(self._preconditioned, grads, roots))
            lengths, lengths_state = adagrad.update(updates, state.lengths)
            steps, directions = momentum.update(preconditioned, state.directions)

            statistics = treedef.flatten_up_to(state.statistics)
            statistics = jax.lax.cond(
                t % self.statistics_computation_frequency == 0,
                lambda: list(map(self._with_moments, grads, statistics)),
                lambda: statistics,
            )
            roots = jax.lax.cond(
                (t + 1) % self.preconditioning_frequency == 0, lambda: self._roots(statistics, roots), lambda: roots
            )

            share = self._share(t)
            decrements = [
                rate * (length if step is None else share * with_lengths(length, step) + (1 - share) * length)
                for length, step in zip(treedef.flatten_up_to(lengths), treedef.flatten_up_to(steps), strict=True)
            ]
            state = ShampooState(
                t + 1, lengths_state, directions, treedef.unflatten(statistics), treedef.unflatten(roots)
            )
            return treedef.unflatten(decrements), state

        return optax.GradientTransformationExtraArgs(init, update)

    def _share(self, t: jax.Array) -> jax.Array:
        """How much of a step is Shampoo's, f32[]."""
        start = self.start_preconditioning_steps
        return jnp.clip((t - start) / start, 0.0, 1.0) if start else jnp.ones(())

    def _cuts(self, shape: tuple[int, ...]) -> list[tuple[slice, ...]]:
        """The blocks of a variable that has matrices; [] for one that has none."""
        if len(shape) < 2 or max(shape) > self.max_any_dim or max(shape) == 1:
            return []
        sizes = [self.block_size if size > self.block_partition_threshold_size else size for size in shape]
        starts = [range(0, size, block) for size, block in zip(shape, sizes, strict=True)]
        return [
            tuple(
                slice(first, min(first + block, whole))
                for first, block, whole in zip(corner, sizes, shape, strict=True)
            )
            for corner in itertools.product(*starts)
        ]

    def _axes(self, shape: tuple[int, ...]) -> list[int]:
        """Which axes of a block have matrices."""
        return [axis for axis, size in enumerate(shape) if 1 < size <= self.fallback_to_diagonal_dim]

    def _matrices(self, param: jax.Array) -> tuple[tuple[jax.Array, ...], ...]:
        shapes = [[cut.stop - cut.start for cut in block] for block in self._cuts(param.shape)]
        return tuple(
            tuple(jnp.zeros((shape[axis], shape[axis]), jnp.float32) for axis in self._axes(tuple(shape)))
            for shape in shapes
        )

    def _preconditioned(self, grad: jax.Array, roots: tuple[tuple[jax.Array, ...], ...]) -> jax.Array | None:
        """The gradient with each block multiplied by the matrices of its axes; None if the variable has none."""

        def of_block(block: jax.Array, roots: tuple[jax.Array, ...]) -> jax.Array:
            letters = string.ascii_lowercase[: block.ndim]
            for axis, root in zip(self._axes(block.shape), roots, strict=True):
                letter = letters[axis]
                block = einsum(f"{letters},{letter}z->{letters.replace(letter, 'z')}", block, root)
            return block.astype(grad.dtype)

        cuts = self._cuts(grad.shape)
        blocks = [of_block(grad[cut].astype(jnp.float32), mine) for cut, mine in zip(cuts, roots, strict=True)]
        if len(blocks) < 2:
            return blocks[0] if blocks else None
        result = jnp.zeros_like(grad)
        for cut, block in zip(cuts, blocks, strict=True):
            result = result.at[cut].set(block)
        return result

    def _with_moments(
        self, grad: jax.Array, statistics: tuple[tuple[jax.Array, ...], ...]
    ) -> tuple[tuple[jax.Array, ...], ...]:
        """The statistics of a variable, with this gradient."""
        keep = self.second_moment_averaging
        add = 1.0 if keep == 1 else 1 - keep

        def of_block(block: jax.Array, before: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            letters = string.ascii_lowercase[: block.ndim]
            products = []
            for axis in self._axes(block.shape):
                letter = letters[axis]
                products.append(einsum(f"{letters},{letters.replace(letter, 'z')}->{letter}z", block, block))
            return tuple(keep * old + add * new for old, new in zip(before, products, strict=True))

        cuts = self._cuts(grad.shape)
        return tuple(of_block(grad[cut].astype(jnp.float32), old) for cut, old in zip(cuts, statistics, strict=True))

    def _roots(self, statistics: list[Any], former: list[Any]) -> list[Any]:
        """The preconditioners of these statistics, or where they fail the former ones."""
        matrices, treedef = jax.tree.flatten(statistics)
        before = jax.tree.leaves(former)
        orders = [2 * len(block) for blocks in statistics for block in blocks for _ in block]
        # Those of one size and order together, in one loop: a model has many, and of few sizes.
        groups: dict[tuple[int, int], list[int]] = {}
        for i, (matrix, order) in enumerate(zip(matrices, orders, strict=True)):
            groups.setdefault((len(matrix), order), []).append(i)
        after = list(before)
        for (size, order), members in groups.items():
            stacked_NxDxD = jnp.stack([matrices[i] for i in members])
            norm_Nx1x1 = jnp.sqrt(jnp.square(stacked_NxDxD).sum(axis=(1, 2), keepdims=True))
            damping_Nx1x1 = jnp.maximum(self.matrix_epsilon, _RESOLUTION * norm_Nx1x1)
            roots_NxDxD, error_N = inverse_root(stacked_NxDxD + damping_Nx1x1 * jnp.eye(size)[None], order)
            for i, root, error in zip(members, roots_NxDxD, error_N, strict=True):
                after[i] = jnp.where(error < _MAX_ERROR, root, before[i])
        return jax.tree.unflatten(treedef, after)
