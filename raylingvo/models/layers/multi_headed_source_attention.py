"""Multi-headed attention of decoder states over a source: dot-product, or additive as in RNMT+."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from raylingvo.models.layers.additive_attention import additive_logits
from raylingvo.models.layers.dropout import dropout
from raylingvo.models.layers.initializers import Initializer, uniform_sqrt_dim, xavier, zeros
from raylingvo.models.layers.query_scale import scale_queries
from raylingvo.models.layers.source_attention import Source, by_source, prepare, probabilities
from raylingvo.models.layers.variables import param
from raylingvo.ops.product import einsum

# B sources of S positions with D features, C context features; Q = R * B queries (source_attention); N heads of K
# features each, and of J context features each; H hidden features of additive attention.

Kind = Literal["dot_product", "additive"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiHeadedSourceAttentionConfig:
    """Lingvo's time-major MultiHeadedAttention (core/attention.py).

    source_features, query_features, context_features: of what is projected, or of what is attended with as it is.
    hidden_features: N * K, of all heads together.
    kind: how a head compares query and source; its weights are shared by the heads. "additive" as `AdditiveAttention`
      with `additive_features` hidden features (0: K), "dot_product" as `DotProductAttention`.
    per_dim_scale: "dot_product" trains a scale for each of K features; False: it is 1 / sqrt(K).
    project_source, project_query, project_context: by a kernel to hidden_features; what is not projected is split
      among the heads as it is.
    attend_to_keys: contexts are the projected source, and those given are ignored (use_source_vec_as_attention_value).
    output_features: of a projection of the contexts of all heads, side by side; 0: there is none.
    bias: projections have biases, at first 0.
    logit_cap: c > 0: c * tanh(logits / c) before the softmax; None: no cap.
    head_of_probabilities: which head's probabilities are returned; None: the mean of all.
    dropout_rate: of the probabilities, in training.
    """

    source_features: int
    query_features: int
    context_features: int
    hidden_features: int
    num_heads: int
    kind: Kind = "dot_product"
    additive_features: int = 0
    per_dim_scale: bool = True
    project_source: bool = True
    project_query: bool = True
    project_context: bool = False
    attend_to_keys: bool = False
    output_features: int = 0
    bias: bool = True
    logit_cap: float | None = None
    head_of_probabilities: int | None = None
    dropout_rate: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind must be one of {', '.join(get_args(Kind))} (got {self.kind!r})")
        if self.kind == "additive" and not self.per_dim_scale:
            raise ValueError("per_dim_scale must be True where kind is 'additive', which scales nothing (got False)")
        if self.kind == "dot_product" and self.additive_features:
            raise ValueError(f"additive_features must be 0 where kind is 'dot_product' (got {self.additive_features})")
        if self.logit_cap is not None and not self.logit_cap > 0:
            raise ValueError(f"logit_cap must be > 0 or None (got {self.logit_cap})")
        if self.num_heads < 1:
            raise ValueError(f"num_heads must be >= 1 (got {self.num_heads})")
        if self.attend_to_keys and self.project_context:
            raise ValueError("project_context must be False where attend_to_keys is True (got True)")
        widths = {"hidden_features": self.hidden_features, "context_features": self.values}
        for name, width in widths.items():
            if width % self.num_heads:
                raise ValueError(f"{name} must be divisible by {self.num_heads} heads (got {width})")
        for name in ("source", "query"):
            width = getattr(self, f"{name}_features")
            if not getattr(self, f"project_{name}") and width != self.hidden_features:
                raise ValueError(f"{name}_features must be {self.hidden_features} if not projected (got {width})")
        if self.head_of_probabilities is not None and not 0 <= self.head_of_probabilities < self.num_heads:
            raise ValueError(
                f"head_of_probabilities must be None or one of {self.num_heads} heads "
                f"(got {self.head_of_probabilities})"
            )

    @property
    def values(self) -> int:
        """N * J."""
        return self.hidden_features if self.attend_to_keys or self.project_context else self.context_features


class MultiHeadedSourceAttention(nnx.Module):
    """Which positions of its source a query looks at, head by head.

    Variables: source_kernel f32[D, N * K], query_kernel, context_kernel f32[C, N * K], output_kernel
    f32[N * J, output features], each with its bias; per_dim_scale f32[K] if there is one, or additive_source_kernel and
    additive_query_kernel f32[K, H] and additive_hidden f32[H].
    kernel_init: of the projections. additive_init: of the additive kernels. dtype: of all but the softmax.
    """

    def __init__(
        self,
        config: MultiHeadedSourceAttentionConfig,
        *,
        rngs: nnx.Rngs,
        kernel_init: Initializer | None = None,
        additive_init: Initializer | None = None,
        dtype: DTypeLike = jnp.float32,
    ) -> None:
        self.config, self.dtype = config, dtype
        kernel_init, additive_init = kernel_init or xavier(), additive_init or uniform_sqrt_dim(3**0.5)
        projections = {
            "source": (config.project_source, config.source_features, config.hidden_features),
            "query": (config.project_query, config.query_features, config.hidden_features),
            "context": (config.project_context, config.context_features, config.hidden_features),
            "output": (config.output_features > 0, config.values, config.output_features),
        }
        for name, (exists, inputs, outputs) in projections.items():
            axes = ("heads", "embed") if name == "output" else ("embed", "heads")
            if exists:
                setattr(self, f"{name}_kernel", param(rngs, kernel_init, (inputs, outputs), axes))
            if exists and config.bias:
                setattr(self, f"{name}_bias", param(rngs, zeros, (outputs,), axes[1:]))
        width = config.hidden_features // config.num_heads
        if config.kind == "dot_product":
            self.per_dim_scale = param(rngs, zeros, (width,), ("head_dim",)) if config.per_dim_scale else None
        else:
            hidden = config.additive_features or width
            self.additive_source_kernel = param(rngs, additive_init, (width, hidden), ("head_dim", None))
            self.additive_query_kernel = param(rngs, additive_init, (width, hidden), ("head_dim", None))
            self.additive_hidden = param(rngs, additive_init, (hidden,), (None,))

    def prepare(
        self,
        source_BxSxD: jax.Array,
        contexts_BxSxC: jax.Array,
        paddings_BxS: jax.Array | None = None,
        segment_ids_BxS: jax.Array | None = None,
    ) -> Source:
        """The source for all calls. paddings: 1.0 = padded. segment_ids: of packed sources."""
        keys_BxSxNxK = self._heads(self._project("source", source_BxSxD))
        contexts_BxSxNxJ = keys_BxSxNxK
        if not self.config.attend_to_keys:
            contexts_BxSxNxJ = self._heads(self._project("context", contexts_BxSxC))
        if self.config.kind == "additive":
            keys_BxSxNxK = einsum("bsnk,kj->bsnj", keys_BxSxNxK, self.additive_source_kernel[...].astype(self.dtype))
        return prepare(keys_BxSxNxK, contexts_BxSxNxJ, paddings_BxS, segment_ids_BxS)

    def __call__(
        self,
        source: Source,
        query_QxD: jax.Array,
        *,
        paddings_QxS: jax.Array | None = None,
        segment_ids_Q: jax.Array | None = None,
        rng: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """The context [Q, output features or N * J] and the probabilities f32[Q, S] of one head or their mean.

        Arguments and errors as those of `AdditiveAttention`. There may be R segment_ids_Q for a single query of each
        source: the result has Q = R * B rows, one for each of them.
        """
        config = self.config
        queries_QxNxK = self._heads(self._project("query", query_QxD))
        if config.kind == "additive":
            queries_QxNxK = einsum("qnk,kj->qnj", queries_QxNxK, self.additive_query_kernel[...].astype(self.dtype))
            queries_RxBxNxK = by_source(queries_QxNxK, source.keys.shape[0])
            logits_RxBxSxN = additive_logits(source.keys[None], queries_RxBxNxK[:, :, None], self.additive_hidden[...])
            logits_RxBxNxS = logits_RxBxSxN.swapaxes(2, 3)
        else:
            queries_QxNxK = scale_queries(queries_QxNxK, self.per_dim_scale)
            queries_RxBxNxK = by_source(queries_QxNxK, source.keys.shape[0])
            logits_RxBxNxS = einsum("rbnk,bsnk->rbns", queries_RxBxNxK, source.keys)
        probs_RxBxNxS = probabilities(
            logits_RxBxNxS, source, paddings_QxS=paddings_QxS, segment_ids_Q=segment_ids_Q, cap=config.logit_cap
        )
        dropped = dropout(probs_RxBxNxS, config.dropout_rate, rng).astype(self.dtype)
        contexts_RxBxNxJ = einsum("rbns,bsnj->rbnj", dropped, source.contexts)
        rows = contexts_RxBxNxJ.shape[0] * contexts_RxBxNxJ.shape[1]
        context = self._project("output", contexts_RxBxNxJ.reshape(rows, -1))
        head = config.head_of_probabilities
        probs_RxBxS = probs_RxBxNxS.mean(2) if head is None else probs_RxBxNxS[:, :, head]
        return context, probs_RxBxS.reshape(rows, -1)

    def _project(self, name: str, x: jax.Array) -> jax.Array:
        x = x.astype(self.dtype)
        if hasattr(self, f"{name}_kernel"):
            x = einsum("...i,io->...o", x, getattr(self, f"{name}_kernel")[...].astype(self.dtype))
        if hasattr(self, f"{name}_bias"):
            bias = getattr(self, f"{name}_bias")[...].astype(self.dtype)
            x = x + bias.reshape((1,) * (x.ndim - 1) + (-1,))
        return x

    def _heads(self, x: jax.Array) -> jax.Array:
        """[..., N * K] as [..., N, K]."""
        return x.reshape(*x.shape[:-1], self.config.num_heads, -1)
