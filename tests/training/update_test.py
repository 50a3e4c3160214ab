"""How learners update weights: Lingvo's weights and metrics step by step, and the parts one by one."""

import contextlib
import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy
from flax import nnx

from raylingvo.data.mixing import MixBatches, MixWithinBatches
from raylingvo.errors import RequestError
from raylingvo.metrics.means import to_means, zeros_like_metrics
from raylingvo.models.task import Task
from raylingvo.training import update
from raylingvo.training.checks import check_variables
from raylingvo.training.grad_norm_tracker import GradNormTracker
from raylingvo.training.learner import Learner
from raylingvo.training.optimizers import AdaGraft, Adam, Composite, DynamicAccumulator, Part, Sgd
from raylingvo.training.schedules import Cosine, PiecewiseConstant
from raylingvo.training.state import Weights, init_state
from raylingvo.training.step import make_train_step

SHAPES = {"w": (3, 4), "b": (5,), "k": (2, 5, 6)}


class Variables(nnx.Module):
    """Lingvo's three test variables."""

    def __init__(self):
        for name, shape in SHAPES.items():
            setattr(self, name, nnx.Param(jnp.ones(shape)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Linear(Task):
    """The gradients are the batch: loss = sum(variable * batch). There are two more losses, `double` and `w_only`."""

    def init(self, rngs):
        return Variables()

    def loss(self, model, batch, rng):
        parts = {name: (getattr(model, name)[...] * batch[name]).sum() for name in SHAPES}
        loss = sum(parts.values())
        return loss, {"loss": (loss, 1.0), "double": (2 * loss, 1.0), "w_only": (parts["w"], 1.0), "steps": (1, 1.0)}

    def eval_metrics(self, model, batch):
        raise NotImplementedError

    def decode(self, model, batch):
        raise NotImplementedError

    def postprocess(self, decoded, batch):
        raise NotImplementedError


def from_lingvo(case):
    optimizer = {"SGD": Sgd(), "Momentum": Sgd(momentum=0.9), "Adam": Adam()}[case["optimizer"]]
    params = dict(case["params"])
    if tracker := params.pop("grad_norm_tracker", None):
        params["grad_norm_tracker"] = GradNormTracker(**tracker)
    # Lingvo gives the optimizer zeros.
    return Learner(learning_rate=case["learning_rate"], optimizer=optimizer, dropped_updates="zero", **params)


@pytest.mark.data
def test_weights_and_metrics_of_lingvo(lingvo_vectors):
    cases = [pair for pair in lingvo_vectors("h_optimizers") if pair[0]["kind"] == "learner"]
    assert cases
    for case, arrays in cases:
        experiment = toy.experiment(task=Linear(), learner=from_lingvo(case))
        batches = [{v: arrays[f"grad_{v}"][t] for v in SHAPES} for t in range(20)]
        step = jax.jit(make_train_step(experiment))
        start = Weights({v: jnp.asarray(arrays[f"out_{v}"][0]) for v in SHAPES}, {})
        state = init_state(experiment, batches[0])._replace(weights=start)
        for t, batch in enumerate(batches):
            state, _ = step(state._replace(totals=zeros_like_metrics(state.totals)), batch)
            for v in SHAPES:
                actual, expected = state.weights.params[v], arrays[f"out_{v}"][t + 1]
                np.testing.assert_allclose(actual, expected, rtol=2e-4, atol=2e-6, err_msg=f"{case['id']} {v} {t}")
            metrics = to_means(jax.device_get(state.totals))
            for name in (
                "learning_rate",
                "grad_scale_all",
                "has_nan_or_inf",
                "grad_norm_all",
                "var_norm_all",
                "l1_loss",
                "l2_loss",
            ):
                if f"metric_{name}" not in arrays:
                    continue
                ours = metrics.get(name.replace("_norm_all", "_norm/all"))
                # What is not finite does not count.
                if ours is None:
                    assert metrics["has_nan_or_inf"] == 1
                else:
                    expected = arrays[f"metric_{name}"][t]
                    assert ours == pytest.approx(expected, rel=1e-4, abs=1e-6), f"{case['id']} {name} {t}"


GRADS = {"a": jnp.array([3.0, 0.0]), "b": {"bias": jnp.array([[4.0]])}}  # global norm 5
PARAMS = {"a": jnp.array([1.0, -2.0]), "b": {"bias": jnp.array([[-3.0]])}}


def updated(learner, grads=GRADS, *, finite=True, rate=1.0, state=None):
    """(what was subtracted from PARAMS, state, scale, metrics)."""
    gradients = update.regularize(learner, grads, PARAMS)
    state = update.init(learner, PARAMS) if state is None else state
    made = update.apply(learner, gradients, jnp.array(finite), state, PARAMS, jnp.float32(rate))
    assert bool(made.dropped) == (finite and float(made.scale) == 0)
    return jax.tree.map(lambda p, q: p - q, PARAMS, made.params), made.state, float(made.scale), gradients.metrics


def sgd(**settings):
    return Learner(learning_rate=0.1, optimizer=Sgd(), **settings)


def assert_close(actual, expected):
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-6), actual, expected)


