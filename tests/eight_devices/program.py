"""The train step over eight devices: what one device computes, but for rounding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import numpy as np
import pytest
import toy
import transformer_toy

from raylingvo.errors import RequestError
from raylingvo.experiment import Experiment
from raylingvo.parallel.hosts import ALONE
from raylingvo.parallel.layout import ONE_DEVICE, OneDevice, make_layout
from raylingvo.parallel.mesh import Mesh
from raylingvo.training.optimizers import Adam
from raylingvo.training.program import TrainProgram, Wish
from raylingvo.training.state import Model, TrainState, init_state

STEPS = 5


def trained(
    experiment: Experiment, layout: OneDevice, batches: Sequence[Mapping[str, np.ndarray]]
) -> tuple[TrainState, list[int]]:
    """The state after a step of each of the batches, and what was not finite in a row after each."""
    program, state = TrainProgram(experiment, layout, ALONE), init_state(experiment, batches[0], layout=layout)
    program.compile(state, batches[:1])
    nonfinite = []
    for batch in batches:
        state, outcome = program(state, batch, Wish(stop=1, checkpoint=True, rate_factor=0.5))
        nonfinite.append(int(outcome.nonfinite_in_a_row))
        assert outcome.agreed() == Wish()  # one host has nobody to agree with
    return state, nonfinite


def test_eight_devices_learn_what_one_does() -> None:
    experiment = transformer_toy.experiment(Adam(), ema_decay=0.9)
    layout = make_layout(transformer_toy.MESH, lambda: Model(experiment.task).logical_axes)
    batches = transformer_toy.batches(STEPS)
    initial = init_state(experiment, batches[0], layout=layout)
    toy.assert_bit_equal(initial, init_state(experiment, batches[0]))
    one, _ = trained(experiment, ONE_DEVICE, batches)
    eight, nonfinite = trained(experiment, layout, batches)

    assert nonfinite == [0] * STEPS
    assert int(eight.step) == STEPS
    for (path, a), b in zip(jax.tree.leaves_with_path(eight), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5, err_msg=jax.tree_util.keystr(path))
    # So close are they only by the same steps: these have led far.
    for a, b in zip(jax.tree.leaves(one.weights), jax.tree.leaves(initial.weights), strict=True):
        assert np.abs(np.asarray(a) - b).max() > 1e-3
    # What comes out of a step lies as what went in.
    for x, sharding in zip(jax.tree.leaves(eight), jax.tree.leaves(layout.shardings(eight)), strict=True):
        assert x.sharding.is_equivalent_to(sharding, x.ndim)


def test_a_step_that_is_not_finite_on_one_device_is_skipped_on_all() -> None:
    experiment = toy.experiment(task=toy.Regression(width=8), data=toy.Numbers(nan_ids=(11,)))
    layout = make_layout(Mesh(fsdp="data"), lambda: Model(experiment.task).logical_axes)
    batches = toy.batches(3, data=toy.Numbers(nan_ids=(11,)))
    good, nonfinite = trained(experiment, layout, batches[:1])
    assert nonfinite == [0]
    state, nonfinite = trained(experiment, layout, batches[:2])
    assert nonfinite == [0, 1]
    toy.assert_bit_equal(state.weights, good.weights)
    assert trained(experiment, layout, batches)[1] == [0, 1, 0]


def test_a_shape_of_batch_that_cannot_be_split_is_refused_before_compiling() -> None:
    experiment = toy.experiment()
    layout = make_layout(Mesh(), dict)
    batches = [*toy.batches(1), *toy.batches(1, batch_size=12)]
    with pytest.raises(RequestError, match="a batch of 12 rows cannot be split evenly over 8 devices"):
        TrainProgram(experiment, layout, ALONE).compile(init_state(experiment, batches[0], layout=layout), batches)


def test_the_program_is_one_for_all_devices() -> None:
    experiment = toy.experiment(task=toy.Regression(width=8))
    layout = make_layout(Mesh(fsdp="data"), lambda: Model(experiment.task).logical_axes)
    (batch,) = toy.batches(1)
    lowered = TrainProgram(experiment, layout, ALONE).compile(init_state(experiment, batch, layout=layout), [batch])
    assert "num_partitions = 8" in lowered.as_text()
