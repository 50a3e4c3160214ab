"""The train state: a function of the experiment; models split into pure dicts and merge again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from flax import nnx

from raylingvo.errors import RequestError
from raylingvo.training import update
from raylingvo.training.learner import Learner
from raylingvo.training.state import STEP_METRICS, Model, init_state, num_params, variable_lines

BATCH = toy.batches(1)[0]


def test_the_same_experiment_gives_the_same_bits():
    toy.assert_bit_equal(init_state(toy.experiment(), BATCH), init_state(toy.experiment(max_steps=99), BATCH))


def test_only_the_shapes_of_the_batch_matter():
    other = {name: np.full_like(x, 3) for name, x in BATCH.items()}
    toy.assert_bit_equal(init_state(toy.experiment(), BATCH), init_state(toy.experiment(), other))


def test_another_seed_gives_other_weights_and_another_rng():
    a, b = (init_state(toy.experiment(seed=seed), BATCH) for seed in (0, 2**32 - 1))
    assert (a.weights.params["hidden"]["kernel"] != b.weights.params["hidden"]["kernel"]).any()
    assert (a.rng != b.rng).any()


def test_it_starts_at_zero_with_a_total_for_every_metric():
    state = init_state(toy.experiment(), BATCH)
    assert (int(state.step), int(state.nonfinite_in_a_row)) == (0, 0)
    assert float(state.learning_rate) == np.float32(0.05)
    assert set(state.totals) == {
        "loss",
        "num_rows",
        *update.metric_names(Learner(learning_rate=1.0), {}),
        *STEP_METRICS,
    }
    assert all(float(x) == 0 for x in jax.tree.leaves(state.totals))


def test_no_two_leaves_share_a_buffer():
    """The state is donated to the step, which a buffer that occurs twice forbids."""
    leaves = jax.tree.leaves(init_state(toy.experiment(ema_decay=0.9), BATCH))
    assert len({x.unsafe_buffer_pointer() for x in leaves}) == len(leaves)


@pytest.mark.parametrize("statistics", [True, False])
def test_split_undoes_merge(statistics):
    task = toy.Regression(statistics=statistics)
    weights = Model.split(task.init(nnx.Rngs(3)))
    assert list(weights.extra) == (["seen"] if statistics else [])
    toy.assert_bit_equal(Model.split(Model(task).merge(weights)), weights)


def test_the_abstract_weights_are_the_shapes_of_real_ones():
    task = toy.Regression(dtype="bfloat16")
    weights = Model.split(task.init(nnx.Rngs(0)))
    expected = jax.tree.map(lambda x: (x.shape, x.dtype), weights)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), Model(task).abstract) == expected


def test_a_merged_module_does_not_change_the_weights():
    task = toy.Regression()
    model, weights = Model(task), Model.split(task.init(nnx.Rngs(0)))
    before = jax.tree.map(np.array, weights)
    module = model.merge(weights)
    module(jnp.asarray(BATCH["x"]), rng=jax.random.key(0))
    assert (Model.split(module).extra["seen"] != before.extra["seen"]).all()
    toy.assert_bit_equal(weights, before)


def test_variable_lines_name_every_variable_and_count_the_trained_ones():
    weights, axes = Model(toy.Regression(dtype="bfloat16")).abstract, {"hidden/kernel": ("embed", None)}
    lines = [" ".join(line.split()) for line in variable_lines(weights, axes)]
    assert lines == [
        "hidden/bias (6,) bfloat16 6",
        "hidden/kernel (4, 6) bfloat16 24 [embed, None]",
        "out/bias (1,) float32 1",
        "out/kernel (6, 1) float32 6",
        "seen (4,) float32 4 (not trained)",
        "total: 37",
    ]
    assert num_params(weights) == 37


class DropoutWithRngs(nnx.Module):
    """The usual idiom, outside raylingvo."""

    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(4, 6, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)])


class OwnKey(nnx.Module):
    def __init__(self, rngs):
        self.noise = nnx.Variable(rngs())


@pytest.mark.parametrize(
    ("module", "name"), [(DropoutWithRngs, r"layers/1/rngs/key"), (OwnKey, "noise")], ids=["dropout", "variable"]
)
def test_random_keys_in_a_model_are_refused_by_name(module, name):
    class Random(toy.Regression):
        def init(self, rngs):
            return module(rngs)

    message = rf"Random.init: the variable {name} is a random key .*; draw randomness from the `rng` argument of Task"
    with pytest.raises(RequestError, match=message):
        Model(Random())
