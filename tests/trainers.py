"""The Trainer in this process, without Ray: what its tests share."""

import json
from unittest import mock

import jax
import toy

from raylingvo.actors import trainer as trainer_module
from raylingvo.actors.outbox import Snapshot
from raylingvo.actors.trainer import Trainer
from raylingvo.data.pipeline import TrainInput
from raylingvo.monitor.metrics_log import read_metrics
from raylingvo.training import checkpoints
from raylingvo.training.state import init_state

# What depends on the clock.
TIMES = {"time", "steps_per_second", "examples_per_second", "input_wait_fraction", "snapshot_seconds"}


class Store:
    """The Trainer's view of the SnapshotStore; pulls each snapshot at once, unless it is `slow`."""

    def __init__(self, *, slow=False):
        self.slow = slow
        self.trainer = None
        self.announced = []  # (step, whether with the rest of the state)
        self.states = {}
        self.settings = {}  # step -> with which it was trained

    def announce(self, announcement):
        step = announcement.step
        self.announced.append((step, announcement.rest_nbytes is not None))
        if self.slow:
            return
        pulled = self.trainer.outbox.get(step)
        assert announcement.nbytes == sum(x.nbytes for x in pulled.weights)
        self.settings[step] = dict(pulled.settings)
        copied = Snapshot([x.copy() for x in pulled.weights], None, None, settings=pulled.settings)
        if pulled.rest is not None:
            assert announcement.rest_nbytes == sum(x.nbytes for x in pulled.rest)
            position = json.loads(json.dumps(pulled.position))
            copied = copied._replace(rest=[x.copy() for x in pulled.rest], position=position)
            self.states[step] = copied
        self.trainer.outbox.handed_over((1, len(self.announced)), announcement, copied)

    def newest_state(self):
        return max(((step, [snapshot]) for step, snapshot in self.states.items()), default=None)


class Killed(BaseException):
    """What a test raises in the middle of a run."""


def trainer_on(experiment, logdir, store=None):
    (logdir / "control").mkdir(parents=True, exist_ok=True)  # a run makes it
    store = store or Store()
    store.trainer = Trainer(experiment, logdir, store)
    return store.trainer


def train(experiment, logdir, store=None, *, after=None, do=None):
    """A whole run, in which `do(trainer)` is called at the beginning of its step number `after` (from 1)."""
    trainer = trainer_on(experiment, logdir, store)
    asked = []

    class Input(TrainInput):
        def __next__(self):
            asked.append(1)
            if len(asked) == after:
                do(trainer)
            return super().__next__()

    with mock.patch.object(trainer_module, "TrainInput", Input):
        return trainer.run()


def interrupt(trainer):
    trainer.stop(resumable=True)


def kill(trainer):
    raise Killed


def abstract_state(experiment):
    batches = experiment.datasets["train"].train_batches(experiment.train.batch_size, experiment.train.seed)
    return jax.eval_shape(lambda: init_state(experiment, next(batches.samples())))


def outcome(experiment, logdir):
    """(state, input position, reports) at the end of a run."""
    step = experiment.train.max_steps
    state, position = checkpoints.restore(logdir, step, abstract_state(experiment))
    reports = [{k: v for k, v in record.items() if k not in TIMES} for record in read_metrics(logdir / "train")]
    return state, position["input"], reports


def assert_same_outcome(experiment, actual, expected):
    a, b = outcome(experiment, actual), outcome(experiment, expected)
    toy.assert_bit_equal(a[0], b[0])
    assert a[1:] == b[1:]


def events(trainer):
    return trainer.status()["events"][1]


# Neither reports nor snapshots end on the last step.
EXPERIMENT = toy.experiment(max_steps=10)
