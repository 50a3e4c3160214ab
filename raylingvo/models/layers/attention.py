"""Multi-headed attention, one layer for what Lingvo and GShard do with it (Lingvo: core/batch_major_attention.py).

B batch, T queries, S keys, D model dimension, N heads, K key/value heads, G = N / K, H dimension of a head,
L new positions of a decoding step.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from raylingvo.models.layers.dropout import dropout
from raylingvo.models.layers.initializers import gaussian, xavier, zeros
from raylingvo.models.layers.local_attention import local_context
from raylingvo.models.layers.masks import combine_masks, window_mask
from raylingvo.models.layers.positions import Rotary, rotate
from raylingvo.models.layers.query_scale import scale_queries
from raylingvo.models.layers.relative_bias import RelativeBias, RelativeBiasConfig
from raylingvo.models.layers.scaled_softmax import softmax_context
from raylingvo.models.layers.variables import Initializer, param
from raylingvo.ops import CacheIndex, hyp_attention
from raylingvo.ops.product import einsum

QueryScale = Literal["per_dim", "sqrt_dim", "none"]
AttentionInit = Literal["xavier", "gshard"]


class KeyValues(NamedTuple):
    """Projected keys and values, [B, S, K, H] each: of a source, or the cache of the positions decoded so far."""

    key: jax.Array
    value: jax.Array


class HypKeyValues(NamedTuple):
    """Keys and values for the steps of a search, row by row, [T, M, K, H] each: see `ops.hyp_attention`."""

    key: jax.Array
    value: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """What a `MultiHeadedAttention` is. The defaults are those of Lingvo's Transformer.

    model_dim: of queries and of the output. key_dim, value_dim: of keys and values; None: model_dim.
    head_dim: None: model_dim / num_heads. num_kv_heads: heads of keys and values, each for num_heads / num_kv_heads
      heads of queries; None: num_heads; 1 is multi-query attention.
    query_scale: "per_dim": queries are multiplied by softplus(p) / (ln 2 sqrt(H)), p a trained [H] that starts at 0;
      "sqrt_dim": by 1 / sqrt(H); "none": by nothing, as in GShard, whose initial weights contain the factor.
    init: "xavier", each projection as the matrix it is, times init_scale; "gshard": N(0, 1 / (D H)) for queries,
      N(0, 1 / D) for keys and values, N(0, 1 / (N H)) for the output, standard deviations times init_scale.
    value_projection: if False, values are the given ones, cut into heads; value_dim must be num_kv_heads * head_dim.
    logit_cap: logits become cap * tanh(logits / cap). extra_logit: the softmax has one more logit of this value, and
      so may attend to nothing.
    rotary: queries and keys are rotated by their positions. relative_bias: a bias that this layer learns is added to
      the logits, before the cap.
    left_context, right_context: of self-attention: how many positions before, the own included, and after a query it
      sees. block_size: then, too, computed by blocks of so many queries: time and memory are linear in T.
    dropout_rate: of attention probabilities.
    """

    model_dim: int
    num_heads: int
    head_dim: int | None = None
    num_kv_heads: int | None = None
    key_dim: int | None = None
    value_dim: int | None = None
    use_bias: bool = True
    query_scale: QueryScale = "per_dim"
    init: AttentionInit = "xavier"
    init_scale: float = 1.0
    value_projection: bool = True
    logit_cap: float | None = None
    extra_logit: float | None = None
    rotary: Rotary | None = None
    relative_bias: RelativeBiasConfig | None = None
    left_context: int | None = None
    right_context: int | None = None
    block_size: int | None = None
    dropout_rate: float = 0.0

    def __post_init__(self) -> None:
        for name in ("model_dim", "num_heads"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be > 0 (got {getattr(self, name)})")
        for name in ("head_dim", "num_kv_heads", "key_dim", "value_dim", "left_context", "block_size", "logit_cap"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ValueError(f"{name} must be > 0 or None (got {getattr(self, name)})")
        if self.right_context is not None and self.right_context < 0:
            raise ValueError(f"right_context must be >= 0 or None (got {self.right_context})")
        if self.head_dim is None and self.model_dim % self.num_heads:
            raise ValueError(
                f"num_heads must divide model_dim {self.model_dim} (got {self.num_heads}); or set head_dim"
            )
        if self.num_heads % self.kv_heads:
            raise ValueError(f"num_kv_heads must divide num_heads {self.num_heads} (got {self.num_kv_heads})")
        if not self.value_projection and (self.value_dim or self.model_dim) != self.kv_heads * self.per_head:
            width = self.kv_heads * self.per_head
            raise ValueError(f"value_dim must be num_kv_heads * head_dim = {width} if there is no value_projection")
        if self.query_scale not in get_args(QueryScale):
            raise ValueError(f"query_scale must be one of {get_args(QueryScale)} (got {self.query_scale!r})")
        if self.init not in get_args(AttentionInit):
            raise ValueError(f"init must be one of {get_args(AttentionInit)} (got {self.init!r})")
        if self.block_size is not None and (self.left_context is None or self.right_context is None):
            raise ValueError("left_context and right_context must be set where block_size is")
        if not 0 <= self.dropout_rate < 1:
            raise ValueError(f"dropout_rate must be in [0, 1) (got {self.dropout_rate})")

    @property
    def per_head(self) -> int:
        """H."""
        return self.head_dim or self.model_dim // self.num_heads

    @property
    def kv_heads(self) -> int:
        """K."""
        return self.num_kv_heads or self.num_heads


class MultiHeadedAttention(nnx.Module):
    """Attention of queries [B, T, D] to keys and values [B, S, D'].

    Weights: query.kernel [D, N, H], key.kernel and value.kernel [D', K, H], output.kernel [N, H, D], a bias for each,
    scale [H], relative_bias.table [N, J], each if configured.
    Statistics of the softmax are float32. Masked logits are -0.7 times float32's maximum, as in Lingvo, also where
    GShard adds -1e9: a query that may see nothing attends to everything alike, or to nothing with an extra logit.
    The division by the softmax's sum comes after the values are summed, where it is over fewer numbers: what Lingvo
    calls scaling code motion, here for every configuration.
    Xavier is that of a matrix [D, N * H], as in Lingvo's core/attention.py; its batch-major layer, whose weights have
    three axes, takes D for the size of a convolution and starts smaller.
    """

    def __init__(self, config: AttentionConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32) -> None:
        self.config, self.dtype = config, dtype
        D, N, K, H = config.model_dim, config.num_heads, config.kv_heads, config.per_head
        key_dim, value_dim = config.key_dim or D, config.value_dim or D
        into, out = ("embed", "heads", "head_dim"), ("heads", "head_dim", "embed")
        into_kv = ("embed", "kv_heads", "head_dim")

        def projection(shape: Sequence[int], axes: Sequence[str], fan_in: int, bias: Sequence[str]) -> HeadsProjection:
            initializer = _matrix(xavier(config.init_scale), 2 if axes is out else 1)
            if config.init == "gshard":
                initializer = gaussian(config.init_scale * fan_in**-0.5)
            return HeadsProjection(shape, axes, initializer, bias if config.use_bias else None, rngs=rngs, dtype=dtype)

        self.query = projection((D, N, H), into, D * H, into[1:])
        self.key = projection((key_dim, K, H), into_kv, key_dim, into_kv[1:])
        values = (value_dim, K, H)
        self.value = projection(values, into_kv, value_dim, into_kv[1:]) if config.value_projection else None
        self.output = projection((N, H, D), out, N * H, out[2:])
        self.scale = param(rngs, zeros, (H,), ("head_dim",)) if config.query_scale == "per_dim" else None
        bias = config.relative_bias
        self.relative_bias = None if bias is None else RelativeBias(bias, N, rngs=rngs)

    def __call__(
        self,
        query_BxTxD: jax.Array,
        key_BxSxD: jax.Array | None = None,
        value_BxSxD: jax.Array | None = None,
        *,
        mask: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        positions: jax.Array | None = None,
        key_positions: jax.Array | None = None,
        source: KeyValues | None = None,
        rng: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Returns the output [B, T, D] and the probabilities f32[B, N, T, S], before dropout; with block_size None.

        key, value: default: the queries; the value's default is the key.
        mask: bool, broadcasts to [B, 1, T, S], True where a query may see a key. None: everywhere.
        segment_ids: i32[B, T], instead of a mask, and only with block_size: queries see keys of their own segment.
        positions, key_positions: i32[B or 1, T] and [B or 1, S], for the rotation and the relative bias; default:
          0, 1, ... The key's default, in self-attention, is the query's.
        source: instead of key and value, what `project_source` made of them. If queries are of a batch m times as
          large, query i attends to source i % B (hyp-major, as in beam search).
        Raises ValueError if both or neither of two alternatives are given.
        """
        config = self.config
        own = key_BxSxD is None and source is None
        if source is not None and key_BxSxD is not None:
            raise ValueError("source must be None where a key is given")
        if (config.left_context is not None or config.right_context is not None) and not own:
            raise ValueError("left_context and right_context must be None if keys are not those of the queries")
        if own and key_positions is None:
            key_positions = positions
        query_BxTxNxH = self._query(query_BxTxD, positions)
        if source is None:
            key = query_BxTxD if key_BxSxD is None else key_BxSxD
            source = self._key_values(key, key if value_BxSxD is None else value_BxSxD, key_positions)
        if config.block_size is not None:
            if mask is not None or positions is not None:
                raise ValueError("mask and positions must be None with block_size: it takes segment_ids")
            return self.output(self._local(query_BxTxNxH, source, segment_ids, rng)), None
        if segment_ids is not None:
            raise ValueError("segment_ids must be None without block_size: pass segment_mask(segment_ids) as the mask")
        T, S = query_BxTxNxH.shape[1], source.key.shape[1]
        if config.left_context is not None or config.right_context is not None:
            window = window_mask(jnp.arange(T), jnp.arange(S), config.left_context, config.right_context)
            mask = combine_masks(mask, window)
        bias = None
        if self.relative_bias is not None:
            bias = self.relative_bias(T, S)
            if positions is not None:
                keys = jnp.arange(S)[None] if key_positions is None else key_positions
                bias = self.relative_bias.at(positions, keys)
        return self._attend(query_BxTxNxH, source, mask, bias, rng)

    def project_source(self, key_BxSxD: jax.Array, value_BxSxD: jax.Array | None = None) -> KeyValues:
        """Keys and values of a source, once for all steps of a decoder that attends to it."""
        return self._key_values(key_BxSxD, key_BxSxD if value_BxSxD is None else value_BxSxD, None)

    def init_cache(self, batch_size: int, max_length: int) -> KeyValues:
        """An empty cache for `extend_step`: zeros [B, S = max_length, K, H] of the compute dtype."""
        zero = jnp.zeros((batch_size, max_length, self.config.kv_heads, self.config.per_head), self.dtype)
        return KeyValues(zero, zero)

    def extend_step(
        self,
        query_BxLxD: jax.Array,
        cache: KeyValues,
        index: jax.Array | int,
        *,
        mask: jax.Array | None = None,
        positions: jax.Array | None = None,
        key_positions: jax.Array | None = None,
    ) -> tuple[jax.Array, KeyValues]:
        """Causal self-attention of L new positions, at index ... index + L - 1 of the cache, to all up to themselves.

        index: i32[], may be traced. mask: bool, broadcasts to [B, 1, L, S]: if given, it alone says which entries of
        the cache are seen, as flat beam search needs. positions: i32[B or 1, L], default index, index + 1 ...;
        key_positions: i32[B or 1, S] of the cache's entries, default 0, 1, ...
        Returns the output [B, L, D] and the cache with the new positions. Equal to `__call__` under a causal mask.
        """
        config = self.config
        L, S = query_BxLxD.shape[1], cache.key.shape[1]
        slot_L = index + jnp.arange(L)
        query_BxLxNxH = self._query(query_BxLxD, slot_L[None] if positions is None else positions)
        new = self._key_values(query_BxLxD, query_BxLxD, slot_L[None] if positions is None else positions)
        cache = KeyValues(
            *(
                jax.lax.dynamic_update_slice_in_dim(old, part.astype(old.dtype), index, axis=1)
                for old, part in zip(cache, new, strict=True)
            )
        )
        query_positions = slot_L[None] if positions is None else positions
        keys = jnp.arange(S)[None] if key_positions is None else key_positions
        if mask is None:
            mask = window_mask(slot_L, jnp.arange(S), config.left_context, 0)
        elif config.left_context is not None:
            near = keys[:, None, None, :] > query_positions[:, None, :, None] - config.left_context
            mask = combine_masks(mask, near)
        bias = None if self.relative_bias is None else self.relative_bias.at(query_positions, keys)
        return self._attend(query_BxLxNxH, cache, mask, bias, None)[0], cache

    def project_source_for_hyps(self, source_BxSxD: jax.Array) -> HypKeyValues:
        """Keys and values [S, B, K, H] of sources, once for all steps of a search: see `attend_to_source`.

        Raises ValueError if the layer has what steps of hyps have not.
        """
        self._check_for_hyps()
        return HypKeyValues(*(x.swapaxes(0, 1) for x in self.project_source(source_BxSxD)))

    def attend_to_source(
        self, query_NxD: jax.Array, source: HypKeyValues, lengths_B: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Of each slot of a search to its source: the output [N, D], probabilities f32[N, S], the mean over heads.

        Slot i is of source i % B. lengths: i32[B] >= 1, real positions of the sources.
        """
        length_N = jnp.tile(lengths_B, len(query_NxD) // len(lengths_B))
        found = hyp_attention(self._query(query_NxD[:, None], None)[:, 0], source.key, source.value, length_N)
        return self.output(found.context[:, None])[:, 0], found.probs

    def init_hyp_cache(self, num_slots: int, max_steps: int) -> HypKeyValues:
        """An empty cache for `extend_hyps`. Raises ValueError if the layer has what steps of hyps have not."""
        self._check_for_hyps()
        zero = jnp.zeros((max_steps, num_slots, self.config.kv_heads, self.config.per_head), self.dtype)
        return HypKeyValues(zero, zero)

    def extend_hyps(
        self, query_NxD: jax.Array, cache: HypKeyValues, index: CacheIndex
    ) -> tuple[jax.Array, HypKeyValues]:
        """Causal self-attention of one step of a search: the output [N, D] and the cache with this step.

        index: says which step it is, and where the history of each hyp lies.
        """
        query_Nx1xD, position = query_NxD[:, None], index.step[None, None]
        new = self._key_values(query_Nx1xD, query_Nx1xD, position)
        cache = HypKeyValues(
            *(
                jax.lax.dynamic_update_index_in_dim(rows, x_Nx1xKxH[:, 0], index.step, 0)
                for rows, x_Nx1xKxH in zip(cache, new, strict=True)
            )
        )
        length_N = jnp.full(len(query_NxD), index.step + 1)
        query_NxNxH = self._query(query_Nx1xD, position)[:, 0]
        found = hyp_attention(query_NxNxH, cache.key, cache.value, length_N, index.slots)
        return self.output(found.context[:, None])[:, 0], cache

    def _check_for_hyps(self) -> None:
        for name in ("relative_bias", "left_context", "logit_cap", "extra_logit"):
            if (value := getattr(self.config, name)) is not None:
                raise ValueError(f"{name} must be None in a search by hyp_attention (got {value})")

    def _query(self, query_BxTxD: jax.Array, positions: jax.Array | None) -> jax.Array:
        query_BxTxNxH = self._rotate(self.query(query_BxTxD), positions)
        return query_BxTxNxH if self.config.query_scale == "none" else scale_queries(query_BxTxNxH, self.scale)

    def _key_values(self, key_BxSxD: jax.Array, value_BxSxD: jax.Array, positions: jax.Array | None) -> KeyValues:
        key_BxSxKxH = self._rotate(self.key(key_BxSxD), positions)
        if self.value is not None:
            return KeyValues(key_BxSxKxH, self.value(value_BxSxD))
        cut = (*value_BxSxD.shape[:2], self.config.kv_heads, self.config.per_head)
        return KeyValues(key_BxSxKxH, value_BxSxD.astype(self.dtype).reshape(cut))

    def _rotate(self, x_BxTxNxH: jax.Array, positions: jax.Array | None) -> jax.Array:
        if self.config.rotary is None:
            return x_BxTxNxH
        return rotate(
            x_BxTxNxH, jnp.arange(x_BxTxNxH.shape[1])[None] if positions is None else positions, self.config.rotary
        )

    def _attend(
        self,
        query_BxTxNxH: jax.Array,
        source: KeyValues,
        mask: jax.Array | None,
        bias: jax.Array | None,
        rng: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array]:
        batch, T, N, H = query_BxTxNxH.shape
        sources = source.key.shape[0]
        if batch % sources:
            raise ValueError(f"the batch of queries must be a multiple of that of keys {sources} (got {batch})")
        # Hyps of one source attend to it as more queries of one example: the source is not repeated.
        hyps = batch // sources
        if hyps > 1:
            stacked = query_BxTxNxH.reshape(hyps, sources, T, N, H).swapaxes(0, 1)
            query_BxTxNxH = stacked.reshape(sources, hyps * T, N, H)
            if mask is not None and (mask.shape[0] not in (1, sources) or mask.shape[2] != 1):
                raise ValueError(
                    f"mask must be [{sources} or 1, 1, 1, S] for a source of several hyps (got {mask.shape})"
                )
            if bias is not None:
                raise ValueError("relative_bias must be None for a source of several hyps")
        context, probs = softmax_context(
            query_BxTxNxH,
            source.key,
            source.value,
            mask=mask,
            bias=bias,
            logit_cap=self.config.logit_cap,
            extra_logit=self.config.extra_logit,
            drop=lambda weights: dropout(weights, self.config.dropout_rate, rng),
        )
        if hyps > 1:
            context = context.reshape(sources, hyps, T, N, H).swapaxes(0, 1).reshape(batch, T, N, H)
            probs = probs.reshape(sources, N, hyps, T, -1).transpose(2, 0, 1, 3, 4).reshape(batch, N, T, -1)
        return self.output(context), probs

    def _local(
        self, query_BxTxNxH: jax.Array, source: KeyValues, segment_ids: jax.Array | None, rng: jax.Array | None
    ) -> jax.Array:
        config = self.config
        assert config.block_size and config.left_context is not None and config.right_context is not None
        return local_context(
            query_BxTxNxH,
            source.key,
            source.value,
            segment_ids,
            left_context=config.left_context,
            right_context=config.right_context,
            block_size=config.block_size,
            bias=self.relative_bias,
            logit_cap=config.logit_cap,
            extra_logit=config.extra_logit,
            drop=lambda weights: dropout(weights, config.dropout_rate, rng),
        )


class HeadsProjection(nnx.Module):
    """[B, T, D] -> [B, T, N, H] with a kernel [D, N, H], or back with a kernel [N, H, D] and a bias [D]."""

    def __init__(
        self,
        shape: Sequence[int],
        axes: Sequence[str],
        initializer: Initializer,
        bias_axes: Sequence[str] | None,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike,
    ) -> None:
        self.dtype = dtype
        self.kernel = param(rngs, initializer, shape, axes)
        self.bias = None if bias_axes is None else param(rngs, zeros, shape[-len(bias_axes) :], bias_axes)

    def __call__(self, x: jax.Array) -> jax.Array:
        equation = "btnh,nhd->btd" if x.ndim == 4 else "btd,dnh->btnh"
        y = einsum(equation, x.astype(self.dtype), self.kernel[...].astype(self.dtype))
        if self.bias is not None:
            bias = self.bias[...].astype(self.dtype)
            y = y + bias.reshape((1,) * (y.ndim - bias.ndim) + bias.shape)
        return y


def _matrix(initializer: Initializer, num_in: int) -> Initializer:
    """The initializer of a matrix, for a weight whose first `num_in` axes are its rows."""

    def init(key: jax.Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> jax.Array:
        return initializer(key, (math.prod(shape[:num_in]), math.prod(shape[num_in:])), dtype).reshape(shape)

    return init
