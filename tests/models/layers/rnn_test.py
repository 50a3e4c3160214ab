"""Recurrent layers equal a loop over frames, whatever the direction, recomputation, padding or packing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from raylingvo.models.layers import rnn
from raylingvo.models.layers.lstm import Frame, LSTMCell, LSTMConfig, LSTMState

B, T, D, M, H = 2, 5, 3, 4, 5
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(B, T, D)), jnp.float32)
LENGTHS = np.array([5, 2])
PADDINGS = jnp.asarray(np.arange(T) >= LENGTHS[:, None], jnp.float32)
LN_PROJECTED = LSTMConfig(in_features=D, out_features=M, hidden_features=H, layer_norm=True, layer_norm_epsilon=1e-3)
PLAIN = LSTMConfig(in_features=D, out_features=M)


def cell_of(config, seed=0):
    return LSTMCell(config, rngs=nnx.Rngs(seed))


@jax.jit
def call(layer, *args, **kwargs):
    return layer(*args, **kwargs)


@jax.jit
def loop(cell, x, paddings=None, state=None):
    """Frame by frame, as the cell says, with the gradients of a plain scan."""
    state = cell.initial_state(len(x)) if state is None else state
    frames = Frame(padding=None if paddings is None else paddings.swapaxes(0, 1))

    def step(state, frame):
        state = cell(state, *frame)
        return state, state.m

    state, outputs = jax.lax.scan(step, state, (x.swapaxes(0, 1), frames))
    return outputs.swapaxes(0, 1), state


def value_and_grads(layer, run):
    """A scalar of what `run(layer)` returns, and its gradients with respect to each variable."""
    definition, params = nnx.split(layer)

    def loss(params):
        leaves = jax.tree.leaves(run(nnx.merge(definition, params)))
        return sum((jnp.sin(x + i) * x).sum() for i, x in enumerate(leaves))

    return jax.jit(jax.value_and_grad(loss))(params)


def assert_equal(a, b, atol=2e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a, b)


@pytest.mark.parametrize("config", [PLAIN, LN_PROJECTED], ids=["plain", "projected, normalised"])
def test_a_layer_is_the_loop_with_its_gradients_recomputed_or_not(config):
    start = LSTMState(jnp.full((B, M), 0.3), jnp.full((B, config.cell_features), -0.2))
    kept, again = (rnn.RNN(cell_of(config), recompute=recompute) for recompute in (False, True))
    expected = value_and_grads(kept, lambda layer: loop(layer.cell, X, PADDINGS, start))
    for layer in (kept, again):
        assert_equal(value_and_grads(layer, lambda layer: layer(X, PADDINGS, initial_state=start)), expected)


def test_the_gradients_of_inputs_and_of_the_first_state_are_those_of_the_loop():
    cell = cell_of(LN_PROJECTED)
    start = LSTMState(jnp.full((B, M), 0.3), jnp.full((B, H), -0.2))

    def grads(run):
        return jax.grad(lambda x, state: (lambda y, s: (y**2).sum() + s.c.sum())(*run(x, state)), argnums=(0, 1))(
            X, start
        )

    layer = rnn.RNN(cell)
    assert_equal(
        jax.jit(grads, static_argnums=0)(lambda x, state: layer(x, PADDINGS, initial_state=state)),
        jax.jit(grads, static_argnums=0)(lambda x, state: loop(cell, x, PADDINGS, state)),
    )


def test_padded_frames_carry_the_state_and_never_leak():
    layer = rnn.RNN(cell_of(PLAIN))
    garbage = jnp.where(PADDINGS[..., None] > 0, 1e3, X)
    y, last = call(layer, X, PADDINGS)
    assert_equal((y, last), call(layer, garbage, PADDINGS), atol=0)
    for b, length in enumerate(LENGTHS):
        alone, state = call(layer, X[b : b + 1, :length])
        np.testing.assert_allclose(y[b, :length], alone[0], atol=1e-6)
        np.testing.assert_allclose(last.c[b], state.c[0], atol=1e-6)
        np.testing.assert_allclose(y[b, length:], np.tile(y[b, length - 1], (T - length, 1)), atol=0)


def test_both_directions_see_only_frames_that_are_not_padded():
    layer = rnn.BidirectionalRNN(cell_of(PLAIN), cell_of(LN_PROJECTED, 1))
    y = call(layer, jnp.where(PADDINGS[..., None] > 0, 1e3, X), PADDINGS)
    assert y.shape == (B, T, 2 * M)
    for b, length in enumerate(LENGTHS):
        x = X[b : b + 1, :length]
        np.testing.assert_allclose(y[b, :length, :M], loop(layer.forward.cell, x)[0][0], atol=1e-5)
        np.testing.assert_allclose(y[b, :length, M:], loop(layer.backward.cell, x[:, ::-1])[0][0, ::-1], atol=1e-5)


@pytest.mark.parametrize("reverse", [False, True])
def test_packed_sequences_are_as_good_as_separate_ones(reverse):
    layer = rnn.RNN(cell_of(PLAIN), reverse=reverse)
    pieces = [X[:1, :3], X[1:, :3], X[1:, 2:]]
    packed = jnp.concatenate([*pieces[:2], jnp.full((1, 2, D), 7.0), pieces[2]], axis=1)
    ids = jnp.asarray([[1, 1, 1, 2, 2, 2, 0, 0, 3, 3, 3]])
    y, last = call(layer, packed, segment_ids_BxT=ids)
    for first, piece in zip((0, 3, 8), pieces, strict=True):
        alone, state = call(layer, piece)
        np.testing.assert_allclose(y[0, first : first + 3], alone[0], atol=1e-6)
        if first == (0 if reverse else 8):
            assert_equal(last, state, 1e-6)


def test_a_segment_goes_on_after_padding_within_it_and_with_the_state_it_is_given():
    layer = rnn.RNN(cell_of(PLAIN))
    first, state = call(layer, X[:1, :2])
    second, last = call(layer, X[:1, 2:4], initial_state=state)
    holed = jnp.concatenate([X[:1, :2], jnp.full((1, 1, D), 5.0), X[:1, 2:4]], 1)
    y, end = call(layer, holed, segment_ids_BxT=jnp.asarray([[1, 1, 0, 1, 1]]))
    assert_equal((y[:, jnp.array([0, 1, 3, 4])], end), (jnp.concatenate([first, second], 1), last), 1e-6)
    assert_equal(
        call(layer, X[:1, 2:4], segment_ids_BxT=jnp.asarray([[1, 1]]), initial_state=state), (second, last), 1e-6
    )


def test_zoneout_is_the_same_again_when_recomputed():
    config = LSTMConfig(in_features=D, out_features=M, zoneout=0.5)
    layers = [rnn.RNN(cell_of(config), recompute=recompute) for recompute in (False, True)]
    key = jax.random.key(3)
    kept, recomputed = [value_and_grads(x, lambda layer: layer(X, PADDINGS, rng=key)) for x in layers]
    assert_equal(kept, recomputed)
    assert not np.allclose(call(layers[0], X)[0], call(layers[0], X, rng=key)[0])


def test_a_stack_adds_its_inputs_from_a_layer_on():
    widths = [D, M, M]
    stack = rnn.StackedRNN(3, lambda i: cell_of(LSTMConfig(in_features=widths[i], out_features=M), i), residual_start=2)
    y, states = call(stack, X, PADDINGS)
    first, state0 = call(stack.layers[0], X, PADDINGS)
    second, state1 = call(stack.layers[1], first, PADDINGS)
    third, state2 = call(stack.layers[2], second, PADDINGS)
    assert_equal((y, states), (second + third, [state0, state1, state2]), 1e-6)
    begun, _ = call(stack, X[:, 3:], initial_states=call(stack, X[:, :3])[1])
    np.testing.assert_allclose(begun, call(stack, X)[0][:, 3:], atol=1e-6)


def test_a_bidirectional_stack_adds_its_inputs_and_drops_in_training():
    stack = rnn.StackedBidirectionalRNN(
        2, D, lambda i, d: cell_of(LSTMConfig(in_features=d, out_features=M), i), dropout_rate=0.5
    )
    first = call(stack.layers[0], X, PADDINGS)
    y = call(stack, X, PADDINGS)
    np.testing.assert_allclose(y, first + call(stack.layers[1], first, PADDINGS), atol=1e-6)
    dropped = call(stack, X, PADDINGS, rng=jax.random.key(0))
    np.testing.assert_allclose(dropped, call(stack, X, PADDINGS, rng=jax.random.key(0)), atol=0)
    assert not np.allclose(dropped, y)


def test_residual_connections_need_as_many_features():
    with pytest.raises(ValueError, match=r"residual_start must be None, or .* \(got 0; layer 0 has 3 in and 4 out\)"):
        rnn.StackedRNN(1, lambda i: cell_of(PLAIN), residual_start=0)
