"""Checkpoints: which are kept as time goes by, that they come back bit by bit, and that a failure is never quiet."""

import errno
import math
import os
import shutil
import threading
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from damages import DAMAGES, damage
from small_disk import small_disk

from raylingvo.errors import DiskError, RequestError
from raylingvo.experiment import Best
from raylingvo.experiment import Checkpoints as Policy
from raylingvo.monitor.atomic import REFUSALS
from raylingvo.monitor.metrics_log import MetricsLog
from raylingvo.training import checkpoints, checksums
from raylingvo.training.checkpoints import CheckpointWriter, Saved, retained
from raylingvo.training.host_copy import decode
from raylingvo.training.state import init_state

POSITION = {"input": {"position": {"next": 7}, "seed": 0}, "reports": [{"step": 4, "metrics": {"loss": 0.1}}]}


def host_state(**task):
    task = toy.Regression(dropout=0.0, **task)
    return jax.tree.map(np.asarray, init_state(toy.experiment(task=task), toy.batches(1)[0]))


STATE = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "step": np.array(3, np.int32)}


class Killed(BaseException):
    """What a test raises as if the process had been killed there."""


@pytest.fixture
def writer(tmp_path):
    made = []

    def make(policy=None, tell=lambda line: None):
        made.append(CheckpointWriter(tmp_path, policy or Policy(), tell))
        return made[-1]

    yield make
    for each in made:
        each.close()


def save(writer, step, state=STATE):
    writer.save(step, state, POSITION, on_saved=lambda: None)
    writer.wait()


def score(logdir, values, dataset="test", metric="accuracy", role="eval"):
    with MetricsLog(logdir / f"{role}_{dataset}") as log:
        for step, value in values.items():
            log.write(step, {metric: value})


# --- retention, on a simulated clock ---


def simulate(policy, *, steps, seconds_per_step, scores=lambda step: {}):
    """Saves every step and lets go what the policy does not keep; yields (step, what is kept)."""
    saved = []
    for step in range(1, steps + 1):
        saved.append(Saved(step, 1e9 + step * seconds_per_step))
        kept = retained(saved, policy, scores(step))
        saved = [s for s in saved if s.step in kept]
        yield step, [s.step for s in saved]


@pytest.mark.parametrize("keep_last", [1, 3])
def test_the_last_ones_are_kept(keep_last):
    for step, kept in simulate(Policy(keep_last=keep_last), steps=10, seconds_per_step=60):
        assert kept == list(range(max(1, step - keep_last + 1), step + 1))


@pytest.mark.parametrize("seconds_per_step", [7, 50, 100, 130])
def test_one_per_period_is_kept_for_ever(seconds_per_step):
    policy = Policy(keep_last=2, keep_every_seconds=100)
    before: set[int] = set()
    for step, kept in simulate(policy, steps=60, seconds_per_step=seconds_per_step):
        old = [s for s in kept if s <= step - 2]
        gaps = np.diff(old) * seconds_per_step
        # As dense as asked for, as far as there were checkpoints to keep, and no denser.
        assert (gaps >= 100).all()
        assert (gaps < 100 + seconds_per_step).all()
        assert before <= set(kept)
        before = set(old)
    assert len(before) >= 60 * seconds_per_step / (100 + seconds_per_step) - 2


@pytest.mark.parametrize(("mode", "best"), [("max", [3, 7]), ("min", [1, 6])])
def test_the_best_are_kept_once_they_have_a_score(mode, best):
    values = {1: 0.1, 2: 0.5, 3: 0.9, 4: 0.4, 5: 0.5, 6: 0.2, 7: 0.8, 8: 0.5, 9: 0.5}
    policy = Policy(keep_last=1, best=Best(metric="test/accuracy", mode=mode, keep=2))
    delay = 2  # the Evaler is so many steps behind

    def scores(step):
        return {s: values[s] for s in values if s <= step - delay}

    for step, kept in simulate(policy, steps=9, seconds_per_step=1, scores=scores):
        assert set(kept) >= set(range(max(1, step - delay + 1), step + 1))  # unscored: may be the best
    assert kept == [*best, 8, 9]


def test_a_checkpoint_that_the_evaler_skipped_is_not_waited_for():
    policy = Policy(keep_last=1, best=Best(metric="test/accuracy", mode="max"))
    saved = [Saved(step, float(step)) for step in (10, 20, 30, 40)]
    assert retained(saved, policy, {10: 0.5, 30: 0.4}) == {10, 40}


