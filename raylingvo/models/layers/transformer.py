"""Transformer blocks, and stacks of them that are unrolled or scanned (Lingvo: StackedTransformerLayers, RepeatLayer).

B batch, T time, D model dimension, S source positions, L new positions of a decoding step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from raylingvo.models.layers.attention import AttentionConfig, HypKeyValues, KeyValues, MultiHeadedAttention
from raylingvo.models.layers.dropout import split
from raylingvo.models.layers.feed_forward import FeedForward, FeedForwardConfig
from raylingvo.models.layers.masks import causal_mask, combine_masks, padding_mask, segment_mask
from raylingvo.models.layers.moe import MoeConfig, MoeFeedForward
from raylingvo.models.layers.residual import Residual, ResidualConfig, make_norm
from raylingvo.ops import CacheIndex
from raylingvo.ops.product import Remat, remat_policy


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """What a `Transformer` is: `num_layers` blocks of self-attention, perhaps attention to a source, and feed-forward.

    causal: positions see themselves and those before. cross_attention: of a decoder, to its source; queries are
    normalised, the source is not. residual: of the feed-forward; attention_residual: of attention, None: the same.
    moe: mixture of experts: instead of the feed-forward in every block whose number modulo `moe_every` is 0; GShard's
    is every second, from the first. final_norm: a norm after the last block, as Lingvo's Transformer has not.
    scan: blocks' weights are stacked along a new first axis and one block is compiled, for all: quick compilation of
    deep stacks. remat: what a block saves for the backward pass, by its name in `jax.checkpoint_policies`, the rest is
    computed again; None: everything is saved.
    """

    num_layers: int
    attention: AttentionConfig
    feed_forward: FeedForwardConfig
    cross_attention: AttentionConfig | None = None
    residual: ResidualConfig = dataclasses.field(default_factory=ResidualConfig)
    attention_residual: ResidualConfig | None = None
    moe: MoeConfig | None = None
    moe_every: int = 2
    causal: bool = True
    final_norm: bool = True
    scan: bool = False
    remat: Remat | None = None

    def __post_init__(self) -> None:
        for name in ("num_layers", "moe_every"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be > 0 (got {getattr(self, name)})")
        if self.cross_attention is not None and self.cross_attention.model_dim != self.attention.model_dim:
            dims = self.attention.model_dim, self.cross_attention.model_dim
            raise ValueError(f"cross_attention.model_dim must be attention.model_dim, {dims[0]} (got {dims[1]})")
        cross = self.cross_attention
        if cross is not None and (cross.rotary is not None or cross.relative_bias is not None):
            raise ValueError("cross_attention must have neither rotary nor relative_bias: a source has other positions")
        if self.remat is not None and self.remat not in get_args(Remat):
            raise ValueError(f"remat must be None or one of {get_args(Remat)} (got {self.remat!r})")
        if self.causal and self.attention.block_size is not None and self.attention.right_context != 0:
            raise ValueError(f"right_context must be 0 in a causal stack (got {self.attention.right_context})")
        if self.scan and self.moe is not None and self.num_layers % self.moe_every:
            raise ValueError(f"num_layers must be a multiple of moe_every, {self.moe_every} (got {self.num_layers})")

    @property
    def period(self) -> int:
        """After how many blocks their kinds repeat."""
        return 1 if self.moe is None else self.moe_every


class BlockInputs(NamedTuple):
    """What every block of a stack gets alike. Masks as in `masks`; nonpadding: f32[B, T, 1]; source: [B, S, D']."""

    mask: jax.Array | None = None
    segment_ids: jax.Array | None = None
    positions: jax.Array | None = None
    nonpadding: jax.Array | None = None
    source: jax.Array | None = None
    source_mask: jax.Array | None = None


class Transformed(NamedTuple):
    """output: [B, T, D]. aux_loss: f32[], the sum over the mixtures of experts, not weighted; 0 without them.

    source_probs: f32[B, T, S], attention to the source, mean over heads and layers; None unless asked for.
    """

    output: jax.Array
    aux_loss: jax.Array
    source_probs: jax.Array | None = None


class Block(nnx.Module):
    """Self-attention, attention to a source if configured, and feed-forward or experts, each in its residual."""

    def __init__(
        self, config: TransformerConfig, index: int = 0, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32
    ) -> None:
        dim = config.attention.model_dim
        around = config.attention_residual or config.residual
        cross = config.cross_attention
        self.self_residual = Residual(around, dim, rngs=rngs, dtype=dtype)
        self.self_attention = MultiHeadedAttention(config.attention, rngs=rngs, dtype=dtype)
        self.cross_residual = None if cross is None else Residual(around, dim, rngs=rngs, dtype=dtype)
        self.cross_attention = None if cross is None else MultiHeadedAttention(cross, rngs=rngs, dtype=dtype)
        self.residual = Residual(config.residual, dim, rngs=rngs, dtype=dtype)
        experts = config.moe is not None and index % config.moe_every == 0
        self.feed_forward = None if experts else FeedForward(config.feed_forward, dim, rngs=rngs, dtype=dtype)
        self.moe = MoeFeedForward(config.moe, dim, rngs=rngs, dtype=dtype) if config.moe and experts else None

    def __call__(
        self, x_BxTxD: jax.Array, inputs: BlockInputs, rng: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        """Output [B, T, D], aux loss f32[], probabilities f32[B, N, T, S] of the attention to the source."""
        self_rng, cross_rng, rest_rng = split(rng, 3)
        attention_rng, residual_rng = split(self_rng, 2)
        entered = self.self_residual.enter(x_BxTxD, inputs.nonpadding)
        y, _ = self.self_attention(
            entered, mask=inputs.mask, segment_ids=inputs.segment_ids, positions=inputs.positions, rng=attention_rng
        )
        x_BxTxD = self.self_residual.leave(x_BxTxD, entered, y, residual_rng)
        source = None
        if self.cross_attention is not None:
            if inputs.source is None:
                raise ValueError("source must be given: the stack has cross_attention")
            source = self.cross_attention.project_source(inputs.source)
        return self._after_self(x_BxTxD, source, inputs, cross_rng, rest_rng, stepping=False)

    def extend_step(
        self,
        x_BxLxD: jax.Array,
        cache: KeyValues,
        index: jax.Array | int,
        source: KeyValues | None,
        inputs: BlockInputs,
        key_positions: jax.Array | None,
    ) -> tuple[jax.Array, KeyValues, jax.Array | None]:
        """Output [B, L, D], the extended cache, probabilities of the attention to the source."""
        entered = self.self_residual.enter(x_BxLxD, inputs.nonpadding)
        y, cache = self.self_attention.extend_step(
            entered, cache, index, mask=inputs.mask, positions=inputs.positions, key_positions=key_positions
        )
        x_BxLxD = self.self_residual.leave(x_BxLxD, entered, y, None)
        x_BxLxD, _, probs = self._after_self(x_BxLxD, source, inputs, None, None, stepping=True)
        return x_BxLxD, cache, probs

    def extend_hyps(
        self,
        x_NxD: jax.Array,
        cache: HypKeyValues,
        index: CacheIndex,
        source: HypKeyValues | None,
        lengths_B: jax.Array | None,
    ) -> tuple[jax.Array, HypKeyValues, jax.Array | None]:
        """Output [N, D], the extended cache, probabilities f32[N, S] of the attention to the source."""
        entered = self.self_residual.enter(x_NxD)
        y, cache = self.self_attention.extend_hyps(entered, cache, index)
        x_NxD = self.self_residual.leave(x_NxD, entered, y, None)
        probs = None
        if self.cross_attention is not None and self.cross_residual is not None:
            if source is None or lengths_B is None:
                raise ValueError("source must be given: the stack has cross_attention")
            entered = self.cross_residual.enter(x_NxD)
            y, probs = self.cross_attention.attend_to_source(entered, source, lengths_B)
            x_NxD = self.cross_residual.leave(x_NxD, entered, y, None)
        x_Nx1xD, _ = self._feed_forward(x_NxD[:, None], None, None, by_row=True)
        return x_Nx1xD[:, 0], cache, probs

    def _after_self(
        self,
        x_BxTxD: jax.Array,
        source: KeyValues | None,
        inputs: BlockInputs,
        cross_rng: jax.Array | None,
        rest_rng: jax.Array | None,
        *,
        stepping: bool,
    ) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        probs = None
        if self.cross_attention is not None and self.cross_residual is not None:
            attention_rng, residual_rng = split(cross_rng, 2)
            entered = self.cross_residual.enter(x_BxTxD, inputs.nonpadding)
            y, probs = self.cross_attention(entered, source=source, mask=inputs.source_mask, rng=attention_rng)
            x_BxTxD = self.cross_residual.leave(x_BxTxD, entered, y, residual_rng)
        x_BxTxD, aux_loss = self._feed_forward(x_BxTxD, inputs.nonpadding, rest_rng, by_row=stepping)
        return x_BxTxD, aux_loss, probs

    def _feed_forward(
        self, x_BxTxD: jax.Array, nonpadding: jax.Array | None, rng: jax.Array | None, *, by_row: bool
    ) -> tuple[jax.Array, jax.Array]:
        """Output [B, T, D], aux loss f32[]. by_row: see `MoeFeedForward`."""
        inner_rng, residual_rng = split(rng, 2)
        entered = self.residual.enter(x_BxTxD, nonpadding)
        aux_loss = jnp.zeros((), jnp.float32)
        if self.moe is not None:
            y, aux_loss = self.moe(entered, nonpadding, by_row=by_row, rng=inner_rng)
        else:
            assert self.feed_forward is not None
            y = self.feed_forward(entered, nonpadding, rng=inner_rng)
        return self.residual.leave(x_BxTxD, entered, y, residual_rng), aux_loss


class Transformer(nnx.Module):
    """A stack of `Block`s: `blocks`, a list; scanned, of one period's blocks whose weights have a leading axis."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32) -> None:
        self.config = config

        def make(index: int, key: jax.Array) -> Block:
            return Block(config, index, rngs=nnx.Rngs(params=key), dtype=dtype)

        if config.scan:
            repeats = config.num_layers // config.period
            keys = jax.random.split(rngs.params(), (config.period, repeats))
            blocks = [jax.vmap(lambda key, i=i: make(i, key))(keys[i]) for i in range(config.period)]
        else:
            blocks = [Block(config, i, rngs=rngs, dtype=dtype) for i in range(config.num_layers)]
        self.blocks = nnx.List(blocks)
        norm = config.final_norm
        self.norm = make_norm(config.residual, config.attention.model_dim, rngs=rngs, dtype=dtype) if norm else None

    def __call__(
        self,
        x_BxTxD: jax.Array,
        *,
        paddings: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        positions: jax.Array | None = None,
        source: jax.Array | None = None,
        source_paddings: jax.Array | None = None,
        source_segment_ids: jax.Array | None = None,
        with_source_probs: bool = False,
        rng: jax.Array | None = None,
    ) -> Transformed:
        """Raises ValueError if paddings and segment ids are both given, or the source is missing.

        paddings: f32[B, T]. segment_ids: i32[B, T], for packed rows; then also source_segment_ids: i32[B, S].
        positions: i32[B or 1, T], for rotary positions and relative bias of packed rows; default 0, 1, ...
        source: [B, S, D'], source_paddings: f32[B, S]: what a decoder attends to. rng: in training.
        """
        if paddings is not None and segment_ids is not None:
            raise ValueError("paddings must be None where segment_ids are given: padding is segment 0")
        inputs = self._inputs(x_BxTxD, paddings, segment_ids, positions, source, source_paddings, source_segment_ids)
        return self._run(x_BxTxD, inputs, with_source_probs, rng)

    def _inputs(
        self,
        x_BxTxD: jax.Array,
        paddings: jax.Array | None,
        segment_ids: jax.Array | None,
        positions: jax.Array | None,
        source: jax.Array | None,
        source_paddings: jax.Array | None,
        source_segment_ids: jax.Array | None,
    ) -> BlockInputs:
        """Masks are built here, once for all blocks."""
        nonpadding = mask = source_mask = None
        if segment_ids is not None:
            nonpadding = (segment_ids != 0).astype(jnp.float32)[..., None]
        elif paddings is not None:
            nonpadding = (1 - paddings.astype(jnp.float32))[..., None]
        blocked = self.config.attention.block_size is not None
        if blocked and segment_ids is None and paddings is not None:
            segment_ids = (paddings == 0).astype(jnp.int32)
        if not blocked:
            mask = combine_masks(
                causal_mask(x_BxTxD.shape[1]) if self.config.causal else None,
                None if segment_ids is None else segment_mask(segment_ids),
                None if paddings is None else padding_mask(paddings),
            )
        if source_segment_ids is not None:
            if segment_ids is None:
                raise ValueError("segment_ids must be given where source_segment_ids are")
            source_mask = segment_mask(segment_ids, source_segment_ids)
        elif source_paddings is not None:
            source_mask = padding_mask(source_paddings)
        return BlockInputs(mask, segment_ids if blocked else None, positions, nonpadding, source, source_mask)

    def _run(
        self, x_BxTxD: jax.Array, inputs: BlockInputs, with_source_probs: bool, rng: jax.Array | None
    ) -> Transformed:
        def period(x, blocks: Sequence[Block], rng):
            aux_loss, probs = jnp.zeros((), jnp.float32), None
            for block, key in zip(blocks, split(rng, len(blocks)), strict=True):
                x, block_aux, block_probs = block(x, inputs, key)
                aux_loss = aux_loss + block_aux
                if with_source_probs and block_probs is not None:
                    mean = block_probs.mean(1)
                    probs = mean if probs is None else probs + mean
            return x, aux_loss, probs

        step = self._checkpointed(period)
        repeats, size = self.config.num_layers // self.config.period, self.config.period
        if self.config.scan:

            def body(x, xs):
                x, aux_loss, probs = step(x, xs[0], xs[1])
                return x, (aux_loss, probs)

            keys = None if rng is None else jax.random.split(rng, repeats)
            x_BxTxD, (aux_losses, probs) = jax.lax.scan(body, x_BxTxD, (list(self.blocks), keys))
            aux_loss = aux_losses.sum()
            probs = None if probs is None else probs.sum(0)
        else:
            aux_loss, probs = jnp.zeros((), jnp.float32), None
            count = -(-self.config.num_layers // size)
            for i, key in enumerate(split(rng, count)):
                x_BxTxD, some_aux, some = step(x_BxTxD, list(self.blocks[i * size : (i + 1) * size]), key)
                aux_loss = aux_loss + some_aux
                if some is not None:
                    probs = some if probs is None else probs + some
        if self.norm is not None:
            x_BxTxD = self.norm(x_BxTxD)
        return Transformed(x_BxTxD, aux_loss, None if probs is None else probs / self.config.num_layers)

    def _checkpointed(self, function: Callable) -> Callable:
        if self.config.remat is None:
            return function
        policy = remat_policy(self.config.remat)
        # A scan's body is not merged with its backward pass, so nothing need prevent that.
        return jax.checkpoint(function, policy=policy, prevent_cse=not self.config.scan)

    def init_cache(self, batch_size: int, max_length: int) -> tuple[KeyValues, ...]:
        """An empty cache per block for `extend_step`, each [B, max_length, K, H], also if the stack is scanned."""
        return tuple(block.self_attention.init_cache(batch_size, max_length) for block in self._each())

    def project_source(self, source_BxSxD: jax.Array) -> tuple[KeyValues, ...]:
        """Keys and values of the source per block, once for all steps."""
        blocks = [block.cross_attention for block in self._each()]
        return tuple(attention.project_source(source_BxSxD) for attention in blocks if attention is not None)

    def extend_step(
        self,
        x_BxLxD: jax.Array,
        cache: tuple[KeyValues, ...],
        index: jax.Array | int,
        *,
        mask: jax.Array | None = None,
        positions: jax.Array | None = None,
        key_positions: jax.Array | None = None,
        nonpadding: jax.Array | None = None,
        source: tuple[KeyValues, ...] | None = None,
        source_mask: jax.Array | None = None,
    ) -> tuple[Transformed, tuple[KeyValues, ...]]:
        """L positions of a causal stack, at index ... of the cache: what `__call__` returns for them, and the cache.

        Arguments as those of `MultiHeadedAttention.extend_step`; nonpadding: f32[B, L], 0 for positions that do not
        count, None: all do; source: of `project_source`, of the batch of x, or of the sources of x's hyps; source_mask:
        as `padding_mask` makes it, of the same batch.
        Mixtures of experts route the L positions of each row as a group.
        """
        if not self.config.causal:
            raise ValueError("causal must be True to decode by steps")
        inputs = BlockInputs(
            mask=mask,
            positions=positions,
            nonpadding=None if nonpadding is None else nonpadding[..., None],
            source_mask=source_mask,
        )
        probs, extended = None, []
        for i, block in enumerate(self._each()):
            of_source = None if source is None else source[i]
            x_BxLxD, new, block_probs = block.extend_step(x_BxLxD, cache[i], index, of_source, inputs, key_positions)
            extended.append(new)
            if block_probs is not None:
                probs = block_probs.mean(1) if probs is None else probs + block_probs.mean(1)
        if self.norm is not None:
            x_BxLxD = self.norm(x_BxLxD)
        probs = None if probs is None else probs / self.config.num_layers
        return Transformed(x_BxLxD, jnp.zeros((), jnp.float32), probs), tuple(extended)

    def init_hyp_cache(self, num_slots: int, max_steps: int) -> tuple[HypKeyValues, ...]:
        """An empty cache per block for `extend_hyps`."""
        return tuple(block.self_attention.init_hyp_cache(num_slots, max_steps) for block in self._each())

    def project_source_for_hyps(self, source_BxSxD: jax.Array) -> tuple[HypKeyValues, ...]:
        """Keys and values of the source per block, once for all steps of a search."""
        blocks = [block.cross_attention for block in self._each()]
        return tuple(attention.project_source_for_hyps(source_BxSxD) for attention in blocks if attention is not None)

    def extend_hyps(
        self,
        x_NxD: jax.Array,
        cache: tuple[HypKeyValues, ...],
        index: CacheIndex,
        source: tuple[HypKeyValues, ...] = (),
        lengths_B: jax.Array | None = None,
    ) -> tuple[Transformed, tuple[HypKeyValues, ...]]:
        """One step of a search, of all its slots: what `__call__` returns for it, without the axis of time; the cache.

        index: where the history of each hyp lies; it stays the same, and the search moves it on. source: of
        `project_source_for_hyps`; slot i is of source i % B. lengths: i32[B], real positions of the sources.
        """
        if not self.config.causal:
            raise ValueError("causal must be True to decode by steps")
        probs, extended = None, []
        for i, block in enumerate(self._each()):
            x_NxD, new, block_probs = block.extend_hyps(
                x_NxD, cache[i], index, source[i] if source else None, lengths_B
            )
            extended.append(new)
            if block_probs is not None:
                probs = block_probs if probs is None else probs + block_probs
        if self.norm is not None:
            x_NxD = self.norm(x_NxD)
        probs = None if probs is None else probs / self.config.num_layers
        return Transformed(x_NxD, jnp.zeros((), jnp.float32), probs), tuple(extended)

    def _each(self) -> Iterator[Block]:
        """Every block by itself. A step is short: its blocks are not scanned, and so caches are batch-first."""
        if not self.config.scan:
            yield from self.blocks
            return
        for repeat in range(self.config.num_layers // self.config.period):
            for block in self.blocks:
                yield jax.tree.map(lambda x, repeat=repeat: x[repeat], block)
