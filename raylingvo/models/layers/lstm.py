"""LSTM cells: plain, with projection, with coupled gates, with layer normalisation of each gate."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from raylingvo.models.layers.initializers import Initializer, constant, xavier, zeros
from raylingvo.models.layers.variables import param
from raylingvo.ops.product import einsum

# B sequences, D input features, H hidden (cell) features, M output features, G = 4 gates (3 when coupled).

# dot(name of a matrix, its input, what is added to the product)
Dot = Callable[[str, jax.Array, jax.Array], jax.Array]


class LSTMState(NamedTuple):
    """What a cell carries from frame to frame."""

    m: jax.Array  # [B, M], the output, in the dtype of the cell
    c: jax.Array  # f32[B, H]


class Frame(NamedTuple):
    """What else there is to know about a frame; None: nothing of the kind."""

    padding: jax.Array | None = None  # [B], 1.0: the state stays as it is
    reset: jax.Array | None = None  # bool[B]: the state is 0 before this frame
    rng: jax.Array | None = None  # a key in training, for zoneout


@dataclasses.dataclass(frozen=True, kw_only=True)
class LSTMConfig:
    """An LSTM cell: Lingvo's LSTMCellSimple or, with `layer_norm`, its LayerNormalizedLSTMCellSimple.

    in_features, out_features: D and M.
    hidden_features: H, if the output is a projection of o * tanh(c) to M features; 0: there is none, and H = M.
    cell_value_cap: c is clipped to +- this; None: it is not.
    forget_gate_bias: added to the forget gate beside its trained bias.
    output_nonlinearity: m = o * tanh(c); without it m = o * c.
    couple_input_forget_gates: the input gate is 1 - forget gate, so there are 3 gates.
    bias: a trained bias for each gate.
    layer_norm, layer_norm_epsilon: each gate is normalised over its H features and scaled before the bias is added.
    zoneout: probability with which an element of m and of c keeps its value in training; otherwise the two are mixed
      in this proportion (Krueger et al. 2017).
    """

    in_features: int
    out_features: int
    hidden_features: int = 0
    cell_value_cap: float | None = 10.0
    forget_gate_bias: float = 0.0
    output_nonlinearity: bool = True
    couple_input_forget_gates: bool = False
    bias: bool = True
    layer_norm: bool = False
    layer_norm_epsilon: float = 1e-8
    zoneout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("in_features", "out_features"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1 (got {getattr(self, name)})")
        if self.hidden_features < 0:
            raise ValueError(f"hidden_features must be >= 0 (got {self.hidden_features})")
        if self.cell_value_cap is not None and self.cell_value_cap <= 0:
            raise ValueError(f"cell_value_cap must be > 0 or None (got {self.cell_value_cap})")
        if self.layer_norm_epsilon <= 0:
            raise ValueError(f"layer_norm_epsilon must be > 0 (got {self.layer_norm_epsilon})")
        if not 0 <= self.zoneout < 1:
            raise ValueError(f"zoneout must be in [0, 1) (got {self.zoneout})")

    @property
    def cell_features(self) -> int:
        """H."""
        return self.hidden_features or self.out_features

    @property
    def gates(self) -> tuple[str, ...]:
        """The gates, in the order of the columns of the kernel."""
        gates = ("candidate", "input", "forget", "output")
        return tuple(gate for gate in gates if gate != "input" or not self.couple_input_forget_gates)


class LSTMCell(nnx.Module):
    """One frame of an LSTM, and its weights.

    Variables: kernel f32[D + M, G * H], its rows those of the input and then those of m, its columns gate by gate
    (candidate, input, forget, output); bias f32[G * H]; projection f32[H, M]; scale f32[G * H] of the normalisation.

    kernel_init: of the kernel and the projection. dtype: of products; c and the gates are float32.
    Source: Lingvo core/rnn_cell.py. Differs in that bf16 cells keep c in float32.
    """

    def __init__(
        self,
        config: LSTMConfig,
        *,
        rngs: nnx.Rngs,
        kernel_init: Initializer | None = None,
        bias_init: Initializer = zeros,
        dtype: DTypeLike = jnp.float32,
    ) -> None:
        self.config, self.dtype = config, dtype
        kernel_init = kernel_init or xavier()
        inputs, columns = config.in_features + config.out_features, len(config.gates) * config.cell_features
        self.kernel = param(rngs, kernel_init, (inputs, columns), ("embed", "mlp"))
        if config.bias:
            self.bias = param(rngs, bias_init, (columns,), ("mlp",))
        if config.layer_norm:
            self.scale = param(rngs, constant(1.0), (columns,), ("mlp",))
        if config.hidden_features:
            self.projection = param(rngs, kernel_init, (config.hidden_features, config.out_features), ("mlp", "embed"))

    def initial_state(self, batch_size: int) -> LSTMState:
        """Zeros."""
        config = self.config
        return LSTMState(
            jnp.zeros((batch_size, config.out_features), self.dtype), jnp.zeros((batch_size, config.cell_features))
        )

    def project_inputs(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., G * H], the input's part of the gates: what does not wait for the frame before.

        x may have only the first of the D features.
        """
        gates = einsum("...i,io->...o", x.astype(self.dtype), self.kernel[: x.shape[-1]].astype(self.dtype))
        bias = self._early_bias()
        return gates if bias is None else gates + bias.reshape((1,) * (gates.ndim - 1) + (-1,))

    def matrices(self, projected: int | None = None) -> dict[str, jax.Array]:
        """The matrices that each frame multiplies with, by name.

        projected: how many features `project_inputs` had; "recurrent" has the rows of the others, and those of m. None:
        all D.
        """
        first = self.config.in_features if projected is None else projected
        matrices = {"recurrent": self.kernel[first:].astype(self.dtype)}
        if self.config.hidden_features:
            matrices["projection"] = self.projection[...].astype(self.dtype)
        return matrices

    def vectors(self) -> dict[str, jax.Array]:
        """The other weights that each frame needs, by name."""
        if not self.config.layer_norm:
            return {}
        bias = self._bias()
        return {"scale": self.scale[...]} | ({} if bias is None else {"bias": bias})

    def __call__(self, state: LSTMState, x_BxD: jax.Array, frame: Frame | None = None) -> LSTMState:
        """The state after one more frame; its `m` is the output."""
        matrices, bias = self.matrices(projected=0), self._early_bias()

        def dot(name: str, x: jax.Array, addend: jax.Array) -> jax.Array:
            # A frame that comes alone needs one product with the whole kernel.
            x = jnp.concatenate([x_BxD.astype(self.dtype), x], axis=-1) if name == "recurrent" else x
            return einsum("bi,io->bo", x, matrices[name]) + addend

        gates_x = jnp.zeros((), self.dtype) if bias is None else bias[None]
        return lstm_step(self.config, dot, self.vectors(), state, gates_x, frame or Frame())

    def _early_bias(self) -> jax.Array | None:
        """[G * H], what is added to products; a bias behind a normalisation is not."""
        bias = None if self.config.layer_norm else self._bias()
        return None if bias is None else bias.astype(self.dtype)

    def _bias(self) -> jax.Array | None:
        config = self.config
        bias = self.bias[...] if config.bias else None
        if not config.forget_gate_bias:
            return bias
        fixed = [config.forget_gate_bias if gate == "forget" else 0.0 for gate in config.gates]
        fixed = jnp.repeat(jnp.asarray(fixed), config.cell_features)
        return fixed if bias is None else bias + fixed


