"""Tune's schedulers are told how a sweep counts, and the decisions of a population reach Tune."""

from __future__ import annotations

import math
import random
from typing import Any, cast

import pytest
import toy
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, HyperBandScheduler, MedianStoppingRule, TrialScheduler

from raylingvo.tune import record
from raylingvo.tune.population import Exploit, Population
from raylingvo.tune.request import Options, make_request
from raylingvo.tune.schedulers import (
    PAUSING,
    AshaScheduler,
    PopulationScheduler,
    _MedianStoppingRule,
    make_scheduler,
)
from raylingvo.tune.search import SweepSearch
from raylingvo.tune.spaces import Uniform
from raylingvo.tune.trainable import result

CONTINUE, PAUSE, STOP = TrialScheduler.CONTINUE, TrialScheduler.PAUSE, TrialScheduler.STOP


class FakeTrial:
    """What schedulers see of a trial."""

    is_saving = False

    def __init__(self, number, status=Trial.RUNNING, *, step=None, params=None):
        self.trial_id = f"id{number}"
        self.config = {"trial": number, "params": params or {}}
        self.status = status
        self.last_result = None if step is None else {"step": step}

    def is_finished(self):
        return self.status in (Trial.TERMINATED, Trial.ERROR)


class FakeController:
    def __init__(self, *trials):
        self.trials = trials
        self.stopped = []

    def stop_trial(self, trial):
        self.stopped.append(trial)

    def get_trials(self):
        return list(self.trials)

    def get_live_trials(self):
        return [trial for trial in self.trials if not trial.is_finished()]


def request(mode="min", max_steps=27, **options):
    params = {"learner.learning_rate": "uniform(0.1, 1)"}
    options = Options(max_steps=max_steps, **options)
    return make_request(toy.experiment(), params, metric="test/loss", mode=mode, options=options)


def no_exploit(exploit):
    raise AssertionError(exploit)


def scheduler(
    name, exploit=no_exploit, *, total=9, over=lambda: False, known=(), at_once=None, room=2, **fields
) -> Any:
    return make_scheduler(request(scheduler=name, **fields), total, exploit, over, known, room=room, at_once=at_once)


def decisions(scheduler, values, *, step, mode="min"):
    """Of new trials of these values, told one after the other, all at this step."""
    trials = [FakeTrial(i) for i in range(len(values))]
    for trial in trials:
        scheduler.on_trial_add(FakeController(*trials), trial)
    return [
        scheduler.on_trial_result(FakeController(*trials), trial, result(step, value, mode))
        for trial, value in zip(trials, values, strict=True)
    ]


# -- Tune's -----------------------------------------------------------------------------------------------------------


def test_first_in_first_out_lets_all_go_on():
    assert type(scheduler("fifo")) is FIFOScheduler
    assert decisions(scheduler("fifo"), [1.0, 2.0, math.nan], step=27) == [CONTINUE] * 3


@pytest.mark.parametrize("mode", ["min", "max"])
def test_hyperband_has_brackets_of_grace_steps(mode):
    """Of 27 steps in units of 3: a bracket of 3 trials with all steps, and one of 5 whose best 2 get more than 9."""
    made = scheduler("hyperband", mode=mode, grace_steps=3)
    assert isinstance(made, HyperBandScheduler)
    trials = [FakeTrial(i) for i in range(8)]
    controller = FakeController(*trials)
    for trial in trials:
        made.on_trial_add(controller, trial)

    def decision(trial, step):
        value = trial.config["trial"] * (1.0 if mode == "min" else -1.0)
        return made.on_trial_result(controller, trial, result(step, value, mode))

    assert [decision(trial, 26) for trial in trials[:3]] == [CONTINUE] * 3
    assert [decision(trial, 8) for trial in trials[3:]] == [CONTINUE] * 5
    for trial in trials[3:7]:
        assert decision(trial, 9) == PAUSE
        trial.status = Trial.PAUSED
    assert decision(trials[7], 9) == STOP
    assert controller.stopped == [trials[6], trials[5]]
    assert made.choose_trial_to_run(controller) in trials[3:5]


