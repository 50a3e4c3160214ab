"""Several tasks in one model: what is shared is shared, and each task computes what it computes alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from flax import nnx

from raylingvo.data.mixing import SampleBatches
from raylingvo.data.of_task import OfTask
from raylingvo.data.pipeline import TrainInput
from raylingvo.data.sampling import ExponentialRamp, RoundRobin
from raylingvo.errors import RequestError
from raylingvo.metrics.means import to_means
from raylingvo.models.multi_task import MultiTask
from raylingvo.training.learner import Learner
from raylingvo.training.optimizers import Accumulator, Adafactor, Adam, Composite, Part, RMSProp
from raylingvo.training.paths import names
from raylingvo.training.shapes import StepForShapes
from raylingvo.training.state import Model, init_state
from raylingvo.training.step import make_train_step

A, B = toy.Regression(dropout=0.0), toy.Regression(dropout=0.0, statistics=False)
SHARED = MultiTask(tasks={"a": A, "b": B}, shared=("hidden",))
BATCH = OfTask(task="b", dataset=toy.Numbers()).eval_batches(8)[0]


def test_fields_say_of_which_task_a_batch_is():
    alone = toy.Numbers().train_batches(8, 3)
    batches = OfTask(task="b", dataset=toy.Numbers()).train_batches(8, 3)
    assert list(batches[5]) == ["b/x", "b/y", "id", "weight"]
    np.testing.assert_array_equal(batches[5]["b/x"], alone[5]["x"])
    assert [list(batch) for batch in batches.samples()] == [list(batches[5])]
    stream = TrainInput(batches)
    with pytest.raises(RequestError, match="task was a, now it is b"):
        stream.restore({**stream.state(), "task": "a"})
    stream.close()


def test_shared_parts_are_there_once():
    model = Model(SHARED)
    assert sorted(model.abstract.params) == ["a", "b"]
    assert sorted(model.abstract.params["a"]) == ["hidden", "out"]
    assert sorted(model.abstract.params["b"]) == ["out"]
    module = SHARED.init(nnx.Rngs(0))
    assert module.b.hidden is module.a.hidden
    assert module.b.out is not module.a.out


def test_a_shared_part_may_be_deep_or_a_variable():
    module = MultiTask(tasks={"a": A, "b": B}, shared=("hidden/kernel",)).init(nnx.Rngs(0))
    assert module.b.hidden.kernel is module.a.hidden.kernel
    assert module.b.hidden.bias is not module.a.hidden.bias


class TiedNet(nnx.Module):
    """Holds its table in two places, and the table's variable in a third."""

    def __init__(self, tied, rngs):
        self.blocks = nnx.List([nnx.Embed(3, 2, rngs=rngs)])
        self.output = self.blocks[0] if tied else nnx.Embed(3, 2, rngs=rngs)
        self.weight = self.blocks[0].embedding if tied else nnx.Param(jnp.zeros((3, 2)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tied(toy.Regression):
    tied: bool = True

    def init(self, rngs):
        return TiedNet(self.tied, rngs)


@pytest.mark.parametrize("path", ["blocks/0", "output", "blocks/0/embedding", "weight"])
@pytest.mark.parametrize("first_is_tied", [True, False])
def test_what_a_task_holds_more_than_once_stays_one(path, first_is_tied):
    task = MultiTask(tasks={"a": Tied(tied=first_is_tied), "b": Tied()}, shared=(path,))
    module = nnx.eval_shape(lambda: task.init(nnx.Rngs(0)))
    own = {
        "blocks/0": module.a.blocks[0].embedding,
        "output": module.a.output.embedding,
        "blocks/0/embedding": module.a.blocks[0].embedding,
        "weight": module.a.weight,
    }[path]
    held = (module.b.blocks[0].embedding, module.b.output.embedding, module.b.weight)
    assert all(variable is own for variable in held)
    # A step of either task trains it.
    params = Model(task).abstract.params
    assert "b" not in params
    batches = {name: {f"{name}/x": 0, "weight": 0} for name in "ab"}
    trained = {name: {p for p, _ in names(params) if task.trains(p, batch)} for name, batch in batches.items()}
    assert len(trained["a"]) == (1 if first_is_tied else 3)
    assert len(trained["b"]) == 1
    assert trained["b"] <= trained["a"]


def test_two_shared_paths_of_what_one_task_holds_as_one():
    tasks = {"a": Tied(tied=False), "b": Tied()}
    with pytest.raises(RequestError, match="shared: 'blocks/0' cannot be shared beside the other paths"):
        MultiTask(tasks=tasks, shared=("blocks/0", "output")).init(nnx.Rngs(0))
    MultiTask(tasks={"a": Tied(), "b": Tied()}, shared=("blocks/0", "output")).init(nnx.Rngs(0))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Negated(toy.Regression):
    def adjust_gradients(self, grads, batch):
        assert "x" in batch
        return {path: -x for path, x in grads.items() if path.startswith("hidden")} | {"out/bias": grads["out/bias"]}


def test_a_task_adjusts_its_own_gradients_under_its_own_names():
    task = MultiTask(tasks={"a": A, "b": Negated()}, shared=("hidden",))
    grads = dict.fromkeys(("a/hidden/bias", "a/out/bias", "b/out/bias"), 1.0)
    assert task.adjust_gradients(grads, BATCH) == grads | {"a/hidden/bias": -1.0}
    assert SHARED.adjust_gradients(grads, BATCH) is grads
    with pytest.raises(ValueError, match=r"of the task b must return the names that it got, .*\(not so out/kernel\)"):
        task.adjust_gradients(grads | {"b/out/kernel": 1.0}, BATCH)


def test_each_task_computes_what_it_computes_alone():
    module = SHARED.init(nnx.Rngs(0))
    own = {name.removeprefix("b/"): values for name, values in BATCH.items()}
    expected = B.eval_metrics(module.b, own)
    assert SHARED.eval_metrics(module, BATCH) == {f"{name}/b": pair for name, pair in expected.items()}
    loss, metrics = SHARED.loss(module, BATCH, jax.random.key(0))
    assert loss == expected["loss"][0]
    assert metrics.keys() == {"loss", "loss/b", "num_rows/b"}
    decoded = np.asarray(SHARED.decode(module, BATCH))
    outputs, metrics = SHARED.postprocess(decoded, BATCH)
    assert outputs[0] == ("0", {"task": "b", "prediction": float(decoded[0])})
    assert metrics["num_outputs/b"] == (8, 1.0)


def test_scores_of_all_outputs_are_of_those_of_each_task():
    outputs = [{"task": "b" if i % 3 else "a", "prediction": float(i * i)} for i in range(8)]
    assert SHARED.corpus_scores(outputs) == (
        {"range/a": 36.0, "last/a": 36.0, "range/b": 48.0, "last/b": 49.0},
        {"range/a": "toy:1", "range/b": "toy:1"},
    )
    assert SHARED.corpus_scores(outputs[1:2]).metrics.keys() == {"range/b", "last/b"}


def test_gradients_of_what_is_shared_come_from_every_task():
    model = Model(SHARED)
    weights = Model.split(SHARED.init(nnx.Rngs(0)))

    def loss(params, batch):
        return SHARED.loss(model.merge(weights._replace(params=params)), batch, jax.random.key(0))[0]

    grads = jax.grad(loss)(weights.params, BATCH)
    assert jnp.abs(grads["a"]["hidden"]["kernel"]).sum() > 0
    assert jnp.abs(grads["a"]["out"]["kernel"]).sum() == 0
    assert jnp.abs(grads["b"]["out"]["kernel"]).sum() > 0


@pytest.mark.parametrize(
    ("shared", "message"),
    [
        ("hiden", r"shared: 'hiden' must be part of at least two tasks \(it is of none\)"),
        ("seen", r"shared: 'seen' must be part of at least two tasks \(it is of a\)"),
        ("hidden/kernel/3/x", "must be part of at least two tasks"),
        ("__call__", r"must be part of at least two tasks \(it is of none\)"),
    ],
)
def test_what_cannot_be_shared(shared, message):
    with pytest.raises(RequestError, match=message):
        MultiTask(tasks={"a": A, "b": B}, shared=(shared,)).init(nnx.Rngs(0))


def test_a_batch_must_be_of_a_task():
    with pytest.raises(RequestError, match="a batch must be of one of the tasks a, b"):
        SHARED.eval_metrics(SHARED.init(nnx.Rngs(0)), toy.batches(1)[0])


def train(experiment, steps, state=None):
    batches = experiment.datasets["train"].train_batches(4, 0)
    state = init_state(experiment, *batches.samples()) if state is None else state
    step = StepForShapes(make_train_step(experiment))
    step.compile(state, batches.samples())
    states = [state]
    for k in range(int(state.step), int(state.step) + steps):
        states.append(step(states[-1], batches[k])[0])
    return states, [next(name.partition("/")[0] for name in batches[k] if "/" in name) for k in range(steps)]


# Adam would move what has no gradient, by what it remembers; Adafactor would forget.
OPTIMIZERS = (
    pytest.param(Adam(), marks=pytest.mark.slow),
    pytest.param(Adafactor(beta1=0.9), marks=pytest.mark.slow),
    pytest.param(RMSProp(), marks=pytest.mark.slow),
    Composite(parts={"kernel": Part(optimizer=Adam())}, default=Part(optimizer=Adafactor())),
)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda optimizer: type(optimizer).__name__)
def test_a_step_changes_only_what_its_task_uses(optimizer):
    # One task's name is that of a part of the other's.
    names = ("net", "out")
    datasets = tuple(OfTask(task=name, dataset=toy.Numbers()) for name in names)
    data = SampleBatches(datasets=datasets, sampling=RoundRobin())
    task = MultiTask(tasks={"net": A, "out": toy.Regression(dropout=0.0)}, shared=("hidden",))
    learner = Learner(learning_rate=0.1, optimizer=optimizer, l2_regularizer_weight=0.1)
    states, tasks = train(toy.experiment(task=task, data=data, learner=learner, ema_decay=0.5), 4)
    assert tasks == ["net", "out", "net", "out"]
    for old, new, name in zip(states, states[1:], tasks, strict=False):
        (other,) = {*names} - {name}
        before, after = old.weights.params, new.weights.params
        assert jax.tree.all(jax.tree.map(lambda x, y: (x == y).all(), before[other]["out"], after[other]["out"]))
        average, averaged = old.average.params, new.average.params
        toy.assert_bit_equal(averaged[other]["out"], average[other]["out"])
        assert (average[name]["out"]["kernel"] != averaged[name]["out"]["kernel"]).any()
        assert (before[name]["out"]["kernel"] != after[name]["out"]["kernel"]).any()
        assert (before["net"]["hidden"]["kernel"] != after["net"]["hidden"]["kernel"]).any()
        for path, x in jax.tree_util.tree_leaves_with_path(old.opt_state.slots):
            keys = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
            if keys[:2] == [other, "out"]:
                assert (x == value_at(new.opt_state.slots, path)).all(), path
    results = to_means(jax.device_get(states[-1].totals))
    assert results["num_rows/net"] == results["num_rows/out"] == 8
    assert results["loss"] == pytest.approx((results["loss/net"] + results["loss/out"]) / 2)


def value_at(tree, path):
    return dict(jax.tree_util.tree_leaves_with_path(tree))[path]


def test_what_does_not_fit_several_tasks_is_refused():
    datasets = tuple(OfTask(task=name, dataset=toy.Numbers()) for name in "ab")
    data = SampleBatches(datasets=datasets, sampling=RoundRobin())
    for learner, message in (
        (
            Learner(learning_rate=0.1, optimizer=Accumulator(optimizer=Adam())),
            "an Accumulator counts steps that change",
        ),
        (Learner(learning_rate=0.1, loss_name="loss/a"), "no metric 'loss/a'; it has loss, loss/b"),
    ):
        experiment = toy.experiment(task=SHARED, data=data, learner=learner)
        with pytest.raises(RequestError, match=message):
            init_state(experiment, *data.train_batches(4, 0).samples())


def test_training_resumes_in_the_middle_of_the_schedule():
    datasets = tuple(OfTask(task=name, dataset=toy.Numbers()) for name in "ab")
    data = SampleBatches(datasets=datasets, sampling=ExponentialRamp(start=(1, 0), end=(0, 1), rate=0.3))
    experiment = toy.experiment(task=SHARED, data=data)
    whole, _ = train(experiment, 6)
    resumed, _ = train(experiment, 3, jax.tree.map(jnp.copy, whole[3]))
    assert jax.tree.all(jax.tree.map(lambda x, y: (x == y).all(), whole[-1].weights, resumed[-1].weights))
