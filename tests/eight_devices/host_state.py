"""What a host with eight devices gives of a state: every piece once, and together the bits of the whole."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import numpy as np
import pytest
import toy

from raylingvo.parallel.hosts import ALONE
from raylingvo.parallel.layout import Spread
from raylingvo.parallel.mesh import Mesh
from raylingvo.training.host_copy import HostCopier, decode, encode
from raylingvo.training.host_state import HostState
from raylingvo.training.pieces import Assembled
from raylingvo.training.state import Model, TrainState, init_state

EXPERIMENT = toy.experiment(task=toy.Regression(width=16, dtype="bfloat16"), ema_decay=0.9)


@pytest.fixture(params=[Mesh(fsdp="data"), Mesh(axes={"data": 2, "model": 4}, fsdp="model"), Mesh()])
def layout(request: pytest.FixtureRequest) -> Spread:
    return Spread(request.param, Model(EXPERIMENT.task).logical_axes)


@pytest.fixture
def state(layout: Spread) -> TrainState:
    return init_state(EXPERIMENT, toy.batches(1)[0], layout=layout)


@pytest.fixture
def copier() -> Iterator[HostCopier]:
    copier = HostCopier()
    yield copier
    copier.close()


def test_the_pieces_that_are_offered_are_the_state(layout: Spread, state: TrainState, copier: HostCopier) -> None:
    copy = HostState(copier, ALONE, layout, state, rest=True, to_checkpoint=False)
    for part, tree in ((0, state.weights), (1, state._replace(weights=None))):
        arrays, places = copy.offered(part)
        assert places is not None and len({*places}) == len(places)
        # No piece twice, nor overlapping: else they would be more than the whole.
        assert sum(x.nbytes for x in arrays) == sum(x.nbytes for x in jax.tree.leaves(tree))
        # As they reach a reader.
        toy.assert_bit_equal(decode(Assembled([(encode(arrays), places)]).leaves(), tree), tree)


def test_they_come_back_where_they_were(layout: Spread, state: TrainState, copier: HostCopier) -> None:
    arrays, places = HostState(copier, ALONE, layout, state, rest=False, to_checkpoint=False).offered(0)
    assembled = Assembled([(encode(arrays), places)])
    put = layout.put_state(assembled.read, jax.eval_shape(lambda: state.weights))
    toy.assert_bit_equal(put, state.weights)
    assert jax.tree.map(lambda x: x.sharding, put) == jax.tree.map(lambda x: x.sharding, state.weights)


@pytest.mark.parametrize("rest", [False, True])
def test_what_goes_to_a_checkpoint_is_the_whole_state(
    layout: Spread, state: TrainState, copier: HostCopier, rest: bool
) -> None:
    saved = HostState(copier, ALONE, layout, state, rest=rest, to_checkpoint=True).checkpointed()
    toy.assert_bit_equal(saved, state)
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(saved))


def test_a_copy_survives_the_donation_of_the_state(layout: Spread, state: TrainState, copier: HostCopier) -> None:
    expected = jax.tree.map(np.array, state)
    copy = HostState(copier, ALONE, layout, state, rest=True, to_checkpoint=True)
    jax.block_until_ready(jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)(state))
    assert state.step.is_deleted()
    toy.assert_bit_equal(copy.checkpointed(), expected)


def test_its_buffers_are_used_again_when_all_are_done(layout: Spread, state: TrainState, copier: HostCopier) -> None:
    copy = HostState(copier, ALONE, layout, state, rest=True, to_checkpoint=True)
    lease = copy.lease(users=2)
    first = [x for part in (0, 1) for x in copy.offered(part)[0] if x.size]

    def reused() -> int:
        again = HostState(copier, ALONE, layout, state, rest=True, to_checkpoint=True)
        return sum(any(np.shares_memory(x, y) for y in first) for part in (0, 1) for x in again.offered(part)[0])

    lease.release()
    assert reused() == 0
    lease.release()
    assert reused() == len(first)