@pytest.mark.parametrize(("clip", "factor"), [(0.0, 1.0), (10.0, 1.0), (5.0, 1.0), (2.5, 0.5), (0.05, 0.01)])
def test_clipping_keeps_the_direction_and_bounds_the_norm(clip, factor):
    decrements, _, scale, metrics = updated(sgd(clip_gradient_norm_to_value=clip))
    assert_close(decrements, jax.tree.map(lambda g: factor * g, GRADS))
    assert scale == pytest.approx(factor)
    assert float(metrics["grad_norm/all"]) == 5


def test_each_variable_by_itself():
    decrements, _, scale, _ = updated(sgd(clip_gradient_single_norm_to_value=3.5))
    assert_close(decrements, {"a": GRADS["a"], "b": {"bias": jnp.array([[3.5]])}})
    assert scale == 1


def test_clipping_each_by_itself_drops_nothing_for_the_norm_and_leaves_the_tracker():
    tracker = GradNormTracker(decay=0.5, clip_threshold=0.0)
    dropping = {"grad_norm_to_clip_to_zero": 1.0, "grad_norm_tracker": tracker}
    learner = sgd(clip_gradient_single_norm_to_value=3.5, **dropping)
    decrements, state, scale, _ = updated(learner)
    assert_close(decrements, {"a": GRADS["a"], "b": {"bias": jnp.array([[3.5]])}})
    assert scale == 1
    assert state.tracker == tracker.init()
    assert "num_dropped_updates" not in update.metric_names(learner, PARAMS)
    assert updated(sgd(**dropping))[2] == 0
    # What is not finite is dropped all the same.
    assert updated(learner, finite=False)[2] == 0


def test_clipping_comes_before_the_optimizer():
    clipped = jax.tree.map(lambda g: g * (1e-3 / 5), GRADS)
    expected = updated(Learner(learning_rate=0.1), clipped)[0]
    actual = updated(Learner(learning_rate=0.1, clip_gradient_norm_to_value=1e-3))[0]
    assert_close(actual, expected)


def test_regularisers_add_their_gradients_but_not_to_what_is_skipped():
    learner = sgd(l2_regularizer_weight=0.5, l1_regularizer_weight=0.1, skip_lp_regularization="bias$")
    decrements, _, _, metrics = updated(learner)
    assert_close(decrements, GRADS | {"a": GRADS["a"] + 0.5 * PARAMS["a"] + 0.1 * jnp.sign(PARAMS["a"])})
    assert float(metrics["l2_loss"]) == pytest.approx(0.5 * 0.5 * 5)
    assert float(metrics["l1_loss"]) == pytest.approx(0.1 * 3)
    assert float(metrics["grad_norm/all"]) == pytest.approx(float(jnp.sqrt(3.6**2 + 1.1**2 + 16)))


