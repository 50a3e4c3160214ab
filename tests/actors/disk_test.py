"""Full, read-only and damaged disks: told in one line, nothing lost, and the same command ends with the same bits."""

import concurrent.futures
import contextlib
import errno
import pickle
import shutil
import time
from typing import Any
from unittest import mock

import jax
import pytest
import toy
from damages import damage
from small_disk import small_disk

from raylingvo.actors import trainer as trainer_module
from raylingvo.actors.evaler import Evaler
from raylingvo.actors.logdir import Logdir, read_info
from raylingvo.actors.outbox import Snapshot
from raylingvo.actors.reader import Arrival
from raylingvo.actors.trainer import Trainer
from raylingvo.data.pipeline import TrainInput
from raylingvo.errors import DiskError, RequestError, TrainingFailed
from raylingvo.experiment import Checkpoints, Experiment, Snapshots
from raylingvo.monitor.metrics_log import read_metrics
from raylingvo.training import checkpoints
from raylingvo.training.host_copy import encode
from raylingvo.training.state import init_state

# What depends on the clock.
TIMES = {"time", "steps_per_second", "examples_per_second", "input_wait_fraction", "snapshot_seconds"}
EXPERIMENT = toy.experiment(max_steps=10, checkpoints=Checkpoints(every_seconds=None, every_steps=3))


class Store:
    """The Trainer's view of a SnapshotStore that keeps the states of `keep` and, when asked, has the newest of them."""

    def __init__(self, keep=()):
        self.keep, self.states = keep, {}
        self.trainer: Any = None

    def announce(self, announcement):
        if announcement.step in self.keep:
            weights, rest, position, *_ = self.trainer.outbox.get(announcement.step)
            self.states[announcement.step] = Snapshot([x.copy() for x in weights], [x.copy() for x in rest], position)

    def newest_state(self):
        return max(((step, [snapshot]) for step, snapshot in self.states.items()), default=None)


def train(logdir, *, experiment=EXPERIMENT, store=None, after=None, do=lambda trainer: None):
    """A run, or its continuation, in which `do(trainer)` is called before batch number `after` (from 1): its events."""
    (logdir / "control").mkdir(parents=True, exist_ok=True)
    store = store or Store()
    store.trainer = trainer = Trainer(experiment, logdir, store)
    asked = []

    class Input(TrainInput):
        def __next__(self):
            wait_for_the_disk(trainer)  # a checkpoint that falls due meanwhile would be late, a report fail too early
            asked.append(1)
            if len(asked) == after:
                do(trainer)
            return super().__next__()

    with mock.patch.object(trainer_module, "TrainInput", Input):
        trainer.run()
    return trainer.status()["events"][1]


def wait_for_the_disk(trainer):
    """Waits for the reports and the checkpoint that are being written; their errors are for the Trainer."""
    pending = [write for _, write in trainer._reporter._pending]
    if trainer._writer._pending is not None:
        pending.append(trainer._writer._pending)
    concurrent.futures.wait(pending, timeout=60)


def interrupt(trainer):
    trainer.stop(resumable=True)


def outcome(logdir, experiment: Experiment = EXPERIMENT):
    batches = experiment.datasets["train"].train_batches(experiment.train.batch_size, experiment.train.seed)
    abstract = jax.eval_shape(lambda: init_state(experiment, next(batches.samples())))
    state, position = checkpoints.restore(logdir, experiment.train.max_steps, abstract)
    reports = [{k: v for k, v in record.items() if k not in TIMES} for record in read_metrics(logdir / "train")]
    return state, position["input"], reports