@pytest.mark.parametrize(("max_steps", "grace"), [(100, 12), (100, 20), (27, 3), (7, 7)])
def test_what_hyperband_does_not_stop_goes_on_to_the_end(max_steps, grace):
    """Whether or not the steps are a multiple of the unit: Tune would stop at the last whole one."""
    made = scheduler("hyperband", max_steps=max_steps, grace_steps=grace)
    trial = FakeTrial(0)
    made.on_trial_add(FakeController(trial), trial)
    for step in range(1, max_steps + 1):
        assert made.on_trial_result(FakeController(trial), trial, result(step, 1.0, "min")) == CONTINUE


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("value", [9.0, math.nan])
def test_the_median_of_three_stops_the_worse(mode, value):
    sign = 1 if mode == "min" else -1
    values = [sign * 1.0, sign * 2.0, sign * 3.0, sign * value]
    assert type(scheduler("median")) is _MedianStoppingRule
    assert isinstance(scheduler("median"), MedianStoppingRule)
    early = scheduler("median", mode=mode, grace_steps=6)
    assert decisions(early, values, step=5, mode=mode) == [CONTINUE] * 4
    late = scheduler("median", mode=mode, grace_steps=6)
    assert decisions(late, values, step=6, mode=mode) == [CONTINUE, CONTINUE, CONTINUE, STOP]
    better = scheduler("median", mode=mode, grace_steps=6)
    assert decisions(better, [*values[:3], sign * 1.5], step=6, mode=mode) == [CONTINUE] * 4
    few = scheduler("median", mode=mode, grace_steps=6)
    assert decisions(few, values[1:], step=6, mode=mode) == [CONTINUE] * 3


def test_the_median_lets_trials_go_on_while_there_are_few():
    """Tune's own rule would let them take turns, at a checkpoint and a start for each."""
    made = scheduler("median", grace_steps=3)
    trials = [FakeTrial(i) for i in range(2)] + [FakeTrial(2, Trial.PENDING)]
    controller = FakeController(*trials)
    for trial in trials:
        made.on_trial_add(controller, trial)
    for step in range(3, 27, 3):
        told = [made.on_trial_result(controller, trials[i], result(step, float(i), "min")) for i in range(2)]
        assert told == [CONTINUE] * 2


@pytest.mark.parametrize("name", ["fifo", "median"])
def test_with_these_schedulers_no_trial_pauses(name):
    """A pause costs a checkpoint and a start."""
    assert name not in PAUSING
    made = scheduler(name, **({} if name == "fifo" else {"grace_steps": 6}))
    trials = FakeTrial(0), FakeTrial(1, Trial.PENDING)
    for trial in trials:
        made.on_trial_add(FakeController(*trials), trial)
    told = [
        made.on_trial_result(FakeController(*trials), trials[0], result(step, 1.0, "min")) for step in (3, 6, 9, 12)
    ]
    assert told == [CONTINUE] * 4


@pytest.mark.parametrize("name", ["asha", "median", "pbt"])
def test_a_result_without_a_value_changes_nothing(name):
    made = scheduler(name)
    trial = FakeTrial(0)
    made.on_trial_add(FakeController(trial), trial)
    assert made.on_trial_result(FakeController(trial), trial, {}) == CONTINUE


# -- asynchronous successive halving ----------------------------------------------------------------------------------


class Halving:
    """A scheduler with rungs after 3 and 9 of 27 steps, its trials, and how Tune would treat them."""

    def __init__(self, num_trials, *, mode="min", **how):
        self.scheduler = scheduler("asha", mode=mode, grace_steps=3, **{"total": num_trials} | how)
        assert type(self.scheduler) is AshaScheduler
        self.mode = mode
        self.trials = [FakeTrial(i) for i in range(num_trials)]
        self.controller = FakeController(*self.trials)

    def tell(self, number, step, value):
        decision = self.scheduler.on_trial_result(self.controller, self.trials[number], result(step, value, self.mode))
        statuses = {PAUSE: Trial.PAUSED, STOP: Trial.TERMINATED, CONTINUE: Trial.RUNNING}
        self.trials[number].status = statuses[decision]
        return decision

    def chosen(self):
        trial = self.scheduler.choose_trial_to_run(self.controller)
        return None if trial is None else trial.config["trial"]


