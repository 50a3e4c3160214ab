"""LSTM cells: Lingvo's values, what their options do, and what a config refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from layer_gradients import assert_grad, assert_output, outputs_and_grads

from raylingvo.models.layers.lstm import Frame, LSTMCell, LSTMConfig, LSTMState
from raylingvo.models.layers.rnn import RNN

NAMES = {"kernel": "wm", "bias": "b", "scale": "ln_scale", "projection": "w_proj"}


def config_of(case):
    p = dict(case["params"])
    assert not p.pop("reset_cell_state", False) or "in_reset_mask" in case["arrays"]
    names = {
        "num_input_nodes": "in_features",
        "num_output_nodes": "out_features",
        "num_hidden_nodes": "hidden_features",
        "enable_lstm_bias": "bias",
        "zo_prob": "zoneout",  # in evaluation: the expectation
    }
    normalized = case["layer"].startswith("LayerNormalized")
    return LSTMConfig(layer_norm=normalized, **{names.get(name, name): value for name, value in p.items()})


def set_weights(cell, arrays):
    for ours, theirs in NAMES.items():
        assert hasattr(cell, ours) == (f"w_{theirs}" in arrays)
        if hasattr(cell, ours):
            getattr(cell, ours)[...] = jnp.asarray(arrays[f"w_{theirs}"])


def cell_of(**options):
    cell = LSTMCell(LSTMConfig(in_features=3, out_features=4, **options), rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    for variable in jax.tree.leaves(nnx.state(cell), is_leaf=lambda x: isinstance(x, nnx.Variable)):
        variable[...] = jnp.asarray(rng.normal(size=variable.shape), jnp.float32)
    return cell


def a_state(hidden=4, seed=1):
    rng = np.random.default_rng(seed)
    return LSTMState(*(jnp.asarray(rng.normal(size=(2, n)), jnp.float32) for n in (4, hidden)))


X = jnp.asarray(np.random.default_rng(2).normal(size=(2, 3)), jnp.float32)


def test_cells_are_lingvos(lingvo_vectors):
    cases = [case for case in lingvo_vectors("i_layers") if "LSTMCell" in case[0]["layer"]]
    assert len(cases) >= 6
    for case, arrays in cases:
        cell = LSTMCell(config_of(case), rngs=nnx.Rngs(0))
        set_weights(cell, arrays)
        definition, params = nnx.split(cell)
        keep = arrays.get("in_reset_mask")
        resets = None if keep is None else jnp.asarray(keep[..., 0] == 0)
        frames = Frame(padding=jnp.asarray(arrays["in_padding"][..., 0]), reset=resets)

        def run(params, x, state, definition=definition, frames=frames):
            cell = nnx.merge(definition, params)

            def step(state, frame):
                state = cell(state, frame[0], frame[1])
                return state, (state.m, state.c)

            return jax.lax.scan(step, state, (x, frames))[1], None

        state = LSTMState(jnp.asarray(arrays["in_m0"]), jnp.asarray(arrays["in_c0"]))
        cotangents = jnp.asarray(arrays["fix_m"]), jnp.asarray(arrays["fix_c"])
        (m, c), _, (grads, x, state) = outputs_and_grads(
            run, (params, jnp.asarray(arrays["in_act"]), state), cotangents
        )
        assert_output(m, arrays["out_m"], case["id"])
        assert_output(c, arrays["out_c"], case["id"])
        expected = {"act": x, "m0": state.m, "c0": state.c}
        for name, grad in expected.items():
            assert_grad(grad, arrays[f"gin_{name}"], case["id"])
        for ours, theirs in NAMES.items():
            if hasattr(cell, ours):
                assert_grad(grads[ours][...], arrays[f"gw_{theirs}"], case["id"])


def test_a_coupled_cell_has_three_gates_and_admits_what_it_forgets():
    cell = cell_of(couple_input_forget_gates=True, cell_value_cap=None)
    assert cell.kernel.shape == (7, 12)
    state = a_state()
    candidate, forget, output = np.split(
        np.concatenate([X, state.m], 1) @ np.asarray(cell.kernel) + np.asarray(cell.bias), 3, axis=1
    )
    forget = 1 / (1 + np.exp(-forget))
    c = forget * np.asarray(state.c) + (1 - forget) * np.tanh(candidate)
    got = cell(state, X)
    np.testing.assert_allclose(got.c, c, atol=1e-6)
    np.testing.assert_allclose(got.m, np.tanh(c) / (1 + np.exp(-output)), atol=1e-6)


def test_a_projection_is_the_output_and_feeds_the_next_frame():
    plain = cell_of(hidden_features=5)
    assert plain.kernel.shape == (7, 20)
    assert plain.projection.shape == (5, 4)
    new = plain(a_state(5), X)
    assert (new.m.shape, new.c.shape) == ((2, 4), (2, 5))
    without = LSTMCell(LSTMConfig(in_features=7, out_features=5, bias=True), rngs=nnx.Rngs(0))
    without.kernel[...] = jnp.concatenate([plain.kernel[...], jnp.zeros((5, 20))])  # m of before is an input here
    without.bias[...] = plain.bias[...]
    state = a_state(5)
    expected = without(LSTMState(jnp.zeros((2, 5)), state.c), jnp.concatenate([X, state.m], 1))
    np.testing.assert_allclose(new.c, expected.c, atol=1e-6)
    np.testing.assert_allclose(new.m, expected.m @ plain.projection[...], atol=1e-6)


def test_the_forget_bias_is_as_good_as_a_trained_one():
    for options in ({}, {"layer_norm": True}, {"couple_input_forget_gates": True}):
        fixed, trained = cell_of(forget_gate_bias=2.0, **options), cell_of(**options)
        first = 4 * trained.config.gates.index("forget")
        trained.bias[...] = trained.bias[...].at[first : first + 4].add(2.0)
        for a, b in zip(fixed(a_state(), X), trained(a_state(), X), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)


def test_the_cell_value_is_capped():
    assert jnp.abs(cell_of(cell_value_cap=0.1)(a_state(), 10 * X).c).max() == pytest.approx(0.1)


def test_zoneout_keeps_elements_in_training_and_mixes_otherwise():
    cell, plain, state = cell_of(zoneout=0.25), cell_of(), a_state()
    new = plain(state, X)
    mixed = cell(state, X)
    np.testing.assert_allclose(mixed.c, 0.25 * state.c + 0.75 * new.c, atol=1e-6)
    kept = [cell(state, X, Frame(rng=key)).c == state.c for key in jax.random.split(jax.random.key(0), 50)]
    assert 0.18 < np.mean(kept) < 0.32


def test_bf16_products_keep_the_cell_value_in_float32():
    cell = LSTMCell(LSTMConfig(in_features=3, out_features=4), rngs=nnx.Rngs(0), dtype=jnp.bfloat16)
    _, state = RNN(cell)(jnp.ones((2, 5, 3)))
    assert (state.m.dtype, state.c.dtype, cell.kernel.dtype) == (jnp.bfloat16, jnp.float32, jnp.float32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_features": 0}, r"in_features must be >= 1 \(got 0\)"),
        ({"out_features": -1}, r"out_features must be >= 1 \(got -1\)"),
        ({"hidden_features": -1}, r"hidden_features must be >= 0 \(got -1\)"),
        ({"cell_value_cap": 0.0}, r"cell_value_cap must be > 0 or None \(got 0.0\)"),
        ({"layer_norm_epsilon": 0.0}, r"layer_norm_epsilon must be > 0 \(got 0.0\)"),
        ({"zoneout": 1.0}, r"zoneout must be in \[0, 1\) \(got 1.0\)"),
    ],
)
def test_a_config_says_what_is_wrong(options, message):
    with pytest.raises(ValueError, match=message):
        LSTMConfig(**{"in_features": 3, "out_features": 4} | options)