@pytest.mark.parametrize("evaluated", [0, 2], ids=["never", "no longer"])
def test_checkpoints_whose_score_does_not_come_are_not_kept_for_ever(evaluated):
    """The Evaler has failed, or its policy is `last`."""
    policy = Policy(keep_last=2, best=Best(metric="test/accuracy", mode="max", keep=3))

    def scores(step):
        return dict.fromkeys(range(1, min(step, evaluated) + 1), 0.5)

    for step, kept in simulate(policy, steps=20, seconds_per_step=1, scores=scores):
        scored = list(range(1, min(step, evaluated) + 1))
        waiting = list(range(max(len(scored), step - 5) + 1, step + 1))
        assert kept == scored + waiting


@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_checkpoint_that_scored_nan_is_kept_only_for_want_of_a_better_one(mode):
    policy = Policy(keep_last=1, best=Best(metric="test/loss", mode=mode))
    values = {1: math.nan, 2: math.nan, 3: 0.5, 4: math.nan}
    kept = [
        kept
        for _, kept in simulate(
            policy, steps=5, seconds_per_step=1, scores=lambda step: {s: v for s, v in values.items() if s < step}
        )
    ]
    assert kept == [[1], [1, 2], [1, 3], [3, 4], [3, 5]]


def test_a_score_of_a_step_without_checkpoint_takes_no_place():
    policy = Policy(keep_last=1, best=Best(metric="test/accuracy", mode="max"))
    saved = [Saved(step, float(step)) for step in (10, 20, 30)]
    assert retained(saved, policy, {10: 0.5, 15: 0.99, 20: 0.4, 25: 0.98, 30: 0.1}) == {10, 30}


def test_of_equal_scores_the_earlier_is_best():
    assert checkpoints.rank({30: 0.5, 10: 0.5, 20: 0.7}, "max") == [20, 10, 30]
    assert checkpoints.rank({30: 0.5, 10: 0.5, 20: 0.7}, "min") == [10, 30, 20]


@pytest.mark.parametrize(("mode", "ranked"), [("max", [40, 50, 20, 10, 30]), ("min", [20, 50, 40, 10, 30])])
def test_nan_is_worse_than_any_number(mode, ranked):
    scores = {10: math.nan, 20: -math.inf, 30: math.nan, 40: math.inf, 50: 0.0}
    assert checkpoints.rank(scores, mode) == ranked


# --- on disk ---


@pytest.mark.parametrize("task", [{"dtype": "bfloat16"}, {"statistics": False}], ids=["bf16", "no extra"])
def test_what_is_restored_is_what_was_saved(tmp_path, writer, task):
    state = host_state(**task)
    assert bool(state.weights.extra) == task.get("statistics", True)
    save(writer(), 3, state)
    restored, position = checkpoints.restore(tmp_path, 3, jax.eval_shape(lambda: jax.tree.map(jnp.asarray, state)))
    toy.assert_bit_equal(restored, state)
    assert position == POSITION


def test_saving_keeps_what_the_policy_keeps(tmp_path, writer):
    told: list[str] = []
    score(tmp_path, {1: 0.1, 2: 0.9, 3: 0.2, 4: 0.3, 5: 0.4})
    best = Best(metric="test/accuracy", mode="max")
    each = writer(Policy(keep_last=2, best=best), told.append)
    for step in range(1, 6):
        save(each, step)
    assert checkpoints.steps(tmp_path) == [2, 4, 5]
    assert told == [f"checkpoint {step} written" for step in range(1, 6)]
    assert sorted(path.name for path in (tmp_path / checkpoints.DIRECTORY).iterdir()) == ["2", "4", "5"]
    assert checkpoints.resolve(tmp_path, "best", best) == [2]
    assert checkpoints.resolve(tmp_path, "latest", best) == [5]
    assert checkpoints.resolve(tmp_path, "all", best) == [2, 4, 5]
    assert checkpoints.resolve(tmp_path, "4", best) == [4]