def lstm_step(
    config: LSTMConfig, dot: Dot, vectors: Mapping[str, jax.Array], state: LSTMState, gates_x: jax.Array, frame: Frame
) -> LSTMState:
    """One frame, as a pure function.

    dot: multiplies with the matrices of `LSTMCell.matrices`, and adds. vectors: as `LSTMCell.vectors`.
    gates_x: [B, G * H] of `LSTMCell.project_inputs`.
    """
    if frame.reset is not None:
        keep_Bx1 = ~frame.reset[:, None]
        state = LSTMState(*(jnp.where(keep_Bx1, x, jnp.zeros((), x.dtype)) for x in state))
    gates = dot("recurrent", state.m, gates_x).astype(jnp.float32)
    if config.layer_norm:
        gates = _normalize_gates(config, vectors, gates)
    gate = dict(zip(config.gates, jnp.split(gates, len(config.gates), axis=-1), strict=True))
    forget, candidate = jax.nn.sigmoid(gate["forget"]), jnp.tanh(gate["candidate"])
    admit = 1 - forget if config.couple_input_forget_gates else jax.nn.sigmoid(gate["input"])
    c = forget * state.c + admit * candidate
    if config.cell_value_cap is not None:
        c = jnp.clip(c, -config.cell_value_cap, config.cell_value_cap)
    m = jax.nn.sigmoid(gate["output"]) * (jnp.tanh(c) if config.output_nonlinearity else c)
    m = m.astype(state.m.dtype)
    if config.hidden_features:
        m = dot("projection", m, jnp.zeros((), m.dtype))
    new = LSTMState(m, c)
    if config.zoneout:
        new = _zoneout(config.zoneout, state, new, frame.rng)
    if frame.padding is not None:
        padded_Bx1 = (frame.padding > 0)[:, None]
        new = LSTMState(*(jnp.where(padded_Bx1, old, x) for old, x in zip(state, new, strict=True)))
    return new


def _normalize_gates(config: LSTMConfig, vectors: Mapping[str, jax.Array], gates: jax.Array) -> jax.Array:
    gates_BxGxH = gates.reshape(-1, len(config.gates), config.cell_features)
    centered = gates_BxGxH - gates_BxGxH.mean(-1, keepdims=True)
    variance = jnp.square(centered).mean(-1, keepdims=True)
    normal = (centered * jax.lax.rsqrt(variance + config.layer_norm_epsilon)).reshape(gates.shape)
    scaled = normal * vectors["scale"][None]
    return scaled + vectors["bias"][None] if "bias" in vectors else scaled


def _zoneout(rate: float, old: LSTMState, new: LSTMState, rng: jax.Array | None) -> LSTMState:
    if rng is None:
        return LSTMState(*((rate * a + (1 - rate) * b).astype(b.dtype) for a, b in zip(old, new, strict=True)))
    rngs = jax.random.split(rng)
    return LSTMState(
        *(jnp.where(jax.random.bernoulli(key, rate, b.shape), a, b) for key, a, b in zip(rngs, old, new, strict=True))
    )