def end(halving, number, status):
    halving.trials[number].status = Trial.TERMINATED
    last = {**result(15, 0.0, "min"), "end": [status, 15, ""]}
    halving.scheduler.on_trial_complete(halving.controller, halving.trials[number], last)


@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_best_third_goes_on_from_a_rung(mode):
    halving = Halving(9, mode=mode)
    worse = [float(i) if mode == "min" else -float(i) for i in range(6)]
    assert [halving.tell(i, 2, value) for i, value in enumerate(worse)] == [CONTINUE] * 6
    assert [halving.tell(i, 3, value) for i, value in enumerate(worse)] == [PAUSE] * 6
    assert halving.chosen() == 0
    halving.trials[0].status = Trial.PENDING
    assert halving.chosen() == 1
    assert halving.tell(6, 3, worse[0]) == CONTINUE


def test_who_may_go_on_comes_before_who_has_not_begun():
    halving = Halving(4)
    halving.trials[3].status = Trial.PENDING
    assert [halving.tell(0, 3, 1.0), halving.tell(1, 3, 2.0)] == [PAUSE, PAUSE]
    assert halving.chosen() == 3
    halving.tell(2, 3, 3.0)
    assert halving.chosen() == 0


def test_asha_begins_no_more_than_it_is_to():
    halving = Halving(5, at_once=1)
    halving.trials[4].status = Trial.TERMINATED
    assert [halving.tell(i, 3, float(i)) for i in range(3)] == [PAUSE] * 3
    assert halving.chosen() is None  # the fourth runs
    assert not halving.scheduler.may_begin()
    halving.trials[3].status = Trial.TERMINATED
    assert halving.chosen() == 0
    assert not halving.scheduler.may_begin()  # the one that is chosen is about to run


def test_whose_turn_it_is_comes_before_new_trials():
    halving = Halving(3, total=9, at_once=1)
    assert halving.scheduler.may_begin()
    assert [halving.tell(i, 3, float(i)) for i in range(3)] == [PAUSE] * 3
    halving.trials[2].status = Trial.RUNNING  # it is still writing its checkpoint
    assert halving.chosen() is None
    assert not halving.scheduler.may_begin()
    halving.trials[2].status = Trial.PAUSED
    assert halving.chosen() == 0
    halving.trials[0].status = Trial.TERMINATED
    assert halving.chosen() is None
    assert halving.scheduler.may_begin()


def test_when_nothing_is_under_way_the_best_gets_all_its_steps_and_the_others_end():
    halving = Halving(9)
    for i in range(3):
        halving.tell(i, 3, float(i))
    for trial in halving.trials[3:]:
        trial.status = Trial.ERROR
    assert halving.chosen() == 0
    assert halving.tell(0, 9, 0.0) == PAUSE
    assert halving.chosen() == 0
    assert halving.tell(0, 27, 0.0) == CONTINUE
    end(halving, 0, "finished")
    assert halving.chosen() is None
    assert halving.controller.stopped == halving.trials[1:3]


@pytest.mark.parametrize(("status", "then"), [("finished", None), ("failed", 1)])
def test_only_if_none_comes_to_its_end_does_another(status, then):
    """Its end may come before all its steps: a run can stop early."""
    halving = Halving(2)
    for i in range(2):
        halving.tell(i, 3, float(i))
    assert halving.chosen() == 0
    end(halving, 0, status)
    assert halving.chosen() == then


@pytest.mark.parametrize("mode", ["min", "max"])
def test_what_has_diverged_never_goes_on(mode):
    halving = Halving(9, mode=mode)
    assert [halving.tell(i, 3, math.nan) for i in range(9)] == [PAUSE] * 9
    assert halving.chosen() is None
    assert halving.controller.stopped == halving.trials


