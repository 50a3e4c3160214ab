"""A Trainer that goes on with another run's train state, without Ray."""

from unittest import mock

import pytest
import toy
from trainers import (
    EXPERIMENT,
    Killed,
    Store,
    abstract_state,
    assert_same_outcome,
    events,
    interrupt,
    kill,
    outcome,
    train,
    trainer_on,
)

import raylingvo as rl
from raylingvo.actors import trainer as trainer_module
from raylingvo.actors.trainer import Adoption, Trainer
from raylingvo.actors.within import Command
from raylingvo.data.pipeline import TrainInput
from raylingvo.monitor.metrics_log import read_metrics
from raylingvo.training import checkpoints


def adopt_from(donor, rate):
    """What lets a Trainer go on with the newest state of the run that `donor`, a Store, has heard of."""
    _, snapshots = donor.newest_state()
    command = Command("adopt", params={"learner.learning_rate": rate}, origin={"from_trial": 7})
    return lambda trainer: trainer.adopt(Adoption(snapshots, command))


@pytest.fixture(scope="module")
def donor(tmp_path_factory):
    """(its store, its logdir): a run of another seed and rate."""
    store, logdir = Store(), tmp_path_factory.mktemp("donor")
    train(rl.override(EXPERIMENT, {"train.seed": 5, "learner.learning_rate": 0.01}), logdir, store)
    return store, logdir


@pytest.mark.parametrize("there_already", [False, True])
def test_another_runs_weights_and_optimizer_are_adopted_and_nothing_else(tmp_path, donor, there_already):
    """At the end of a run that is to pause there is no step in between: the checkpoint has what was adopted.

    there_already: the step that it pauses after has been published and saved as it was before.
    """
    store, logdir = donor
    policies = {"train.checkpoints.every_steps": 4, "train.snapshots.every_steps": 4, "train.snapshots.state_every": 1}
    experiment = rl.override(EXPERIMENT, policies if there_already else {})
    own = Store()

    def do(trainer):
        interrupt(trainer)
        take_step = trainer._program

        def and_then(*args):  # when the last step is under way
            adopt_from(store, 0.2)(trainer)
            return take_step(*args)

        and_then.take_flops = take_step.take_flops
        trainer._program = and_then

    if there_already:

        def late(trainer):
            trainer._writer.wait()
            assert checkpoints.steps(tmp_path) == [4]
            do(trainer)
            trainer._program = lambda *args: pytest.fail("there is no step any more")
            adopt_from(store, 0.2)(trainer)

        # Asked between two steps, when step 4 has been published.
        publish = Trainer._publish

        def published(trainer, **how):
            publish(trainer, **how)
            if trainer._step == 4 and not how:
                late(trainer)

        with mock.patch.object(Trainer, "_publish", published):
            train(experiment, tmp_path, own)
    else:
        train(experiment, tmp_path, own, after=4, do=do)
    other, _ = checkpoints.restore(logdir, 10, abstract_state(EXPERIMENT))
    state, position = checkpoints.restore(tmp_path, 4, abstract_state(EXPERIMENT))
    toy.assert_bit_equal(state.weights, other.weights)
    toy.assert_bit_equal(state.opt_state, other.opt_state)
    newest, _ = own.newest_state()
    assert newest == 4
    toy.assert_bit_equal(own.states[4].weights, store.states[10].weights)
    assert position["adopted"] == [{"step": 4, "params": {"learner.learning_rate": 0.2}, "origin": {"from_trial": 7}}]


def test_a_run_that_has_adopted_resumes_to_the_bit(tmp_path, donor):
    store, _ = donor
    train(EXPERIMENT, tmp_path / "whole", after=3, do=adopt_from(store, 0.2))

    def do(trainer):
        adopt_from(store, 0.2)(trainer)

    first = trainer_on(EXPERIMENT, tmp_path / "cut")
    asked = []

    class Input(TrainInput):
        def __next__(self):
            asked.append(1)
            {3: do, 6: interrupt}.get(len(asked), lambda trainer: None)(first)
            return super().__next__()

    with mock.patch.object(trainer_module, "TrainInput", Input):
        first.run()
    assert any(event.startswith("adopted another run's state after step 2 in") for event in events(first))
    train(EXPERIMENT, tmp_path / "cut")
    assert_same_outcome(EXPERIMENT, tmp_path / "cut", tmp_path / "whole")
    rates = {record["step"]: record["learning_rate"] for record in read_metrics(tmp_path / "cut" / "train")}
    assert rates[max(rates)] == pytest.approx(0.2)


