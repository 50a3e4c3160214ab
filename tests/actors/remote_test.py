"""Actors as plain objects, without Ray."""

import threading
import types
from unittest import mock

import toy

from raylingvo.actors import remote
from raylingvo.actors.outbox import Outbox


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