def test_a_trial_that_had_ended_before_it_paused_goes_on_to_tell_so():
    halving = Halving(3)
    assert [halving.tell(i, 3, float(-i)) for i in range(2)] == [PAUSE] * 2
    halving.scheduler.release(0)
    assert halving.chosen() == 0
    assert halving.tell(0, 9, 0.0) == PAUSE
    assert halving.chosen() is None


def test_a_trial_that_has_failed_while_it_paused_does_not_go_on():
    halving = Halving(3)
    halving.tell(0, 3, 0.0)
    halving.scheduler.give_up(0)
    assert [halving.tell(i, 3, float(i)) for i in (1, 2)] == [PAUSE] * 2
    assert halving.chosen() == 1


class Source:
    """Suggests anything, and does not listen."""

    def suggest(self, number):
        return {}

    def observe(self, number, params, value):
        pass


def simulated(ends, *, places, at_once, seed, grace):
    """The steps of trials whose values rise to `ends`, as Tune treats them; in `places`, or `at_once` by themselves."""
    chance = random.Random(seed)
    max_steps = 9 * grace
    made = scheduler("asha", mode="max", grace_steps=grace, max_steps=max_steps, total=len(ends), at_once=at_once)
    search = SweepSearch(
        Source(), [], mode="max", samples=len(ends), over=lambda: False, waits=made.waits, may_begin=made.may_begin
    )
    controller = FakeController()
    controller.stop_trial = lambda trial: finish(trial, None)
    steps = [0] * len(ends)

    def finish(trial, last):
        trial.status = Trial.TERMINATED
        if last is None:
            made.on_trial_remove(controller, trial)
        else:
            made.on_trial_complete(controller, trial, last)
        search.on_trial_complete(trial.trial_id, last)

    while True:
        if not any(trial.status == Trial.PENDING for trial in controller.trials):
            config = search.suggest(f"id{len(controller.trials)}")
            if config == search.FINISHED:
                assert all(trial.is_finished() for trial in controller.trials)
                return steps
            if config is not None:
                controller.trials = (*controller.trials, FakeTrial(config["trial"], Trial.PENDING))
        chosen = made.choose_trial_to_run(controller)
        running = [trial for trial in controller.trials if trial.status == Trial.RUNNING]
        assert at_once is None or len(running) <= at_once
        if chosen is not None:
            chosen.status = Trial.RUNNING if len(running) < places else Trial.PENDING
        if not running:
            continue
        trial = chance.choice(running)
        number = trial.config["trial"]
        steps[number] += 1
        told = result(steps[number], ends[number] * (1 - math.exp(-steps[number] / grace)), "max")
        decision = made.on_trial_result(controller, trial, told)
        search.on_trial_result(trial.trial_id, told)
        if decision == PAUSE:
            trial.status = Trial.PAUSED
        elif steps[number] == max_steps:
            finish(trial, {**told, "end": ["finished", max_steps, ""]})


@pytest.mark.parametrize(("places", "at_once"), [(1, None), (2, None), (5, None), (99, 1), (99, 3)])
def test_the_best_is_found_with_two_fifths_of_the_steps(places, at_once):
    shares = []
    for seed in range(20):
        chance = random.Random(seed)
        ends = [chance.random() for _ in range(16)]
        steps = simulated(ends, places=places, at_once=at_once, seed=seed, grace=10)
        assert steps[ends.index(max(ends))] == 90
        shares.append(sum(steps) / (16 * 90))
    assert sorted(shares)[10] <= 0.30
    assert sorted(shares)[18] <= 0.40


def test_while_there_are_more_to_come_nobody_is_stopped():
    halving = Halving(2, total=3)
    assert [halving.tell(0, 3, 1.0), halving.tell(1, 3, 2.0)] == [PAUSE, PAUSE]
    assert halving.chosen() is None
    assert halving.controller.stopped == []


def test_a_sweep_that_is_interrupted_lets_those_wait_who_wait():
    halving = Halving(1, over=lambda: True)
    assert halving.tell(0, 3, 1.0) == PAUSE
    assert halving.chosen() is None
    assert halving.controller.stopped == []