def assert_same_outcome(actual, expected):
    a, b = outcome(actual), outcome(expected)
    toy.assert_bit_equal(a[0], b[0])
    assert a[1:] == b[1:]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The logdir of a run that nothing has happened to."""
    logdir = tmp_path_factory.mktemp("whole")
    train(logdir)
    return logdir


@pytest.fixture(scope="module")
def at_step_7(tmp_path_factory):
    logdir = tmp_path_factory.mktemp("interrupted")
    train(logdir, after=7, do=interrupt)
    assert checkpoints.steps(logdir) == [3, 6, 7]
    return logdir


@pytest.fixture
def interrupted(at_step_7, tmp_path):
    """The logdir of a run that was interrupted after step 7, with checkpoints 3, 6 and 7."""
    return shutil.copytree(at_step_7, tmp_path / "run")


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path / "disk", 1024) as made:
        yield made


def names(logdir):
    return sorted(path.name for path in (logdir / checkpoints.DIRECTORY).iterdir())


def data_file(logdir, step):
    """The largest file of a checkpoint."""
    folder = logdir / checkpoints.DIRECTORY / str(step)
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


# --- full and read-only disks ---


# Orbax's event loop is gone when the last of its writes fail: their threads complain to stderr.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("free", [0, 12 << 10])
def test_a_full_disk_fails_the_run_and_with_space_it_goes_on_as_if_nothing_had_been(disk, whole, free):
    logdir = disk.path / "run"
    with pytest.raises(DiskError) as raised:
        train(logdir, after=6, do=lambda trainer: disk.fill(free))
    assert str(raised.value) == (
        f"{logdir}/train/checkpoints/6 cannot be written: No space left on device; make space and give the same "
        "command again: a run goes on from its newest checkpoint"
    )
    assert checkpoints.steps(logdir) == [3]
    with pytest.raises(DiskError):  # there still is no space
        train(logdir)
    assert checkpoints.steps(logdir) == [3]
    disk.make_space()
    assert "training goes on from step 3" in train(logdir)
    assert names(logdir) == ["10", "6", "9"]
    assert_same_outcome(logdir, whole)


def test_a_disk_too_full_for_the_metrics_fails_the_run(disk, whole):
    logdir = disk.path / "run"
    with pytest.raises(DiskError, match=r"/run/train/metrics\.jsonl cannot be written: No space left on device; make "):
        train(logdir, after=4, do=lambda trainer: disk.fill())
    disk.make_space()
    train(logdir)
    assert_same_outcome(logdir, whole)


def test_a_disk_that_becomes_read_only_fails_the_run(disk, whole):
    logdir = disk.path / "run"
    train(logdir, after=3, do=interrupt)
    with pytest.raises(DiskError) as raised:
        # Before a first report: the file that TensorBoard reads is then open, and Linux would not make it read-only.
        train(logdir, after=1, do=lambda trainer: disk.make_read_only())
    assert "cannot be written: Read-only file system; make it writable and give the same command" in str(raised.value)
    assert checkpoints.steps(logdir) == [3]
    disk.make_writable()
    train(logdir)
    assert_same_outcome(logdir, whole)


def test_a_score_that_a_full_disk_does_not_take_is_told_and_can_be_written_later(disk):
    weights = jax.device_get(init_state(EXPERIMENT, toy.batches(1)[0]).weights)
    arrival = Arrival(3, time.time(), encode(jax.tree.leaves(weights)))
    with contextlib.closing(Evaler(EXPERIMENT, "test", disk.path)) as evaler:
        disk.fill()
        with pytest.raises(DiskError, match=r"eval_test/score-00000003\.txt cannot be written: No space left"):
            evaler.process(arrival)
        assert [path for path in evaler.directory.iterdir() if path.stat().st_size] == []
        disk.make_space()
        evaler.process(arrival)
        assert [record["step"] for record in read_metrics(evaler.directory)] == [3]


def test_run_json_says_that_the_run_has_failed_also_if_the_disk_is_full(disk):
    with contextlib.closing(Logdir(disk.path / "run", EXPERIMENT)) as logdir:
        logdir.begin(["raylingvo"])
        disk.fill()
        with pytest.raises(OSError, match="No space"):
            (disk.path / "other").write_bytes(bytes(1))
        logdir.update(status="failed", stop_reason="x" * 1000)
        info = read_info(logdir.path)
        assert info is not None
        assert info["status"] == "failed"
    assert not (logdir.path / ".spare").exists()


def test_a_run_does_not_begin_on_a_full_disk(disk):
    disk.fill()
    with pytest.raises(RequestError) as raised, contextlib.closing(Logdir(disk.path / "run", EXPERIMENT)) as logdir:
        logdir.begin(["raylingvo"])
    assert "No space left on device" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_error_of_a_disk_comes_whole_out_of_another_process():
    error = DiskError(errno.EDQUOT, "Disk quota exceeded", "/runs/a/train/checkpoints/6")
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.errno, copy.filename, str(copy)) == (error.errno, error.filename, str(error))
    damaged = checkpoints.DamagedCheckpoint("checkpoint 3 is damaged", "a is missing")
    copy = pickle.loads(pickle.dumps(damaged))
    assert (copy.reason, str(copy)) == ("a is missing", "checkpoint 3 is damaged")


# --- damaged checkpoints ---


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_taken(interrupted, whole):
    damage(data_file(interrupted, 7), "one bit")
    name = data_file(interrupted, 7).relative_to(interrupted / checkpoints.DIRECTORY / "7")
    # Interrupted where the damaged one was: the step can be saved again.
    told = train(interrupted, after=1, do=interrupt)
    assert told[:2] == [
        f"checkpoint 7 is damaged ({name} is not as it was written), now 7.damaged: checkpoint 6 is taken instead",
        "training goes on from step 6",
    ]
    assert names(interrupted) == ["3", "6", "7", "7.damaged"]
    assert checkpoints.resolve(interrupted, "latest", None) == [7]
    assert checkpoints.resolve(interrupted, "all", None) == [3, 6, 7]
    damage(data_file(interrupted, 7), "cut")
    damage(data_file(interrupted, 6), "missing")
    told = train(interrupted)
    assert [event.partition(" (")[0] for event in told[:2]] == ["checkpoint 7 is damaged", "checkpoint 6 is damaged"]
    assert told[2] == "training goes on from step 3"
    assert [name for name in names(interrupted) if not name.isdecimal()] == ["6.damaged", "7.damaged", "7.damaged-2"]
    assert checkpoints.steps(interrupted) == [6, 9, 10]  # retention has seen none of them
    assert_same_outcome(interrupted, whole)


def test_a_snapshot_that_is_newer_than_the_checkpoint_before_is_taken(tmp_path, whole):
    policy = EXPERIMENT.train.checkpoints
    experiment = toy.experiment(max_steps=10, checkpoints=policy, snapshots=Snapshots(every_steps=5))
    store = Store(keep=[5])
    train(tmp_path, experiment=experiment, store=store, after=7, do=interrupt)
    (tmp_path / checkpoints.DIRECTORY / "6" / "checksums.json").write_bytes(b"")
    shutil.rmtree(tmp_path / checkpoints.DIRECTORY / "7" / "state")
    told = train(tmp_path, experiment=experiment, store=store)
    assert [event.rpartition(": ")[2] for event in told[:2]] == ["the snapshot of step 5 is taken instead"] * 2
    assert told[2] == "training goes on from step 5"
    assert_same_outcome(tmp_path, whole)


def test_a_run_does_not_begin_anew_when_all_its_checkpoints_are_damaged(interrupted):
    for step, how in ((3, "emptied"), (6, "missing"), (7, "zeroed")):
        damage(data_file(interrupted, step), how)
    for _ in range(2):  # nothing has changed
        with pytest.raises(RequestError) as raised:
            train(interrupted)
        text = str(raised.value)
        assert text.startswith(f"no checkpoint in {interrupted}/train/checkpoints can be read (7: ")
        assert text.endswith("; put back a copy of one, use another --logdir, or delete that folder to begin anew")
        assert "; 3: " in text
        assert "\n" not in text
        assert names(interrupted) == ["3", "6", "7"]


def test_a_run_whose_only_checkpoint_was_set_aside_does_not_begin_anew(tmp_path):
    (tmp_path / checkpoints.DIRECTORY / "7.damaged").mkdir(parents=True)
    with pytest.raises(RequestError, match=r"no checkpoint in .* can be read \(7\.damaged\); put back a copy"):
        train(tmp_path)


def test_another_model_is_no_damage(interrupted):
    before = names(interrupted)
    other = toy.experiment(task=toy.Regression(statistics=False), max_steps=10)
    with pytest.raises(RequestError) as raised:
        train(interrupted, experiment=other)
    assert not isinstance(raised.value, checkpoints.DamagedCheckpoint)
    assert names(interrupted) == before


def test_a_rollback_passes_over_a_damaged_checkpoint(tmp_path):
    ids = []
    with contextlib.closing(TrainInput(toy.Numbers(size=200).train_batches(8, 0))) as batches:
        ids = [int(next(batches)["id"][0]) for _ in range(6)][4:]
    experiment = toy.experiment(
        data=toy.Numbers(size=200, nan_ids=tuple(ids)),
        max_nonfinite_in_a_row=2,
        checkpoints=Checkpoints(every_seconds=None, every_steps=2),
    )

    def damage_4(trainer):
        damage(data_file(trainer._logdir, 4), "cut")

    told = train(tmp_path, experiment=experiment, after=6, do=damage_4)
    assert any("now 4.damaged: checkpoint 2 is taken instead" in event for event in told)
    assert any("rolled back to the weights of step 2" in event for event in told)

    def damage_both(trainer):
        damage_4(trainer)
        damage(data_file(trainer._logdir, 2), "cut")

    with pytest.raises(TrainingFailed, match=r"what to go back to cannot be read: no checkpoint in .* can be read"):
        train(tmp_path / "again", experiment=experiment, after=6, do=damage_both)
