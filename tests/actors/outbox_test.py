"""The outbox: a snapshot can be read until it is released, and its buffers are used again only then."""

import threading

import jax.numpy as jnp
import numpy as np
import pytest

from raylingvo.actors.outbox import Outbox, Snapshot
from raylingvo.training.host_copy import HostCopier


@pytest.fixture
def copier():
    copier = HostCopier()
    yield copier
    copier.close()


def put(outbox, copier, step):
    weights = copier.copy([jnp.full(100, step, jnp.float32)])
    outbox.put(step, Snapshot(weights, None, None), copier.lease(weights, users=1))
    return weights[0]


def test_snapshots_wait_until_they_are_released(copier):
    outbox = Outbox()
    first, second = put(outbox, copier, 1), put(outbox, copier, 2)
    assert outbox.get(1).weights[0] is first
    outbox.release(1)
    assert np.shares_memory(put(outbox, copier, 3), first)
    assert (outbox.get(2).weights[0] == 2).all()
    assert outbox.get(2).weights[0] is second


def test_what_is_not_there_is_a_key_error(copier):
    outbox = Outbox()
    put(outbox, copier, 1)
    outbox.release(1)
    for call in (outbox.get, outbox.release):
        with pytest.raises(KeyError):
            call(1)


def test_snapshots_may_be_released_by_another_thread(copier):
    outbox = Outbox()
    ready, wrong = threading.Semaphore(0), []

    def reader():
        for step in range(200):
            if not ready.acquire(timeout=30) or (outbox.get(step).weights[0] != step).any():
                wrong.append(step)
                return
            outbox.release(step)

    thread = threading.Thread(target=reader)
    thread.start()
    for step in range(200):
        put(outbox, copier, step)
        ready.release()
    thread.join(timeout=60)
    assert not thread.is_alive()
    assert not wrong