def known_trial(number, status, *values):
    history = tuple((3 * (i + 1), value) for i, value in enumerate(values))
    return record.Trial(number=number, params={}, status=status, step=3 * len(values), history=history)


def test_asha_goes_on_where_it_was():
    """What is told again changes nothing: who was under way is, and who waited waits."""
    known = [
        known_trial(0, "paused", 5.0),
        known_trial(1, "interrupted", 4.5, 4.5),
        known_trial(2, "paused", 2.0, 2.0, 2.0),
        known_trial(3, "stopped", 6.0),
        known_trial(4, "pending"),
        known_trial(5, "running", 5.5),  # it was about to pause
        known_trial(6, "paused", 6.0, 4.0),  # it had trained on until it heard
        known_trial(7, "pending", 7.0, 7.0),  # it had failed, and is tried again
    ]
    halving = Halving(9, known=known)
    decisions = {
        trial.number: [halving.tell(trial.number, step, value) for step, value in trial.history] for trial in known
    }
    assert decisions == {
        0: [PAUSE],
        1: [CONTINUE, CONTINUE],
        2: [CONTINUE, CONTINUE, PAUSE],
        3: [PAUSE],
        4: [],
        5: [PAUSE],
        6: [PAUSE, PAUSE],
        7: [CONTINUE, CONTINUE],
    }
    assert [halving.tell(4, 3, 5.2), halving.tell(8, 3, 2.5)] == [PAUSE, CONTINUE]


def test_asha_leaves_those_alone_that_have_ended():
    halving = Halving(1, known=[known_trial(0, "stopped", 5.0)])
    halving.trials[0].config["end"] = ["stopped", 3, ""]
    assert halving.tell(0, 3, 5.0) == CONTINUE


# -- population based training ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_population_is_made_of_the_request(mode):
    asked: list[Exploit] = []
    made = scheduler("pbt", lambda exploit: asked.append(exploit) or True, mode=mode, grace_steps=5)
    assert type(scheduler("pbt")) is PopulationScheduler
    trials = [FakeTrial(i, params={"learner.learning_rate": 0.5}) for i in range(2)]
    for trial in trials:
        made.on_trial_add(FakeController(*trials), trial)
    for step in (4, 5):
        for trial, value in zip(trials, (1.0, 2.0) if mode == "min" else (2.0, 1.0), strict=True):
            made.on_trial_result(FakeController(*trials), trial, {"step": step, "value": value})
        assert len(asked) == (step == 5)
    assert asked[0][:2] == (1, 0)
    assert asked[0].params.keys() == {"learner.learning_rate"}


def test_the_seed_of_a_request_is_that_of_its_population():
    def explored(seed):
        asked: list[Exploit] = []
        made = scheduler("pbt", lambda exploit: asked.append(exploit) or True, grace_steps=5, seed=seed)
        trials = [FakeTrial(i, params={"learner.learning_rate": 0.5}) for i in range(2)]
        for trial in trials:
            made.on_trial_add(FakeController(*trials), trial)
        for step in range(5, 50, 5):
            for trial in trials:
                made.on_trial_result(
                    FakeController(*trials), trial, {"step": step, "value": 100.0 * trial.config["trial"]}
                )
        return asked

    assert explored(1) == explored(1) != explored(2)
    assert len(explored(1)) > 3


class Group:
    """A scheduler, its trials, and what it has asked for."""

    def __init__(self, *statuses, works=True, room=None):
        """room: by default that of those that run."""
        room = statuses.count(Trial.RUNNING) if room is None else room
        population = Population({"rate": Uniform(0.1, 1.0)}, mode="max", interval=10, seed=0)
        self.asked: list[Exploit] = []
        self.scheduler = PopulationScheduler(population, lambda exploit: self.asked.append(exploit) or works, room)
        self.trials: list[Any] = [FakeTrial(i, status, params={"rate": 0.5}) for i, status in enumerate(statuses)]
        self.controller = FakeController(*self.trials)
        for trial in self.trials:
            self.scheduler.on_trial_add(self.controller, trial)

    def tell(self, number, step, value):
        return self.scheduler.on_trial_result(self.controller, self.trials[number], result(step, value, "max"))