@pytest.mark.parametrize("dropped", ["skip", "zero"])
@pytest.mark.parametrize("reason", ["large", "not finite"])
def test_a_dropped_update_is_skipped_or_made_with_zeros(dropped, reason):
    learner = Learner(learning_rate=0.1, dropped_updates=dropped, grad_norm_to_clip_to_zero=5.0)
    small = jax.tree.map(lambda g: 0.5 * g, GRADS)
    before = updated(learner, small)[1]
    large = GRADS if reason == "large" else jax.tree.map(lambda g: g * jnp.nan, GRADS)
    decrements, state, scale, _ = updated(learner, large, finite=reason == "large", state=before)
    assert scale == 0
    if dropped == "skip":
        assert_close(decrements, jax.tree.map(jnp.zeros_like, GRADS))
        toy.assert_bit_equal(state, before)
    else:
        zeros = jax.tree.map(jnp.zeros_like, GRADS)
        expected, expected_state, _, _ = updated(Learner(learning_rate=0.1), zeros, state=before)
        assert_close(decrements, expected)
        toy.assert_bit_equal(state, expected_state)
        assert float(jnp.abs(decrements["a"]).max()) > 0  # Adam moves on


def test_without_scaling_gradients_are_as_they_are():
    learner = sgd(scale_gradients=False, clip_gradient_norm_to_value=0.1, grad_norm_to_clip_to_zero=1.0)
    decrements, _, scale, _ = updated(learner)
    assert_close(decrements, GRADS)
    assert scale == 1


def steps_of(learner, num_steps=2, task=Linear()):
    experiment = toy.experiment(task=task, learner=learner)
    rng = np.random.default_rng(0)
    batches = [{v: rng.normal(size=shape).astype(np.float32) for v, shape in SHAPES.items()} for _ in range(num_steps)]
    state, step = init_state(experiment, batches[0]), jax.jit(make_train_step(experiment))
    states = [state]
    for batch in batches:
        states.append(step(states[-1], batch)[0])
    return states, batches


