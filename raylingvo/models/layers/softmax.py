"""The softmax over a vocabulary, whole or in chunks (Lingvo: core/layers.py, SimpleFullSoftmax, SharedSoftmaxLayer)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

from raylingvo.models.layers.initializers import xavier, zeros
from raylingvo.models.layers.losses import ClassScores, class_scores
from raylingvo.models.layers.sampled_softmax import Candidates, sampled_cross_entropy
from raylingvo.models.layers.variables import Initializer, param
from raylingvo.ops.product import einsum

# N tokens, D features, V classes; C classes or tokens of a chunk.


class Softmax(nnx.Module):
    """`logits = x @ kernel.T + bias`, and what losses need of them.

    kernel: f32[V, D], a row for each class, Xavier uniform; or `table`, the f32[V, D] of an embedding, shared with it
    (tied). bias: f32[V], 0 at first; none if `bias` is False.
    logits_abs_max: clips logits to +-logits_abs_max. logits_soft_max: logits become m * tanh(logits / m), after that.
    0: off. classes_per_chunk, tokens_per_chunk: how much of [N, V] `scores` has in memory at a time; 0: all. Its result
    and gradients do not depend on them. dtype: of the product's operands; logits are float32.

    Lingvo keeps the kernel as [D, V] unless it samples; rows are what sampling and tying gather.
    Raises ValueError for negative settings or a table of another shape.
    """

    def __init__(
        self,
        features: int,
        num_classes: int,
        *,
        bias: bool = True,
        table: nnx.Param | None = None,
        kernel_init: Initializer | None = None,
        logits_abs_max: float = 0.0,
        logits_soft_max: float = 0.0,
        classes_per_chunk: int = 0,
        tokens_per_chunk: int = 0,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        settings = {
            "logits_abs_max": logits_abs_max,
            "logits_soft_max": logits_soft_max,
            "classes_per_chunk": classes_per_chunk,
            "tokens_per_chunk": tokens_per_chunk,
        }
        for name, value in settings.items():
            if not value >= 0:
                raise ValueError(f"{name} must be >= 0 (got {value})")
        shape = (num_classes, features)
        if table is not None and table.shape != shape:
            raise ValueError(f"table must have the shape {shape} (got {table.shape})")
        self.kernel = param(rngs, kernel_init or xavier(), shape, ("vocab", "embed")) if table is None else table
        self.bias = param(rngs, zeros, (num_classes,), ("vocab",)) if bias else None
        self._abs_max, self._soft_max = logits_abs_max, logits_soft_max
        self._classes_per_chunk, self._tokens_per_chunk = classes_per_chunk, tokens_per_chunk
        self._dtype = dtype

    @property
    def num_classes(self) -> int:
        """V."""
        return self.kernel.shape[0]

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> logits f32[..., V]."""
        return self._logits(x, self.kernel[...], self.bias[...] if self.bias is not None else None)

    def laid_out(self) -> Callable[[jax.Array], jax.Array]:
        """The same as calling this, for the many calls of a loop: the kernel is transposed once, before it."""
        kernel_DxV = self.kernel[...].T
        bias_V = self.bias[...] if self.bias is not None else None
        return lambda x: self._capped(
            einsum(
                "...d,dc->...c",
                x.astype(self._dtype),
                kernel_DxV.astype(self._dtype),
                preferred_element_type=jnp.float32,
            ),
            bias_V,
        )

    def scores(self, x: jax.Array, labels: jax.Array) -> ClassScores:
        """x [..., D]; labels i32[...] in [0, V). At most [tokens_per_chunk, classes_per_chunk] logits exist at a time.

        Gradients compute the logits of each chunk again.
        """
        x_NxD, labels_N = x.reshape(-1, x.shape[-1]), labels.reshape(-1)
        scores = self._by_tokens(x_NxD, labels_N) if self._tokens_per_chunk else self._by_classes(x_NxD, labels_N)
        return ClassScores(*(value_N.reshape(labels.shape) for value_N in scores))

    def sampled_cross_entropy(self, x: jax.Array, labels: jax.Array, candidates: Candidates) -> jax.Array:
        """Cross-entropy among the label and some candidates: see `sampled_softmax.sampled_cross_entropy`.

        x [..., D], labels i32[...] -> f32[...]. Raises ValueError if logits are capped: their correction by expected
        counts would be too.
        """
        if self._abs_max or self._soft_max:
            raise ValueError("a sampled softmax has no caps: logits_abs_max and logits_soft_max must be 0")
        bias_V = self.bias[...] if self.bias is not None else jnp.zeros((self.num_classes,))
        x_NxD, labels_N = x.reshape(-1, x.shape[-1]), labels.reshape(-1)
        loss_N = sampled_cross_entropy(x_NxD, self.kernel[...], bias_V, labels_N, candidates, dtype=self._dtype)
        return loss_N.reshape(labels.shape)

    def _logits(self, x: jax.Array, kernel_CxD: jax.Array, bias_C: jax.Array | None) -> jax.Array:
        x, kernel_CxD = x.astype(self._dtype), kernel_CxD.astype(self._dtype)
        return self._capped(einsum("...d,cd->...c", x, kernel_CxD, preferred_element_type=jnp.float32), bias_C)

    def _capped(self, logits: jax.Array, bias_C: jax.Array | None) -> jax.Array:
        if bias_C is not None:
            logits += jnp.broadcast_to(bias_C, logits.shape)
        if self._abs_max:
            logits = jnp.clip(logits, -self._abs_max, self._abs_max)
        if self._soft_max:
            logits = self._soft_max * jnp.tanh(logits / self._soft_max)
        return logits

    def _by_tokens(self, x_NxD: jax.Array, labels_N: jax.Array) -> ClassScores:
        number, size = len(labels_N), min(self._tokens_per_chunk, len(labels_N))
        rest = -number % size
        chunks = (
            jnp.pad(x_NxD, ((0, rest), (0, 0))).reshape(-1, size, x_NxD.shape[-1]),
            jnp.pad(labels_N, (0, rest)).reshape(-1, size),
        )
        scores = lax.map(_recomputed(lambda chunk: self._by_classes(*chunk)), chunks)
        return ClassScores(*(value.reshape(-1)[:number] for value in scores))

    def _by_classes(self, x_NxD: jax.Array, labels_N: jax.Array) -> ClassScores:
        kernel_VxD, bias_V = self.kernel[...], self.bias[...] if self.bias is not None else None
        size = self._classes_per_chunk or self.num_classes
        if size >= self.num_classes:
            return class_scores(self._logits(x_NxD, kernel_VxD, bias_V), labels_N)

        @_recomputed
        def step(so_far: _Partial, chunk: tuple[jax.Array, jax.Array | None, jax.Array]) -> tuple[_Partial, None]:
            kernel_CxD, bias_C, first = chunk
            return _joined(so_far, self._logits(x_NxD, kernel_CxD, bias_C), labels_N, first), None

        number = self.num_classes // size
        whole = number * size
        # Scanned, so that their gradients are written chunk by chunk: those of slices made inside would be arrays of
        # [V, D] for each chunk.
        chunks = (
            kernel_VxD[:whole].reshape(number, size, -1),
            bias_V[:whole].reshape(number, size) if bias_V is not None else None,
            jnp.arange(number) * size,
        )
        partial, _ = lax.scan(step, _nothing(labels_N.shape), chunks)
        if whole < self.num_classes:
            rest = (kernel_VxD[whole:], bias_V[whole:] if bias_V is not None else None, jnp.int32(whole))
            partial, _ = step(partial, rest)
        known_N = (labels_N >= 0) & (labels_N < self.num_classes)
        return ClassScores(
            label_logit=jnp.where(known_N, partial.label_logit, jnp.nan),
            log_z=jnp.log(partial.exp_sum) + partial.largest,
            sum_logits=partial.sum_logits,
            best=partial.best,
        )


