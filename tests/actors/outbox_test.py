"""The outbox: a snapshot can be read as long as the store needs it; our buffers are used again when it has a copy."""

import threading

import jax.numpy as jnp
import numpy as np
import pytest

from raylingvo.actors.outbox import Announcement, Outbox, Snapshot
from raylingvo.training.host_copy import HostCopier


@pytest.fixture
def copier():
    copier = HostCopier()
    yield copier
    copier.close()


def announcement(step):
    return Announcement(step, step / 10, 400, 8)


def snapshot(step):
    """What the store has of a step."""
    return Snapshot([np.full(100, step, np.float32)], [np.zeros(1)], {"position": step})


def put(outbox, copier, step):
    weights = copier.copy([jnp.full(100, step, jnp.float32)])
    outbox.put(announcement(step), Snapshot(weights, [np.zeros(1)], {}), copier.lease(weights, users=1))
    return weights[0]


def hand_over(outbox, step, version):
    outbox.handed_over(version, announcement(step), snapshot(step))


def test_snapshots_wait_until_the_store_has_them(copier):
    outbox = Outbox()
    first, second = put(outbox, copier, 1), put(outbox, copier, 2)
    assert outbox.get(1).weights[0] is first
    hand_over(outbox, 1, (1, 1))
    assert np.shares_memory(put(outbox, copier, 3), first)
    assert (outbox.get(1).weights[0] == 1).all()  # the store's
    assert (outbox.get(2).weights[0] == 2).all()
    assert outbox.get(2).weights[0] is second
    assert outbox.announcements() == [announcement(1), announcement(2), announcement(3)]


def test_what_the_store_needs_no_more_is_let_go(copier):
    outbox = Outbox()
    for step in (1, 2, 3):
        put(outbox, copier, step)
        hand_over(outbox, step, (1, step))
    put(outbox, copier, 4)  # which the store has not got yet
    outbox.keep((1, 4), [2, 3], states=[3])
    assert outbox.announcements() == [announcement(2)._replace(rest_nbytes=None), announcement(3), announcement(4)]
    assert outbox.get(2).rest is None
    assert outbox.get(3).position == {"position": 3}
    with pytest.raises(KeyError):
        outbox.get(1)


def test_a_call_that_was_overtaken_brings_nothing_back(copier):
    outbox = Outbox()
    for step in (1, 2):
        put(outbox, copier, step)
    outbox.keep((1, 3), [2], states=[])
    hand_over(outbox, 1, (1, 1))
    hand_over(outbox, 2, (1, 2))
    outbox.keep((1, 0), [], states=[])
    assert outbox.announcements() == [announcement(2)._replace(rest_nbytes=None)]


def test_a_later_life_of_the_store_counts_from_the_beginning(copier):
    outbox = Outbox()
    put(outbox, copier, 1)
    hand_over(outbox, 1, (1, 100))
    outbox.keep((1, 101), [1], states=[1])
    hand_over(outbox, 1, (2, 1))
    outbox.keep((2, 2), [], states=[])
    assert outbox.announcements() == []


def test_the_end_waits_for_the_store(copier):
    outbox = Outbox()
    outbox.wait_handed_over(0)
    put(outbox, copier, 1)
    with pytest.raises(TimeoutError):
        outbox.wait_handed_over(0.01)
    thread = threading.Thread(target=hand_over, args=(outbox, 1, (1, 1)))
    thread.start()
    outbox.wait_handed_over(60)
    thread.join()


def test_snapshots_may_be_handed_over_by_another_thread(copier):
    outbox = Outbox()
    ready, wrong = threading.Semaphore(0), []

    def reader():
        for step in range(200):
            if not ready.acquire(timeout=30) or (outbox.get(step).weights[0] != step).any():
                wrong.append(step)
                return
            hand_over(outbox, step, (1, 2 * step))
            outbox.keep((1, 2 * step + 1), [], states=[])

    thread = threading.Thread(target=reader)
    thread.start()
    for step in range(200):
        put(outbox, copier, step)
        ready.release()
    thread.join(timeout=60)
    assert not thread.is_alive()
    assert not wrong