def test_a_step_can_be_saved_again(tmp_path, writer):
    each = writer()
    for state in (STATE, {"a": STATE["a"] + 1, "step": np.array(3, np.int32)}):
        save(each, 3, state)
        toy.assert_bit_equal(checkpoints.restore(tmp_path, 3, state)[0], state)


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_one_of_a_step_is_there_whenever_the_process_dies(tmp_path, writer, monkeypatch, renames):
    """renames: how many are done before it does."""
    newer = {"a": STATE["a"] + 1, "step": np.array(3, np.int32)}
    save(writer(), 3, STATE)
    rename, done = Path.rename, []

    def dying(path, target):
        if len(done) == renames:
            raise Killed
        done.append(target)
        return rename(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", dying)
        if renames == 2:  # it dies while the older one is being deleted
            patched.setattr(checkpoints.shutil, "rmtree", mock.Mock(side_effect=Killed))
        with pytest.raises(Killed):
            save(writer(), 3, newer)
    checkpoints.clean(tmp_path)
    assert [path.name for path in (tmp_path / checkpoints.DIRECTORY).iterdir()] == ["3"]
    toy.assert_bit_equal(checkpoints.restore(tmp_path, 3, STATE)[0], newer if renames == 2 else STATE)


def test_buffers_are_given_back_when_they_are_on_disk(tmp_path, writer):
    seen = []
    each = writer()
    each.save(3, STATE, POSITION, on_saved=lambda: seen.append(checkpoints.steps(tmp_path)))
    each.wait()
    assert seen == [[3]]
    assert not each.busy()


def test_it_is_busy_until_the_save_is_over(writer):
    go_on = threading.Event()
    each = writer()
    each.save(3, STATE, POSITION, on_saved=lambda: go_on.wait(60) or pytest.fail("nobody set the event"))
    assert each.busy()
    go_on.set()
    each.wait()
    assert not each.busy()


# --- failures ---


def block(logdir):
    """Makes every save fail: the place of the checkpoints is a file."""
    (logdir / "train").mkdir()
    (logdir / checkpoints.DIRECTORY).write_text("")


@pytest.mark.parametrize("call", ["save", "wait", "close", "busy"])
def test_the_next_call_raises_the_error_of_a_save(tmp_path, call):
    block(tmp_path)
    each = CheckpointWriter(tmp_path, Policy(), lambda line: None)
    started = threading.Event()
    each.save(3, STATE, POSITION, on_saved=lambda: None)
    each._executor.submit(started.set)  # in the writer's only thread, hence after the save
    assert started.wait(60)
    with pytest.raises(OSError, match="checkpoints"):
        each.save(4, STATE, POSITION, on_saved=lambda: None) if call == "save" else getattr(each, call)()
    each.close()


@pytest.mark.parametrize("killed", [True, False])
def test_a_write_that_is_cut_short_leaves_no_checkpoint(tmp_path, monkeypatch, killed):
    def cut_short(*args, **kwargs):
        raise Killed("cut short") if killed else OSError("cut short")

    each = CheckpointWriter(tmp_path, Policy(), lambda line: None)
    save(each, 3)
    with monkeypatch.context() as patch:
        for name in ("rename", "replace"):  # what makes a finished checkpoint appear
            patch.setattr(f"os.{name}", cut_short)
            patch.setattr(Path, name, cut_short)
        each.save(4, STATE, POSITION, on_saved=lambda: pytest.fail("not saved"))
        with pytest.raises(Killed if killed else OSError, match="cut short"):
            each.close()
    root = tmp_path / checkpoints.DIRECTORY
    assert checkpoints.steps(tmp_path) == [3]
    left = {path.name for path in root.iterdir()} - {"3"}
    assert bool(left) == killed  # an error that is raised has been tidied up after
    checkpoints.clean(tmp_path)
    assert [path.name for path in root.iterdir()] == ["3"]
    toy.assert_bit_equal(checkpoints.restore(tmp_path, 3, STATE)[0], STATE)


# Orbax's event loop is gone when the last of its writes fail: their threads complain to stderr.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_wherever_the_disk_gets_full_a_checkpoint_is_whole_or_absent(tmp_path):
    saved, refused = 0, 0
    with small_disk(tmp_path / "disk", 256) as disk:
        each = CheckpointWriter(disk.path, Policy(), lambda line: None)
        save(each, 3)
        root = disk.path / checkpoints.DIRECTORY
        for pages in range(0, 40, 2):
            disk.fill(pages << 12)
            try:
                save(each, 4)
                saved += 1
                toy.assert_bit_equal(checkpoints.restore(disk.path, 4, STATE)[0], STATE)
                shutil.rmtree(root / "4")
            except DiskError as error:
                refused += 1
                assert str(error).startswith(f"{root}/4 cannot be written: No space left on device; make space and ")
                assert checkpoints.steps(disk.path) == [3]
            checkpoints.clean(disk.path)
            assert [path.name for path in root.iterdir()] == ["3"]
            disk.make_space()
        toy.assert_bit_equal(checkpoints.restore(disk.path, 3, STATE)[0], STATE)
        each.close()
    assert saved > 2
    assert refused > 2


@pytest.mark.parametrize("number", REFUSALS, ids=lambda number: errno.errorcode[number])
@pytest.mark.parametrize("kind", [OSError, ValueError])
def test_what_a_disk_refuses_is_told_in_one_line(tmp_path, writer, monkeypatch, kind, number):
    """TensorStore's errors are ValueErrors."""
    reason = os.strerror(number)

    def refuse(folder):
        raise OSError(number, reason) if kind is OSError else ValueError(f"Failed to write: {reason} [code={number}]")

    monkeypatch.setattr(checksums, "seal", refuse)
    with pytest.raises(DiskError) as raised:
        save(writer(), 3)
    assert raised.value.errno == number
    assert str(raised.value).startswith(f"{tmp_path}/train/checkpoints/3 cannot be written: {reason}; make ")
    assert "\n" not in str(raised.value)
    assert list((tmp_path / checkpoints.DIRECTORY).iterdir()) == []


def test_cleaning_removes_what_was_half_deleted(tmp_path, writer):
    save(writer(), 3)
    root = tmp_path / checkpoints.DIRECTORY
    (root / "2.deleting" / "state").mkdir(parents=True)
    assert checkpoints.steps(tmp_path) == [3]
    checkpoints.clean(tmp_path)
    assert [path.name for path in root.iterdir()] == ["3"]


def test_cleaning_an_empty_logdir_does_nothing(tmp_path):
    checkpoints.clean(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert checkpoints.steps(tmp_path) == []


def test_what_resolve_refuses(tmp_path, writer):
    best = Best(metric="test/accuracy", mode="max")
    with pytest.raises(RequestError, match=r"no checkpoint in .*checkpoints; the run has not reached its first one"):
        checkpoints.resolve(tmp_path, "latest", best)
    each = writer()
    for step in (3, 12):
        save(each, step)
    for which in ("7", "newest", "-3"):
        with pytest.raises(RequestError, match=rf"no checkpoint '{which}' in .*; it has 3, 12, latest, best, all"):
            checkpoints.resolve(tmp_path, which, best)
    with pytest.raises(RequestError, match=r"--checkpoint best: this experiment sets no train.checkpoints.best"):
        checkpoints.resolve(tmp_path, "best", None)
    score(tmp_path, {5: 0.5, 12: math.nan})  # there is no checkpoint 5
    with pytest.raises(RequestError, match=r"no checkpoint has a finite test/accuracy yet; evaluate or decode one"):
        checkpoints.resolve(tmp_path, "best", best)


def test_there_is_a_score_for_every_evaluated_step(tmp_path):
    score(tmp_path, {1: 0.5, 2: math.nan, 3: math.inf})
    scores = checkpoints.read_scores(tmp_path, "test/accuracy")
    assert scores == pytest.approx({1: 0.5, 2: math.nan, 3: math.nan}, nan_ok=True)
    score(tmp_path, {4: 0.5}, metric="other")
    absent = checkpoints.read_scores(tmp_path, "test/other")  # a mean over no rows has no value
    assert absent == pytest.approx(dict.fromkeys([1, 2, 3], math.nan) | {4: 0.5}, nan_ok=True)
    assert checkpoints.read_scores(tmp_path, "dev/accuracy") == {}


def test_a_score_may_be_of_a_decoder(tmp_path, writer):
    """Evaluations that do not report it do not count: they would be values that are not there, and the worst."""
    best = Best(metric="test/bleu/mt", mode="max")
    score(tmp_path, {1: 0.5, 2: 0.6, 3: 0.7})
    assert checkpoints.read_scores(tmp_path, best.metric) == {}
    score(tmp_path, {1: 30.0, 2: 29.0}, metric="bleu/mt", role="decode")
    assert checkpoints.read_scores(tmp_path, best.metric) == {1: 30.0, 2: 29.0}
    each = writer(Policy(keep_last=1, best=best))
    for step in (1, 2, 3):
        save(each, step)
    assert checkpoints.steps(tmp_path) == [1, 3]
    assert checkpoints.resolve(tmp_path, "best", best) == [1]


def test_the_evalers_score_counts_if_both_have_one(tmp_path):
    score(tmp_path, {1: 0.1, 2: 0.2}, role="decode")
    assert checkpoints.read_scores(tmp_path, "test/accuracy") == {1: 0.1, 2: 0.2}
    score(tmp_path, {1: 0.5})
    assert checkpoints.read_scores(tmp_path, "test/accuracy") == {1: 0.5}


@pytest.mark.parametrize(
    "abstract",
    [
        {"a": np.zeros((3, 2), np.float32), "step": np.array(0, np.int32)},
        {"b": np.zeros((2, 3), np.float32), "step": np.array(0, np.int32)},
        {"a": np.zeros((2, 3), np.float32)},
    ],
    ids=["shape", "name", "missing"],
)
def test_a_checkpoint_of_another_model_is_refused(tmp_path, writer, abstract):
    save(writer(), 3)
    with pytest.raises(RequestError, match=r"checkpoint .*3.* cannot be read: "):
        checkpoints.restore(tmp_path, 3, abstract)


def test_weights_alone_come_back_in_the_order_of_the_model(tmp_path, writer):
    state = host_state(dtype="bfloat16")
    save(writer(), 3, state)
    encoded = checkpoints.restore_weights(tmp_path, 3, state.weights)
    toy.assert_bit_equal(decode(encoded, state.weights), state.weights)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"gain": np.zeros(3, np.float32)}, r"checkpoint 3 in .* has no variable 'gain': it is of another model"),
        ({"bias": np.zeros(3, np.float32)}, r"hidden/bias is float32\(6,\), expected float32\(3,\)"),
        ({"bias": np.zeros(6, jnp.bfloat16)}, r"hidden/bias is float32\(6,\), expected bfloat16\(6,\)"),
    ],
    ids=["name", "shape", "dtype"],
)
def test_weights_of_another_model_are_refused(tmp_path, writer, other, message):
    save(writer(), 3, host_state())
    with pytest.raises(RequestError, match=message):
        checkpoints.restore_weights(tmp_path, 3, {"params": {"hidden": other}})