@pytest.mark.parametrize("every_steps", [None, 50])
def test_the_checkpoint_of_an_adoption_comes_with_the_next_snapshot(tmp_path, donor, every_steps):
    own = Store()
    experiment = rl.override(EXPERIMENT, {"train.checkpoints.every_steps": every_steps})
    trainer = trainer_on(experiment, tmp_path, own)
    saved = []
    asked = []

    class Input(TrainInput):
        def __next__(self):
            asked.append(1)
            if len(asked) == 2:
                adopt_from(donor[0], 0.2)(trainer)
            if len(asked) > 2:
                trainer._writer.wait()
                saved.append(checkpoints.steps(tmp_path))
            return super().__next__()

    with mock.patch.object(trainer_module, "TrainInput", Input):
        trainer.run()
    assert saved == [[], *[[3]] * 7]  # before the steps 3 to 10
    assert [step for step, _ in own.announced] == [3, 6, 9, 10]


def test_a_run_that_is_killed_after_it_has_adopted_goes_on_with_that(tmp_path, donor):
    """There would be no checkpoint for a while, and the store dies as well."""
    store, _ = donor
    train(EXPERIMENT, tmp_path / "whole", after=3, do=adopt_from(store, 0.2))
    killed = trainer_on(EXPERIMENT, tmp_path / "cut")
    asked = []

    class Input(TrainInput):
        def __next__(self):
            asked.append(1)
            {3: adopt_from(store, 0.2), 4: kill}.get(len(asked), lambda trainer: None)(killed)
            return super().__next__()

    with mock.patch.object(trainer_module, "TrainInput", Input), pytest.raises(Killed):
        killed.run()
    assert checkpoints.steps(tmp_path / "cut") == [3]
    again = trainer_on(EXPERIMENT, tmp_path / "cut")
    assert again.status()["adopted"] is None
    again.run()
    assert again.status()["adopted"] == killed.status()["adopted"]
    assert again.status()["adopted"][0]["origin"] == {"from_trial": 7}
    assert_same_outcome(EXPERIMENT, tmp_path / "cut", tmp_path / "whole")


def test_other_settings_than_rates_are_adopted_with_a_step_of_their_own(tmp_path, donor):
    """Without dropout both ways lead to the same: it was off from the start, or since it was adopted at once."""
    store, _ = donor
    _, snapshots = store.newest_state()

    def adopt(params):
        return lambda trainer: trainer.adopt(Adoption(snapshots, Command("adopt", params=params)))

    off = rl.override(EXPERIMENT, {"task.dropout": 0.0})
    train(EXPERIMENT, tmp_path / "changed", after=1, do=adopt({"task.dropout": 0.0}))
    train(off, tmp_path / "off", after=1, do=adopt({}))
    changed, off_state = outcome(EXPERIMENT, tmp_path / "changed")[0], outcome(off, tmp_path / "off")[0]
    toy.assert_bit_equal(changed.weights, off_state.weights)


def test_snapshots_tell_with_which_settings_they_were_trained(tmp_path, donor):
    """Also those without the rest of the state, and those of a Trainer that goes on from them."""
    own = Store()
    experiment = rl.override(EXPERIMENT, {"train.snapshots.state_every": 2})
    trainer = trainer_on(experiment, tmp_path, own)
    asked = []

    class Input(TrainInput):
        def __next__(self):
            asked.append(1)
            {5: adopt_from(donor[0], 0.2), 8: interrupt}.get(len(asked), lambda trainer: None)(trainer)
            return super().__next__()

    with mock.patch.object(trainer_module, "TrainInput", Input):
        trainer.run()
    changed = {"learner.learning_rate": 0.2}
    assert own.settings == {3: {}, 6: changed, 8: changed}
    again = Store()
    train(experiment, tmp_path, again)
    assert again.settings == {9: changed, 10: changed}