def test_a_learner_of_some_variables_leaves_the_others():
    states, batches = steps_of(sgd(bprop_variable_filter="^[wb]$", bprop_variable_exclusion="b"), 1)
    before, after = (state.weights.params for state in states)
    np.testing.assert_allclose(after["w"], before["w"] - 0.1 * batches[0]["w"], rtol=1e-5)
    for name in "bk":
        np.testing.assert_array_equal(after[name], before[name])
    assert jax.tree.leaves(states[-1].opt_state) == []
    norm = to_means(jax.device_get(states[-1].totals))["grad_norm/all"]
    assert norm == pytest.approx(np.linalg.norm(batches[0]["w"]), rel=1e-5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adjusted(Linear):
    """Wants the gradients of `w` ten times and none of `b`."""

    def adjust_gradients(self, grads, batch):
        assert grads.keys() == SHAPES.keys()
        return {**grads, "w": 10 * grads["w"], "b": 0 * grads["b"]}


def test_a_task_adjusts_gradients_after_the_norm_is_taken_and_before_they_are_clipped():
    learner = sgd(clip_gradient_norm_to_value=1.0, report_variable_norms=True)
    states, (batch,) = steps_of(learner, 1, task=Adjusted())
    before, after = (state.weights.params for state in states)
    norm = np.sqrt(sum(np.square(x).sum() for x in batch.values()))
    np.testing.assert_allclose(before["w"] - after["w"], 0.1 * 10 * batch["w"] / norm, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(before["k"] - after["k"], 0.1 * batch["k"] / norm, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(before["b"], after["b"])
    metrics = to_means(jax.device_get(states[-1].totals))
    assert metrics["grad_norm/all"] == pytest.approx(norm, rel=1e-5)
    assert metrics["grad_norm/w"] == pytest.approx(np.linalg.norm(batch["w"]), rel=1e-5)
    assert metrics["var_norm/k"] == pytest.approx(np.sqrt(60), rel=1e-5)


def test_a_batch_trains_what_its_dataset_may():
    learner = sgd(bprop_variable_filters=("^a$", ""), l2_regularizer_weight=0.5)
    with_l2 = jax.tree.map(lambda g, p: g + 0.5 * p, GRADS, PARAMS)
    for source, expected in enumerate(({**with_l2, "b": {"bias": jnp.zeros((1, 1))}}, with_l2)):
        gradients = update.regularize(learner, GRADS, PARAMS, source=jnp.int32(source))
        assert_close(gradients.grads, expected)
        assert float(gradients.norm) == pytest.approx(float(optax.tree.norm(expected)))


@pytest.mark.parametrize(
    ("mixture", "filters", "message"),
    [
        (MixBatches, ("hidden", "out"), None),
        (MixBatches, ("hidden",), r"must be one for each dataset .* \(got 1; train.dataset is MixBatches of 2 such"),
        (MixBatches, ("hidden", "x"), r"'x' matches no weight"),
        (MixWithinBatches, ("hidden", "out"), "train.dataset is MixWithinBatches of 0 such"),
    ],
)
def test_filters_are_one_for_each_dataset_of_a_mixture(mixture, filters, message):
    data = mixture(datasets=(toy.Numbers(), toy.Numbers(size=20)), weights=(1, 1))
    experiment = toy.experiment(data=data, learner=sgd(bprop_variable_filters=filters))
    refused = pytest.raises(RequestError, match=f"learner.bprop_variable_filters.*{message}")
    batch = data.train_batches(8, 0)[0]
    with refused if message else contextlib.nullcontext():
        state = init_state(experiment, batch)
        after = jax.jit(make_train_step(experiment))(state, batch)[0].weights.params
        before, untrained = state.weights.params, ("out", "hidden")[batch["source_id"][0]]
        moved = {part for part in before if (before[part]["kernel"] != after[part]["kernel"]).any()}
        assert moved == {"hidden", "out"} - {untrained}


def test_without_filters_a_batch_may_have_any_source_id():
    experiment = toy.experiment(task=Linear(), learner=sgd())
    batch = {v: np.ones(shape, np.float32) for v, shape in SHAPES.items()} | {"source_id": np.int32(0)}
    jax.eval_shape(make_train_step(experiment), init_state(experiment, batch), batch)


def test_gradients_must_be_adjusted_to_the_same_shapes():
    gradients = update.regularize(sgd(), GRADS, PARAMS)
    assert update.adjust(gradients, lambda grads: grads) is gradients
    for after, message in (
        ({"a": GRADS["a"]}, r"b/bias: none for float32\(1, 1\)"),
        ({"a": GRADS["a"][:1], "b/bias": GRADS["b"]["bias"]}, r"a: float32\(1,\) for float32\(2,\)"),
        ({"a": GRADS["a"].astype(jnp.bfloat16), "b/bias": GRADS["b"]["bias"]}, r"a: bfloat16\(2,\) for float32\(2,\)"),
    ):
        refused = r"adjust_gradients must return gradients of the same names, shapes and dtypes"
        with pytest.raises(ValueError, match=rf"{refused} \(got {message}\)"):
            update.adjust(gradients, lambda grads, after=after: after)


def test_updates_that_are_dropped_for_their_norm_are_counted():
    states, _ = steps_of(sgd(grad_norm_to_clip_to_zero=8.5), 3)
    moved = [(a.weights.params["w"] != b.weights.params["w"]).any() for a, b in itertools.pairwise(states)]
    dropped = to_means(jax.device_get(states[-1].totals))["num_dropped_updates"]
    assert 0 < dropped == 3 - sum(map(bool, moved)) < 3


def test_several_learners_for_several_losses():
    learners = {
        "double": Learner(
            learning_rate=0.1, optimizer=Sgd(), schedule=Cosine(total_steps=2), bprop_variable_filter="^[wb]$"
        ),
        "other": Learner(learning_rate=0.2, optimizer=Adam(), bprop_variable_filter="k", loss_name="w_only"),
    }
    states, batches = steps_of(learners)
    start, end = states[0].weights.params, states[-1].weights.params
    for name in "wb":
        expected = start[name] - 0.2 * batches[0][name] - 0.1 * batches[1][name]
        np.testing.assert_allclose(end[name], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(end["k"], start["k"])  # on which this loss does not depend
    metrics = to_means(jax.device_get(states[-1].totals))
    assert metrics["learning_rate/double"] == pytest.approx(0.075)
    assert metrics["learning_rate/other"] == pytest.approx(0.2)
    assert metrics["grad_norm/all/other"] == 0
    assert states[-1].opt_state["other"].slots.mu.keys() == {"k"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weighted(Linear):
    """The loss has weight 2, under this name."""

    loss_metric: str = "loss"

    def loss(self, model, batch, rng):
        loss, _ = super().loss(model, batch, rng)
        return loss, {self.loss_metric: (loss, 2.0)}


def test_gathered_batches_have_the_weight_of_their_loss_and_the_schedule_goes_by_updates():
    learner = Learner(
        learning_rate=0.1,
        schedule=PiecewiseConstant(boundaries=(1,), values=(1.0, 0.5)),
        optimizer=DynamicAccumulator(optimizer=Sgd(), min_accum_weight=4.0),
    )
    states, batches = steps_of(learner, 4, Weighted())
    w = [state.weights.params["w"] for state in states]
    for waiting in (1, 3):
        np.testing.assert_array_equal(w[waiting], w[waiting - 1])
    first, second = (np.mean([batches[k]["w"] for k in two], axis=0) for two in ((0, 1), (2, 3)))
    np.testing.assert_allclose(w[2], w[1] - 0.1 * first, rtol=1e-5)
    np.testing.assert_allclose(w[4], w[3] - 0.05 * second, rtol=1e-5)
    with pytest.raises(RequestError, match=r"learner.optimizer: a DynamicAccumulator .* metric 'loss', .* it has mean"):
        steps_of(learner, 1, Weighted(loss_metric="mean"))


def test_no_learner_updates_if_one_is_not_finite():
    learners = {
        "w": sgd(bprop_variable_filter="w", loss_name="loss"),
        "b": sgd(bprop_variable_filter="b", loss_name="loss"),
    }
    experiment = toy.experiment(task=Linear(), learner=learners)
    batch = {v: np.ones(shape, np.float32) for v, shape in SHAPES.items()} | {"b": np.full(5, 1e30, np.float32)}
    state = init_state(experiment, batch)
    after, nonfinite_in_a_row = jax.jit(make_train_step(experiment))(state, batch)
    assert int(nonfinite_in_a_row) == 1
    toy.assert_bit_equal(after.weights, state.weights)


PARTS = {"^w": Part(optimizer=Sgd()), "emb": Part(optimizer=Sgd())}
GRAFTED = AdaGraft(magnitude=Composite(parts=PARTS, default=Part(optimizer=Sgd())), direction=Sgd())
HAS = "has no metric 'x'; it has double, loss, steps, w_only"


@pytest.mark.parametrize(
    ("learner", "message"),
    [
        (sgd(bprop_variable_filter="z"), r"learner.bprop_variable_filter: 'z' matches no weight; there are b, k, w$"),
        (sgd(bprop_variable_exclusion="z"), "learner.bprop_variable_exclusion: 'z' matches no weight; there are b, k"),
        (
            sgd(bprop_variable_exclusion="."),
            r"learner: bprop_variable_filter and .* leave no variable to train; there are b, k, w$",
        ),
        (
            sgd(l1_regularizer_weight=0.1, skip_lp_regularization="bias"),
            "learner.skip_lp_regularization: 'bias' matches no weight",
        ),
        (
            {"x": Learner(learning_rate=1.0, loss_name="loss", optimizer=GRAFTED)},
            "learner.x.optimizer.parts: 'emb' matches no weight; there are b, k, w",
        ),
        (sgd(loss_name="steps"), "learner.loss_name: the metric 'steps' of Linear has no gradient: it is int32"),
        (
            {"a": sgd(), "b": sgd()},
            "learner.b and learner.a both train [wbk]; tell them apart by bprop_variable_f",
        ),
        (sgd(loss_name="x"), f"learner.loss_name: the loss of Linear {HAS}"),
        ({"x": sgd()}, f"learner.x.loss_name: the loss of Linear {HAS}"),
    ],
)
def test_learners_that_do_not_fit_the_task_are_refused(learner, message):
    batch = {v: np.ones(shape, np.float32) for v, shape in SHAPES.items()}
    with pytest.raises(RequestError, match=message):
        init_state(toy.experiment(task=Linear(), learner=learner), batch)


def test_the_norm_of_a_variable_must_not_have_the_name_of_that_of_all():
    experiment = toy.experiment(learner=sgd(report_variable_norms=True))
    check_variables(experiment, {"all": {"kernel": 0}})
    with pytest.raises(RequestError, match=r"learner.report_variable_norms: grad_norm/all is of all variables, but"):
        check_variables(experiment, {"all": 0})
