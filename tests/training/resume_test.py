"""A checkpoint holds all that the next steps depend on: whatever the learner, going on from one gives the same bits."""

import contextlib

import jax
import jax.numpy as jnp
import pytest
import toy

from raylingvo.experiment import Checkpoints
from raylingvo.training import checkpoints
from raylingvo.training.average import exchanged
from raylingvo.training.grad_norm_tracker import GradNormTracker
from raylingvo.training.learner import Learner
from raylingvo.training.optimizers import EGDD, Accumulator, AdaGraft, Adam, DistributedShampoo, Sgd
from raylingvo.training.schedules import EmaDecay
from raylingvo.training.state import init_state
from raylingvo.training.step import make_train_step

CASES = {
    "tracker, noise and averages": {
        "learner": Learner(
            learning_rate=0.05, grad_norm_tracker=GradNormTracker(decay=0.5, clip_threshold=1.0), optimizer=EGDD()
        ),
        "vn_std": 0.1,
        "vn_start_step": 2,
        "ema_schedule": EmaDecay(ema_decay=0.9),
    },
    "several learners, one accumulating": {
        "learner": {
            # Interrupted after the first of three batches.
            "a": Learner(
                learning_rate=0.05,
                loss_name="loss",
                bprop_variable_filter="^hidden/",
                optimizer=Accumulator(optimizer=Adam(), accum_steps=3),
            ),
            "b": Learner(
                learning_rate=0.02,
                loss_name="loss",
                bprop_variable_filter="^out/",
                optimizer=AdaGraft(
                    magnitude=Sgd(),
                    direction=DistributedShampoo(start_preconditioning_steps=1, preconditioning_frequency=2),
                ),
            ),
        }
    },
}


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
def test_going_on_from_a_checkpoint_gives_the_same_bits(tmp_path, settings):
    experiment = toy.experiment(**settings)
    batches = toy.batches(7)
    start, step = init_state(experiment, batches[0]), jax.jit(make_train_step(experiment))

    def after(state, some):
        for batch in some:
            state, _ = step(state, batch)
        return state

    at_4 = after(start, batches[:4])
    with contextlib.closing(checkpoints.CheckpointWriter(tmp_path, Checkpoints(), tell=lambda line: None)) as writer:
        writer.save(4, jax.device_get(exchanged(at_4)), {}, on_saved=lambda: None)
    restored, _ = checkpoints.restore(tmp_path, 4, jax.eval_shape(lambda: start))
    going_on = jax.tree.map(jnp.array, exchanged(restored))
    toy.assert_bit_equal(after(going_on, batches[4:]), after(at_4, batches[4:]))
    # What a state is about is not at its beginning any more.
    moved = jax.tree.map(lambda x, y: (x != y).any(), jax.tree.leaves(at_4), jax.tree.leaves(start))
    assert sum(map(bool, moved)) > len(moved) / 2
