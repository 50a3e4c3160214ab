"""Actors as plain objects, without Ray."""

import threading
import types
from unittest import mock

import numpy as np
import pytest
import toy

from raylingvo.actors import remote
from raylingvo.actors.outbox import Announcement, Outbox, Snapshot
from raylingvo.training.pieces import Place


def test_a_request_that_comes_while_training_begins_is_the_last_one():
    asked, late = [], []

    class Trainer:
        def __init__(self, *args):
            self.outbox = Outbox()

        def scale_rate(self, factor):
            if not late:
                late.append(threading.Thread(target=actor.scale_rate, args=(0.25,)))
                late[0].start()
                late[0].join(0.1)  # it may come to its end here, or have to wait for this call
            asked.append(factor)

        def run(self):
            late[0].join()
            return {"resumes": False}

        def status(self):
            return {}

        def exported(self):
            return []

    experiment = toy.experiment()
    job = types.SimpleNamespace(enter=lambda platform: experiment, logdir="", run="")
    actor = remote.TrainerActor(job, {}, None, "a life", 0, 1)
    actor.scale_rate(0.5)
    with (
        mock.patch("raylingvo.actors.trainer.Trainer", Trainer),
        mock.patch.object(remote, "_Publisher"),
        mock.patch.object(remote, "crashes"),
    ):
        actor.run()
    assert asked == [0.5, 0.25]


@pytest.mark.parametrize("places", [None, ([Place(0, (0,))], [Place(0, (0,))])])
def test_what_a_snapshot_comes_with_reaches_readers_and_the_next_trainer(places):
    x, settings = np.arange(3.0), {"task.dropout": 0.5}
    actor = remote.TrainerActor(types.SimpleNamespace(run=""), {}, None, "a life", 0, 1)
    given = Snapshot([x], [x + 1], {"reports": []}, places, settings)
    actor._outbox.put(Announcement(6, 1.5, 24, 24), given, None)
    weights, rest, there = actor.snapshot(6)
    assert there
    assert remote._snapshot(weights, rest) == given

    store = mock.Mock()
    store.take.remote.return_value = {"life": "", "step": 6, "time": 1.5, "weights": [weights]}
    with mock.patch.object(remote, "fetch", lambda ref, timeout: ref):
        arrival = remote._Feed(store, "Evaler(test)").next()
    assert arrival == (6, 1.5, [x], settings)