def test_before_it_is_due_a_trial_goes_on_whoever_waits():
    group = Group(Trial.RUNNING, Trial.PENDING)
    assert [group.tell(0, step, 1.0) for step in (3, 6, 9)] == [CONTINUE] * 3
    assert [group.tell(0, step, 1.0) for step in (12, 15, 21, 22)] == [PAUSE, CONTINUE, CONTINUE, PAUSE]


@pytest.mark.parametrize(
    ("other", "decision"),
    [
        (Trial.PENDING, PAUSE),
        (Trial.PAUSED, PAUSE),
        (Trial.RUNNING, CONTINUE),
        (Trial.TERMINATED, CONTINUE),
        (Trial.ERROR, CONTINUE),
    ],
)
def test_a_trial_that_is_due_makes_room_for_who_waits(other, decision):
    assert Group(Trial.RUNNING, other).tell(0, 10, 1.0) == decision


def test_where_there_is_room_nobody_pauses():
    assert Group(Trial.RUNNING, Trial.PENDING, room=2).tell(0, 10, 1.0) == CONTINUE
    assert Group(Trial.RUNNING, Trial.PAUSED, Trial.RUNNING, room=3).tell(0, 10, 1.0) == CONTINUE


def test_a_trial_does_not_wait_for_itself():
    assert Group(Trial.PAUSED, Trial.RUNNING).tell(0, 10, 1.0) == CONTINUE


def test_what_is_decided_is_done():
    group = Group(Trial.RUNNING, Trial.RUNNING)
    assert group.tell(0, 10, 1.0) == CONTINUE
    assert group.asked == []
    assert group.tell(1, 10, 0.5) == CONTINUE
    assert [(exploit.taker, exploit.donor) for exploit in group.asked] == [(1, 0)]
    # It stands as the other does now: the same value is no longer better.
    assert group.tell(0, 20, 1.0) == CONTINUE
    assert len(group.asked) == 1


def test_what_could_not_be_done_is_not_taken_note_of():
    group = Group(Trial.RUNNING, Trial.RUNNING, works=False)
    group.tell(0, 10, 1.0)
    group.tell(1, 10, 0.5)
    assert len(group.asked) == 1
    # The second is still worth 0.5: the first, at 0.75, leads.
    assert group.tell(0, 20, 0.75) == CONTINUE
    assert len(group.asked) == 1
    group = Group(Trial.RUNNING, Trial.RUNNING, works=True)
    group.tell(0, 10, 1.0)
    group.tell(1, 10, 0.5)
    group.tell(0, 20, 0.75)
    assert [exploit.taker for exploit in group.asked] == [1, 0]


def test_who_takes_pauses_too_if_others_wait():
    group = Group(Trial.RUNNING, Trial.RUNNING, Trial.PENDING)
    assert group.tell(0, 10, 1.0) == PAUSE
    assert group.tell(1, 10, 0.5) == PAUSE
    assert len(group.asked) == 1


def test_new_trials_run_first_then_who_is_least_far():
    group = Group()

    def chosen(*trials):
        return group.scheduler.choose_trial_to_run(FakeController(*trials))

    ahead, behind = FakeTrial(0, Trial.PAUSED, step=30), FakeTrial(1, Trial.PAUSED, step=20)
    new, running, ended = FakeTrial(2, Trial.PENDING), FakeTrial(3, Trial.RUNNING), FakeTrial(4, Trial.TERMINATED)
    newer = FakeTrial(5, Trial.PENDING)
    assert cast(Any, chosen(running, ahead, behind, ended, new, newer)) is new
    assert cast(Any, chosen(running, ahead, behind, ended)) is behind
    assert cast(Any, chosen(ended, ahead)) is ahead
    assert chosen(running, ended) is chosen() is None
