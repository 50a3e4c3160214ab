"""Optimizers: Lingvo's variables after each of twenty updates, and the formulas written out."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from raylingvo.config import dump, load
from raylingvo.errors import RequestError
from raylingvo.training import optimizers
from raylingvo.training.learner import Learner
from raylingvo.training.optimizers import (
    EGDD,
    Accumulator,
    AdaDelta,
    Adafactor,
    Adagrad,
    AdaGraft,
    Adam,
    Composite,
    DistributedShampoo,
    DynamicAccumulator,
    Momentum,
    Optimizer,
    Part,
    RMSProp,
    Sgd,
)


def from_lingvo(name, params):
    params = dict(params)
    match name:
        case "SGD":
            return Sgd(**params)
        case "Momentum":
            return Sgd(momentum=params.get("alpha", 0.9), nesterov=params.get("use_nesterov", False))
        case "Adam" | "AdamV2":
            return Adam(**params)
        case "Adam:ParamsA" | "AdamV2:ParamsA":
            return Adam(beta1=0.9, beta2=0.997, epsilon=1e-9)
        case "Adam:ParamsB" | "AdamV2:ParamsB":
            return Adam(beta1=0.9, beta2=0.98, epsilon=1e-9)
        case "XLAShardingAdafactor":
            params.pop("cond_is_finite", None)
            return Adafactor(**params)
        case "Accumulator":
            inner = from_lingvo(*params.get("optimizer_tpl", ("Adam", {})))
            return Accumulator(optimizer=inner, accum_steps=params.get("accum_steps", 5))
    return getattr(optimizers, name)(**params)


def trajectory(optimizer, start, grads, rates):
    """start: {name: [..]}, grads: {name: [T, ..]}, rates [T] -> {name: [T + 1, ..]}."""
    transformation = optimizer.build()
    update = jax.jit(transformation.update)
    params = jax.tree.map(jnp.asarray, start)
    state, history = transformation.init(params), [params]
    for t, rate in enumerate(rates):
        decrements, state = update(jax.tree.map(lambda g, t=t: g[t], grads), state, params, rate=rate)
        params = jax.tree.map(lambda p, d: p - d, params, decrements)
        history.append(params)
    return {name: np.stack([params[name] for params in history]) for name in start}


@pytest.mark.data
def test_trajectories_of_lingvo(lingvo_vectors):
    seen = set()
    for case, arrays in lingvo_vectors("h_optimizers"):
        if case["kind"] != "optimizer":
            continue
        optimizer = from_lingvo(case["optimizer"], case["params"])
        grads = {v: arrays[f"grad_{v}"] for v in "wbk"}
        actual = trajectory(optimizer, {v: arrays[f"out_{v}"][0] for v in "wbk"}, grads, arrays["lr"])
        for v in "wbk":
            np.testing.assert_allclose(
                actual[v], arrays[f"out_{v}"], rtol=2e-4, atol=2e-6, err_msg=f"{case['id']}, {v}"
            )
        seen.add(type(optimizer))
    assert seen == {Sgd, RMSProp, Adagrad, AdaDelta, Adam, Adafactor, Accumulator}


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


def test_rmsprop_keeps_the_rates_in_its_momentum():
    w, s, m = START.astype(np.float64), np.ones(3), np.zeros(3)
    rates = np.array([0.1, 0.2, 0.0, 0.3, 0.1], np.float32)
    for rate, g in zip(rates, GRADS, strict=True):
        s = 0.8 * s + 0.2 * g**2
        m = 0.7 * m + rate * g / np.sqrt(s + 0.1)
        w = w - m
    optimizer = RMSProp(decay=0.8, momentum=0.7, epsilon=0.1)
    actual = trajectory(optimizer, {"w": START}, {"w": GRADS}, rates)["w"][-1]
    np.testing.assert_allclose(actual, w, rtol=1e-5)


def test_adagrad():
    w, a = START.astype(np.float64), np.full(3, 0.5)
    for g in GRADS:
        a = a + g**2
        w = w - 0.1 * g / np.sqrt(a)
    np.testing.assert_allclose(run(Adagrad(initial_accumulator_value=0.5)), w, rtol=1e-5)


@pytest.mark.parametrize("simple", [True, False], ids=["signs and directions", "products"])
def test_egdd(simple):
    optimizer = EGDD(
        momentum=0.8,
        beta=0.7,
        gain_learning_rate=0.5,
        scale_learning_rate=0.4,
        max_scale=1.5,
        use_signs=simple,
        use_directions=simple,
    )
    w, m, mean, gain, scale = START.astype(np.float64), np.zeros(3), np.zeros(3), np.ones(3), 1.0
    for t, g in enumerate(GRADS):
        cosine = (g @ m) / (np.linalg.norm(g) * np.linalg.norm(m) + 1e-20)
        scale = np.clip(scale * np.exp(0.4 * (cosine if simple else g @ m)), 0.1, 1.5)
        agreement = np.sign(g * mean) if simple else g * mean / (1 - 0.7 ** max(t, 1))
        gain = np.clip(gain * np.exp(0.5 * agreement), 0.01, 100)
        m = 0.8 * m + 0.1 * gain * g
        mean = 0.7 * mean + 0.3 * g
        w = w - scale * m
    assert scale != 1.0
    np.testing.assert_allclose(run(optimizer), w, rtol=1e-5)


MATRIX = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)


def test_adafactor_without_factors():
    optimizer = Adafactor(decay_exponent_pow=0.8, clipping_threshold=1.0)
    grads = np.random.default_rng(2).normal(size=(4, 4, 3)).astype(np.float32)
    w, v = MATRIX.astype(np.float64), np.zeros((4, 3))
    for t, g in enumerate(grads):
        decay = 1 - (t + 1) ** -0.8
        v = decay * v + (1 - decay) * g**2
        u = g / np.sqrt(v)
        u /= max(1.0, np.sqrt((u**2).mean()))
        w = w - 0.1 * max(1e-3, np.sqrt((w**2).mean())) * u
    actual = trajectory(optimizer, {"w": MATRIX}, {"w": grads}, np.full(4, 0.1, np.float32))["w"][-1]
    np.testing.assert_allclose(actual, w, rtol=1e-4)


def test_factored_adafactor_is_exact_for_squares_of_rank_one():
    """Means over rows and columns determine such a matrix, if its rates do not depend on its own scale."""
    rng = np.random.default_rng(3)
    grads = np.abs(np.einsum("i,j->ij", rng.normal(size=4), rng.normal(size=3))).astype(np.float32)[None].repeat(3, 0)
    rates = np.full(3, 0.1, np.float32)
    factored = Adafactor(min_dim_size_to_factor=3, multiply_by_parameter_scale=False)
    whole = Adafactor(factored=False, multiply_by_parameter_scale=False)
    both = [trajectory(optimizer, {"w": MATRIX}, {"w": grads}, rates)["w"] for optimizer in (factored, whole)]
    np.testing.assert_allclose(*both, rtol=1e-4)


def test_adafactor_keeps_means_of_large_matrices_only():
    params = {"large": jnp.ones((2, 130, 140)), "small": jnp.ones((2, 130, 127)), "vector": jnp.ones(500)}
    slots = Adafactor(beta1=0.9).build().init(params).slots
    shapes = jax.tree.map(lambda x: x.shape, slots, is_leaf=lambda x: hasattr(x, "shape"))
    assert shapes == {
        "large": {"m": (2, 130, 140), "vr": (2, 130), "vc": (2, 140)},
        "small": {"m": (2, 130, 127), "v": (2, 130, 127)},
        "vector": {"m": (500,), "v": (500,)},
    }
    assert Adafactor().build().init(params).slots["vector"].keys() == {"v"}


def test_accumulated_batches_are_one_batch_of_their_mean():
    rates = np.full(2, 0.1, np.float32)
    grads = GRADS[:4].reshape(2, 2, 3).mean(1)
    expected = trajectory(Adam(), {"w": START}, {"w": grads}, rates)["w"]
    optimizer = Accumulator(optimizer=Adam(), accum_steps=2)
    actual = trajectory(optimizer, {"w": START}, {"w": GRADS[:5]}, np.full(5, 0.1, np.float32))["w"]
    np.testing.assert_allclose(actual[[2, 4]], expected[1:], rtol=1e-6)
    for waiting in (1, 3, 5):
        np.testing.assert_array_equal(actual[waiting], actual[waiting - 1])


def test_batches_are_gathered_to_a_least_weight_and_their_mean_is_weighted():
    weights = np.array([2.0, 1.0, 4.0, 0.5, 2.5], np.float32)  # updates after the second, the third and the last
    built = DynamicAccumulator(optimizer=Sgd(momentum=0.5), min_accum_weight=3.0).build()
    update = jax.jit(built.update)
    state, decrements = built.init({"w": START}), []
    for g, weight in zip(GRADS, weights, strict=True):
        decrement, state = update({"w": g}, state, {"w": START}, rate=0.1, weight=weight)
        decrements.append(np.asarray(decrement["w"]))
    expected, m = [], np.zeros(3)
    for batches in ([0, 1], [2], [3, 4]):
        m = 0.5 * m + np.average(GRADS[batches].astype(np.float64), axis=0, weights=weights[batches])
        expected += [np.zeros(3)] * (len(batches) - 1) + [0.1 * m]
    np.testing.assert_allclose(decrements, expected, rtol=1e-5)
    assert (int(state.num_updates), float(state.weight)) == (3, 0.0)


# As nnx names the items of a list.
TREE = {"encoder": {"kernel": jnp.ones(2), "bias": jnp.ones(2)}, "softmax": {0: jnp.ones(3)}}


def test_every_part_has_its_optimizer_and_rate():
    optimizer = Composite(
        parts={"bias$": Part(optimizer=Sgd()), "^softmax/0": Part(optimizer=Sgd(), learning_rate=0.5)},
        default=Part(optimizer=Adam()),
    )
    built = optimizer.build()
    grads = jax.tree.map(lambda x: 3 * x, TREE)
    decrements, slots = built.update(grads, built.init(TREE), TREE, rate=jnp.float32(0.1))
    np.testing.assert_allclose(decrements["encoder"]["bias"], 0.3, rtol=1e-6)
    np.testing.assert_allclose(decrements["softmax"][0], 1.5, rtol=1e-6)
    np.testing.assert_allclose(decrements["encoder"]["kernel"], 0.1, rtol=1e-4)  # Adam's first step
    assert jax.tree.structure(decrements) == jax.tree.structure(TREE)
    assert jax.tree.structure(slots[2].mu) == jax.tree.structure({"encoder": {"kernel": 0}})


def test_a_variable_of_two_parts_is_refused():
    parts = {"bias": Part(optimizer=Sgd()), "encoder": Part(optimizer=Sgd())}
    with pytest.raises(RequestError, match="'bias' and 'encoder' both match the variable encoder/bias"):
        Composite(parts=parts, default=Part(optimizer=Adam())).build().init(TREE)


@pytest.mark.parametrize("use_global_norm", [False, True])
def test_grafting_takes_the_length_of_one_and_the_direction_of_the_other(use_global_norm):
    grads = {"a": jnp.array([3.0, 0.1]), "b": jnp.zeros(2), "c": jnp.array([0.5, -2.0])}
    optimizer = AdaGraft(magnitude=Sgd(), direction=Adam(), use_global_norm=use_global_norm, direction_rate=7.0)
    built, adam = optimizer.build(), Adam().build()
    decrements, _ = built.update(grads, built.init(grads), grads, rate=jnp.float32(0.1))
    steps, _ = adam.update(grads, adam.init(grads), grads)
    trees = (grads, decrements, steps)
    for g, actual, step in [trees] if use_global_norm else zip(*(tree.values() for tree in trees), strict=True):
        length, of = 0.1 * optax.tree.norm(g), optax.tree.norm(step)
        factor = length / jnp.maximum(of, 1e-30)
        expected = jax.tree.map(lambda s, factor=factor: factor * s, step)
        jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-7), actual, expected)


EVERY = [
    Sgd(),
    Momentum(),
    Adam(),
    Adagrad(),
    AdaDelta(),
    RMSProp(),
    EGDD(),
    Adafactor(),
    Accumulator(optimizer=Adagrad()),
    DynamicAccumulator(optimizer=Adagrad(), min_accum_weight=2.0),
    DistributedShampoo(),
    AdaGraft(magnitude=Sgd(), direction=Adam()),
    Composite(parts={"a.b": Part(optimizer=Sgd(), learning_rate=0.1)}, default=Part(optimizer=Adam())),
]


@pytest.mark.parametrize("optimizer", EVERY, ids=lambda optimizer: type(optimizer).__name__)
def test_an_optimizer_is_plain_data_and_its_slots_keep_their_shapes(optimizer):
    learner = Learner(learning_rate=0.1, optimizer=optimizer)
    assert load(dump(learner), Learner) == learner
    assert "raylingvo.training._optimizers" not in dump(learner)
    params = {"a": jnp.zeros(3, jnp.bfloat16), "b": jnp.zeros((2, 2), jnp.float32)}
    built = optimizer.build()
    before = jax.eval_shape(built.init, params)
    decrements, after = jax.eval_shape(built.update, params, before, params)
    assert after == before
    assert jax.tree.map(lambda x: x.shape, decrements) == jax.tree.map(lambda x: x.shape, params)


def test_every_optimizer_is_here():
    ours = {
        value
        for value in vars(optimizers).values()
        if isinstance(value, type) and issubclass(value, Optimizer) and value is not Optimizer
    }
    assert {type(optimizer) for optimizer in EVERY} == ours


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
        (lambda: Adagrad(initial_accumulator_value=0.0), r"initial_accumulator_value must be > 0 \(got 0.0\)"),
        (lambda: AdaDelta(decay=1.0), r"decay must be in \[0, 1\) \(got 1.0\)"),
        (lambda: RMSProp(epsilon=0.0), r"epsilon must be > 0 \(got 0.0\)"),
        (lambda: EGDD(initial_gain=200.0), r"initial_gain must be in .* \(got 200.0, \[0.01, 100.0\]\)"),
        (lambda: Adafactor(clipping_threshold=0.0), r"clipping_threshold must be > 0 \(got 0.0\)"),
        (lambda: Accumulator(optimizer=Sgd(), accum_steps=0), r"accum_steps must be >= 1 \(got 0\)"),
        (
            lambda: DynamicAccumulator(optimizer=Sgd(), min_accum_weight=0.0),
            r"min_accum_weight must be > 0 \(got 0.0\)",
        ),
        (lambda: Part(optimizer=Sgd(), learning_rate=0.0), r"learning_rate must be > 0 \(got 0.0\)"),
        (
            lambda: Composite(parts={"(": Part(optimizer=Sgd())}, default=Part(optimizer=Sgd())),
            r"parts must be a regular expression: missing \), unterminated subpattern at position 0 \(got '\('\)",
        ),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
