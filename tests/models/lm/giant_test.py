"""The giant language models have Lingvo's numbers of weights and take a step, by their shapes alone."""

import functools
import math

import jax
import numpy as np
import pytest
from filled import filled
from flax import nnx

import raylingvo as rl
from raylingvo import registry
from raylingvo.data.synthetic import SyntheticPackedRows
from raylingvo.experiment import Experiment, Train
from raylingvo.metrics.means import to_means
from raylingvo.training.state import init_state, num_params
from raylingvo.training.step import make_train_step

DENSE = {
    "DenseLm8B2x2": 8_852_168_704,
    "DenseLm8B2x2Decode": 8_852_168_704,
    "DenseLm128B8x8": 137_702_416_384,
    "DenseLm128B16x16": 137_702_416_384,
    "DenseLm128B32x32": 137_702_416_384,
    "DenseLm1T16x16": 1_100_041_175_040,
    "DenseLm175B32x32": 174_366_928_896,
    "DenseLm175B32x32DP": 174_366_928_896,
    "DenseLm175B1K": 174_366_928_896,
    "DenseLm175B8x8Decode2D": 174_366_928_896,
    "DenseLM13B32x32": 12_757_652_480,
    "DenseLm12kWide41BAdam16x16": 43_905_527_808,
    "DenseLm12kWide41BAdam8x8": 43_905_527_808,
    "DenseLm12kWide162BAdam16x16": 174_366_928_896,
    "DenseLm12kWide162BAdamBS25616x16": 174_366_928_896,
    "DenseLm12kWide162BAdam32x32": 174_366_928_896,
}
BERT = {
    "MLPerfTrainBertDense2B": 2_020_917_248,
    "MLPerfBertDense1T": 963_139_092_480,
    "MLPerfBertDense1TWider": 894_672_601_088,
    "MLPerfBertDense175B": 203_641_073_664,
    "MLPerfBertDense500B": 481_815_347_200,
    "MLPerfBertDense500B2K": 481_815_347_200,
    "MLPerfBertDense13B32x32": 14_899_368_960,
}


NUMBERS = {f"lm.synthetic_packed_input.{name}": number for name, number in DENSE.items()}
NUMBERS |= {f"lm.wiki_bert.{name}": number for name, number in BERT.items()}


def test_no_giant_is_left_out():
    families = ("lm.synthetic_packed_input.", "lm.wiki_bert.")
    assert NUMBERS.keys() == {name for name in registry.names() if name.startswith(families)}


@functools.cache
def shapes_of_a_step(task, learner):
    """Of the state before and after a step of two rows, as if it were taken."""
    experiment = Experiment(
        task=task,
        datasets={"train": SyntheticPackedRows(length=512)},
        learner=learner,
        train=Train(batch_size=2, max_steps=1),
    )
    batch = experiment.datasets["train"].train_batches(2, 0)[0]
    state = jax.eval_shape(lambda: init_state(experiment, batch))
    return state, *jax.eval_shape(make_train_step(experiment), state, batch)


@pytest.mark.parametrize("name", NUMBERS)
def test_the_number_of_weights_and_a_step(name):
    """Of the whole model, by shapes alone. Experiments that differ in the number of rows only share a step."""
    experiment = registry.get(name)
    before, after, nonfinite = shapes_of_a_step(experiment.task, experiment.learner)
    assert num_params(before.weights) == NUMBERS[name]
    assert after == before
    assert nonfinite.shape == ()


SMALL = {
    "task.model.stack.num_layers": 2,
    "task.model.stack.attention.model_dim": 32,
    "task.model.stack.attention.num_heads": 4,
    "task.model.stack.attention.head_dim": 8,
    "task.model.stack.feed_forward.hidden_dim": 48,
    "task.model.vocab_size": 200,
    "task.model.tokens_per_chunk": 16,
}


@pytest.mark.parametrize(
    "name",
    [
        "lm.synthetic_packed_input.DenseLm12kWide41BAdam8x8",
        "lm.wiki_bert.MLPerfBertDense13B32x32",
        pytest.param("lm.synthetic_packed_input.DenseLm8B2x2", marks=pytest.mark.slow),
        pytest.param("lm.synthetic_packed_input.DenseLm175B32x32", marks=pytest.mark.slow),
        pytest.param("lm.wiki_bert.MLPerfTrainBertDense2B", marks=pytest.mark.slow),
    ],
)
def test_a_small_one_of_each_kind_trains(name):
    experiment = rl.override(rl.get(name), SMALL)
    if experiment.task.model.learned_positions:
        experiment = rl.override(experiment, {"task.model.learned_positions": 24})
    batch = SyntheticPackedRows(length=24).train_batches(2, 0)[0]
    ids = np.random.default_rng(0).integers(104, 200, (2, 24)).astype(np.int32)
    batch |= {
        "ids": ids,
        "labels": np.roll(ids, -1, axis=1),
        "segment_pos": np.tile(np.arange(24, dtype=np.int32), (2, 1)),
    }
    # To draw initial weights takes as long to compile as a step does: these are random too.
    state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), jax.eval_shape(lambda: init_state(experiment, batch)))
    params = filled(lambda: state.weights.params, scale=0.3)
    state = state._replace(
        weights=state.weights._replace(params=params), learning_rate=np.float32(experiment.learner.learning_rate)
    )
    step = jax.jit(make_train_step(experiment))
    losses, weights = [], state.weights
    for _ in range(5):
        state, nonfinite = step(state, batch)
        assert not nonfinite
        results = to_means(jax.device_get(state.totals))
        losses.append(results["loss"])
    assert losses[-1] < losses[0] < 2 * math.log(200) + 10
    assert results["num_skipped_updates"] == 0
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), weights.params, state.weights.params)
    # Of learned positions all 24 are used; Adafactor's step is relative, so even scales of 1 move.
    assert jax.tree.all(changed)


def test_a_small_giant_decodes_lines_of_ids():
    task = rl.override(rl.get("lm.synthetic_packed_input.DenseLm8B2x2Decode"), SMALL).task
    batch = task.encode_lines(["5 6 7 8 9", ""])
    assert batch["prompt"].tolist() == [[1, 1, 0, 5, 6, 7, 8, 9], [1] * 7 + [0]]
    module = filled(lambda: task.init(nnx.Rngs(0)))
    outputs, _ = task.postprocess(jax.device_get(jax.jit(task.decode)(module, batch)), batch)
    assert [key for key, _ in outputs] == ["0", "1"]
    for _, output in outputs:
        assert 1 <= len(output["ids"]) <= 64
        assert output["text"].split() == [str(i) for i in output["ids"] if i != 1]
        assert output["log_prob"] < 0
