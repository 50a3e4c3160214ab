"""Experiments are data: dumped, loaded and dumped again they are the same text; what does not fit is refused."""

import dataclasses
import pickle

import pytest
import toy

from raylingvo.config import dump, load, override
from raylingvo.errors import RequestError
from raylingvo.experiment import (
    Best,
    Checkpoints,
    DevBased,
    EarlyStop,
    Experiment,
    Reading,
    Resources,
    RoleResources,
    Snapshots,
    Train,
)
from raylingvo.registry import get, names
from raylingvo.training.schedules import EmaDecay

NAMES = names()


@pytest.mark.parametrize("name", NAMES)
def test_golden(check_golden, name):
    text = dump(get(name))
    again = load(text, Experiment)
    assert again == get(name)
    assert dump(again) == text
    check_golden(f"{name}.yaml", text)


def test_every_golden_file_has_its_experiment(request):
    files = {path.stem for path in (request.config.rootpath / "tests" / "golden").glob("*.yaml")}
    assert files == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_experiments_can_be_pickled_and_hashed(name):
    experiment = get(name)
    copy = pickle.loads(pickle.dumps(experiment))
    assert copy == experiment
    assert hash(copy) == hash(experiment)


def test_experiments_do_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        toy.experiment().name = "other"
    with pytest.raises(TypeError):
        toy.experiment().datasets["more"] = toy.Numbers()


def test_readings_use_the_batch_size_of_training_by_default():
    experiment = toy.experiment(batch_size=8)
    assert experiment.reading_batch_size(Reading()) == 8
    assert experiment.reading_batch_size(Reading(batch_size=3)) == 3


def test_the_parts_of_an_experiment_are_checked_again_when_overridden():
    with pytest.raises(RequestError, match=r"train.dataset: no dataset 'tset'; the experiment has train, test"):
        override(toy.experiment(), {"train.dataset": "tset"})
    with pytest.raises(RequestError, match=r"learning_rate must be > 0"):
        override(toy.experiment(), {"learner.learning_rate": "-1"})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"eval": {"dev": Reading()}}, r"eval: no dataset 'dev'; the experiment has train, test"),
        ({"decode": {"dev": Reading()}}, r"decode: no dataset 'dev'; the experiment has train, test"),
        (
            {"datasets": {"train": toy.Numbers(), "a/b": toy.Numbers()}, "eval": {}, "decode": {}},
            r"'a/b' is not a name",
        ),
        (
            {"train": Train(batch_size=1, max_steps=1, early_stop=EarlyStop(metric="dev/loss", mode="min", window=1))},
            r"train.early_stop.metric: 'dev/loss' is of a dataset that is neither evaluated nor decoded; eval has",
        ),
        (
            {
                "train": Train(
                    batch_size=1, max_steps=1, checkpoints=Checkpoints(best=Best(metric="dev/loss", mode="min"))
                )
            },
            r"train.checkpoints.best.metric: 'dev/loss' is of a dataset that is neither evaluated nor decoded; eval",
        ),
        (
            {"eval": {}, "train": Train(batch_size=1, max_steps=1, dev_based=DevBased(metric="dev/loss"))},
            r"train.dev_based.metric: 'dev/loss' .*; eval has none, decode has test",
        ),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(toy.experiment(), **overrides)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Train(batch_size=0, max_steps=1), r"batch_size must be >= 1 \(got 0\)"),
        (lambda: Train(batch_size=1, max_steps=0), r"max_steps must be >= 1 \(got 0\)"),
        (lambda: Train(batch_size=1, max_steps=1, seed=-1), r"seed must be >= 0 \(got -1\)"),
        (lambda: Train(batch_size=1, max_steps=1, seed=2**32), r"seed must be < 2\^32 \(got 4294967296\)"),
        (
            lambda: Train(batch_size=1, max_steps=1, ema_decay=0.9, ema_schedule=EmaDecay(ema_decay=0.5)),
            r"ema_decay and ema_schedule exclude each other \(got 0.9, EmaDecay",
        ),
        (lambda: Snapshots(every_steps=0), r"every_steps must be >= 1 \(got 0\)"),
        (lambda: Snapshots(max_bytes=0), r"max_bytes must be >= 1 \(got 0\)"),
        (lambda: Checkpoints(keep_last=0), r"keep_last must be >= 1 \(got 0\)"),
        (lambda: Checkpoints(every_seconds=0.0), r"every_seconds must be > 0 \(got 0.0\)"),
        (lambda: Checkpoints(every_seconds=float("nan")), r"every_seconds must be > 0 \(got nan\)"),
        (lambda: Best(metric="accuracy", mode="max"), r"metric must be DATASET/NAME, .* \(got 'accuracy'\)"),
        (lambda: EarlyStop(metric="test/", mode="max", window=1), r"metric must be DATASET/NAME, .* \(got 'test/'\)"),
        (lambda: EarlyStop(metric="test/x", mode="max", window=0), r"window must be >= 1 \(got 0\)"),
        (lambda: Reading(batch_size=0), r"batch_size must be >= 1 \(got 0\)"),
        (lambda: RoleResources(num_cpus=-1.0), r"num_cpus must be >= 0 \(got -1.0\)"),
        (lambda: RoleResources(custom={"TPU": -1.0}), r"^custom.TPU must be >= 0 \(got -1.0\)$"),
        (lambda: RoleResources(custom={"CPU": 1.0}), r"^custom must not have CPU: that is num_cpus$"),
        (lambda: RoleResources(custom={"TPU": 4.0, "GPU": 0.0}), r"^custom must not have GPU: that is num_gpus$"),
        (lambda: Resources(hosts=0), r"^hosts must be >= 1 \(got 0\)$"),
        (lambda: Resources(cpu_devices=0), r"^cpu_devices must be >= 1 \(got 0\)$"),
    ],
)
def test_bad_values_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_what_a_role_asks_for_is_by_rays_names_without_what_it_does_not_ask_for():
    assert RoleResources().amounts == {}
    assert RoleResources(num_cpus=0.5, num_gpus=2.0).amounts == {"CPU": 0.5, "GPU": 2.0}
    assert RoleResources(num_gpus=0.0, custom={"TPU": 4.0, "big": 0.0}).amounts == {"TPU": 4.0}


def test_resources_are_set_by_role():
    given = {"hosts": "4", "cpu_devices": "2", "trainer.num_gpus": "8", "store.custom": "{big: 0.5}"}
    found = override(toy.experiment(), {f"resources.{key}": value for key, value in given.items()}).resources
    assert found == Resources(
        trainer=RoleResources(num_cpus=1.0, num_gpus=8.0),
        hosts=4,
        cpu_devices=2,
        store=RoleResources(custom={"big": 0.5}),
    )
    with pytest.raises(RequestError, match=r"^resources.hosts must be >= 1 \(got 0\)$"):
        override(toy.experiment(), {"resources.hosts": "0"})
    with pytest.raises(RequestError, match=r"^resources.trainer.custom must not have CPU: that is num_cpus$"):
        override(toy.experiment(), {"resources.trainer.custom.CPU": "1"})
