"""A recurrent layer with attention equals a loop over its steps, with the gradients of that loop."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from raylingvo.models.layers.attention_rnn import AttentionRNN
from raylingvo.models.layers.lstm import LSTMCell, LSTMConfig
from raylingvo.models.layers.multi_headed_source_attention import (
    MultiHeadedSourceAttention,
    MultiHeadedSourceAttentionConfig,
)

B, T, S, D, C, M, H = 2, 3, 5, 3, 4, 6, 7
RNG = np.random.default_rng(0)
X, SOURCE = (jnp.asarray(RNG.normal(size=shape), jnp.float32) for shape in ((B, T, D), (B, S, C)))
PADDINGS = jnp.asarray(np.arange(S) >= np.array([[5], [3]]), jnp.float32)


def layer_of(**options):
    cell = LSTMConfig(in_features=D + C, out_features=M, hidden_features=H, **options)
    attention = MultiHeadedSourceAttentionConfig(
        source_features=C,
        query_features=M,
        context_features=C,
        hidden_features=C,
        num_heads=2,
        kind="additive",
        attend_to_keys=True,
        dropout_rate=0.5,
    )
    rngs = nnx.Rngs(0)
    layer = AttentionRNN(LSTMCell(cell, rngs=rngs), MultiHeadedSourceAttention(attention, rngs=rngs))
    bias = nnx.state(layer, lambda path, x: path[-1] == "query_bias")
    nnx.update(layer, jax.tree.map(lambda x: jnp.arange(4.0), bias))
    return layer


def loop(layer, source):
    state, found = layer.initial_state(source, B), []
    for t in range(T):
        state, probs = layer.step(state, X[:, t], source)
        found.append((state.lstm.m, state.context, probs))
    return tuple(jnp.stack(x, axis=1) for x in zip(*found, strict=True))


def test_all_frames_are_the_loop_with_its_gradients():
    def value_and_grads(layer, run):
        definition, params = nnx.split(layer)

        def loss(params, encoded):
            layer = nnx.merge(definition, params)
            found = run(layer, layer.attention.prepare(encoded, encoded, PADDINGS))
            return sum((jnp.sin(x + i) * x).sum() for i, x in enumerate(found)), found

        return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, SOURCE)

    layer = layer_of(zoneout=0.3, forget_gate_bias=1.0)
    at_once = value_and_grads(layer, lambda layer, source: tuple(layer(X, source)))
    expected = value_and_grads(layer, loop)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), at_once, expected)


def test_a_key_drops_probabilities_and_zones_out():
    layer = layer_of(zoneout=0.5)
    draw = jax.jit(lambda rng: tuple(layer(X, layer.attention.prepare(SOURCE, SOURCE), rng=rng)))
    once, again, other = (draw(jax.random.key(i)) for i in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, once, again)
    # Some elements of the outputs keep the value of the frame before, and not the same ones.
    kept, kept_other = (np.asarray(output[:, 1:] == output[:, :-1]) for output in (once[0], other[0]))
    assert 0.2 < kept.mean() < 0.8
    assert (kept != kept_other).any()
    assert not np.allclose(once[1][:, 0], other[1][:, 0])


def test_segments_start_with_the_first_context_of_their_own_source():
    layer = layer_of()

    @jax.jit
    def call(x, encoded, ids_BxS=None, ids_BxT=None):
        return layer(x, layer.attention.prepare(encoded, encoded, None, ids_BxS), segment_ids_BxT=ids_BxT)

    x = jnp.asarray(RNG.normal(size=(2, 5, D)), jnp.float32)
    ids_BxT, ids_BxS = (jnp.asarray(ids) for ids in ([[1, 1, 2, 2, 0]] * 2, [[1, 1, 2, 2, 0]] * 2))
    found = call(x, SOURCE, ids_BxS, ids_BxT)
    for first in (0, 2):
        own = slice(first, first + 2)
        alone = call(x[:, own], SOURCE[:, own])
        np.testing.assert_allclose(found.output[:, own], alone.output, atol=1e-5)
        np.testing.assert_allclose(found.context[:, own], alone.context, atol=1e-5)
        np.testing.assert_allclose(found.probs[:, own, own], alone.probs, atol=1e-5)