class _Partial(NamedTuple):
    """`ClassScores` of the classes seen so far, [N] each. exp_sum: sum(exp(logits - largest))."""

    largest: jax.Array
    exp_sum: jax.Array
    label_logit: jax.Array
    sum_logits: jax.Array
    best: jax.Array


def _nothing(shape: tuple[int, ...]) -> _Partial:
    zeros_N = jnp.zeros(shape)
    return _Partial(jnp.full(shape, -jnp.inf), zeros_N, zeros_N, zeros_N, jnp.zeros(shape, jnp.int32))


def _joined(so_far: _Partial, logits_NxC: jax.Array, labels_N: jax.Array, first: jax.Array) -> _Partial:
    """With the classes first, first + 1, .. as well."""
    chunk = class_scores(logits_NxC, labels_N - first)
    mine_N = (labels_N >= first) & (labels_N < first + logits_NxC.shape[-1])
    chunk_largest_N = lax.stop_gradient(logits_NxC.max(axis=-1))
    largest_N = jnp.maximum(so_far.largest, chunk_largest_N)
    return _Partial(
        largest=largest_N,
        exp_sum=so_far.exp_sum * jnp.exp(so_far.largest - largest_N) + jnp.exp(chunk.log_z - largest_N),
        label_logit=jnp.where(mine_N, chunk.label_logit, so_far.label_logit),
        sum_logits=so_far.sum_logits + chunk.sum_logits,
        best=jnp.where(chunk_largest_N > so_far.largest, chunk.best + first, so_far.best),
    )


def _recomputed(function: Callable[..., Any]) -> Callable[..., Any]:
    """What `function` computes is not kept for the gradients."""
    return jax.checkpoint(function, prevent_cse=False)