def files(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


LARGE = {"a": np.random.default_rng(0).normal(size=(200, 300)).astype(np.float32), "step": np.array(3, np.int32)}


@pytest.mark.parametrize("how", DAMAGES)
def test_damage_to_any_file_of_a_checkpoint_is_found(tmp_path, writer, how):
    """Of a flipped bit in a large array, Orbax says nothing."""
    save(writer(), 3, LARGE)
    folder = tmp_path / checkpoints.DIRECTORY / "3"
    good = tmp_path / "good"
    shutil.copytree(folder, good)
    for name in files(good):
        if (good / name).stat().st_size < 9:
            continue
        damage(folder / name, how)
        for read in (checkpoints.restore, checkpoints.restore_weights):
            with pytest.raises(checkpoints.DamagedCheckpoint) as raised:
                read(tmp_path, 3, LARGE)
            # Of a wrong sum, one cannot tell that it is the sum.
            assert str(name) == checksums.FILE or raised.value.reason.startswith(f"{name} ")
            assert str(raised.value) == f"checkpoint {folder} is damaged: {raised.value.reason}; there is no other"
        shutil.copy2(good / name, folder / name)
    toy.assert_bit_equal(checkpoints.restore(tmp_path, 3, LARGE)[0], LARGE)


def test_a_folder_without_a_checkpoint_is_a_damaged_one_and_the_others_are_told(tmp_path, writer):
    for step in (2, 3):
        save(writer(), step)
    (tmp_path / checkpoints.DIRECTORY / "5").mkdir()
    with pytest.raises(checkpoints.DamagedCheckpoint, match=r"/5 is damaged: .* is missing; choose another: 2, 3$"):
        checkpoints.restore_all_weights(tmp_path, 5)


def test_a_checkpoint_that_may_not_be_read_is_not_damaged(tmp_path, writer, monkeypatch):
    def refuse(folder):
        raise PermissionError(13, "Permission denied", str(folder / "a"))

    save(writer(), 3)
    monkeypatch.setattr(checksums, "damage", refuse)
    with pytest.raises(RequestError, match=r"/3 cannot be read: Permission denied \(.*/3/a\)") as raised:
        checkpoints.restore(tmp_path, 3, STATE)
    assert not isinstance(raised.value, checkpoints.DamagedCheckpoint)


def test_what_is_set_aside_is_no_checkpoint_any_more(tmp_path, writer):
    each = writer(Policy(keep_last=1))
    for expected in ("3.damaged", "3.damaged-2", "3.damaged-3"):
        save(each, 3)
        assert checkpoints.set_aside(tmp_path, 3).name == expected
        assert checkpoints.steps(tmp_path) == []
    save(each, 4)
    save(each, 5)  # retention and cleaning pass over them
    checkpoints.clean(tmp_path)
    left = {path.name for path in (tmp_path / checkpoints.DIRECTORY).iterdir()}
    assert left == {"3.damaged", "3.damaged-2", "3.damaged-3", "5"}


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(RequestError, match=r"checkpoint .*/9 cannot be read: .*not found"):
        checkpoints.restore(tmp_path, 9, STATE)
