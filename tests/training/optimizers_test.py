"""Optimizers: Lingvo's variables after each of twenty updates, and the formulas written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from raylingvo.training.optimizers import Adam, Sgd

OURS = {"SGD": Sgd(), "Adam": Adam(), "Adam:ParamsA": Adam(beta1=0.9, beta2=0.997, epsilon=1e-9)}


def trajectory(optimizer, start, grads, rates):
    """start: {name: [..]}, grads: {name: [T, ..]}, rates [T] -> {name: [T + 1, ..]}."""
    transformation = optimizer.build()
    update = jax.jit(transformation.update)
    params = jax.tree.map(jnp.asarray, start)
    state, history = transformation.init(params), [params]
    for t, rate in enumerate(rates):
        direction, state = update(jax.tree.map(lambda g, t=t: g[t], grads), state, params)
        params = jax.tree.map(lambda p, d, rate=rate: p - rate * d, params, direction)
        history.append(params)
    return {name: np.stack([params[name] for params in history]) for name in start}


@pytest.mark.data
def test_trajectories_of_lingvo(lingvo_vectors):
    seen = []
    for case, arrays in lingvo_vectors("h_optimizers"):
        name = case.get("optimizer")
        optimizer = Sgd(momentum=case["params"].get("alpha", 0.9)) if name == "Momentum" else OURS.get(name)
        if case["kind"] != "optimizer" or optimizer is None:
            continue
        grads = {v: arrays[f"grad_{v}"] for v in "wbk"}
        actual = trajectory(optimizer, {v: arrays[f"out_{v}"][0] for v in "wbk"}, grads, arrays["lr"])
        for v in "wbk":
            np.testing.assert_allclose(
                actual[v], arrays[f"out_{v}"], rtol=2e-4, atol=2e-6, err_msg=f"{case['id']}, {v}"
            )
        seen.append(name)
    assert sorted(set(seen)) == ["Adam", "Adam:ParamsA", "Momentum", "SGD"]
    assert seen.count("Momentum") == 2


GRADS = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
START = np.array([1.0, -2.0, 0.5], np.float32)


def run(optimizer):
    return trajectory(optimizer, {"w": START}, {"w": GRADS}, np.full(len(GRADS), 0.1, np.float32))["w"][-1]


def test_sgd():
    np.testing.assert_allclose(run(Sgd()), START - 0.1 * GRADS.sum(axis=0), rtol=1e-5)


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum(nesterov):
    w, m = START.astype(np.float64), np.zeros(3)
    for g in GRADS:
        m = 0.8 * m + g
        w = w - 0.1 * (g + 0.8 * m if nesterov else m)
    np.testing.assert_allclose(run(Sgd(momentum=0.8, nesterov=nesterov)), w, rtol=1e-5)


def test_adam_adds_epsilon_before_the_bias_correction():
    optimizer = Adam(beta1=0.8, beta2=0.9, epsilon=0.5)
    w, m, v = START.astype(np.float64), np.zeros(3), np.zeros(3)
    for t, g in enumerate(GRADS, 1):
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g**2
        w = w - 0.1 * np.sqrt(1 - 0.9**t) / (1 - 0.8**t) * m / (np.sqrt(v) + 0.5)
    np.testing.assert_allclose(run(optimizer), w, rtol=1e-5)


def test_slots_have_the_types_of_the_weights():
    params = {"a": jnp.zeros(3, jnp.bfloat16), "b": jnp.zeros((2, 2), jnp.float32)}
    state = Adam().build().init(params)
    for slots in (state.mu, state.nu):
        assert jax.tree.map(lambda x: (x.shape, x.dtype), slots) == jax.tree.map(lambda x: (x.shape, x.dtype), params)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sgd(momentum=1.0), r"momentum must be in \[0, 1\) \(got 1.0\)"),
        (lambda: Adam(beta1=-0.1), r"beta1 must be in \[0, 1\) \(got -0.1\)"),
        (lambda: Adam(beta2=1.0), r"beta2 must be in \[0, 1\) \(got 1.0\)"),
        (lambda: Adam(epsilon=0.0), r"epsilon must be > 0 \(got 0.0\)"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
