"""The Trainer: takes optimizer steps, publishes snapshots, writes checkpoints and metrics. A plain class."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from raylingvo import config
from raylingvo.actors.outbox import Announcement, Outbox, Snapshot
from raylingvo.actors.profiling import DoneSteps
from raylingvo.actors.reporter import Reporter, StepClock
from raylingvo.actors.variant import settings_of
from raylingvo.actors.within import Adopted, Command
from raylingvo.data.pipeline import TrainInput
from raylingvo.errors import RequestError, TrainingFailed
from raylingvo.experiment import Experiment
from raylingvo.metrics.means import to_means
from raylingvo.monitor import exported
from raylingvo.monitor.atomic import write_atomically
from raylingvo.parallel.hosts import ALONE, Host, all_say, told_by_leader
from raylingvo.parallel.layout import make_layout
from raylingvo.training import checkpoints
from raylingvo.training.average import exchanged
from raylingvo.training.flops import device_peak
from raylingvo.training.host_copy import HostCopier, Lease, encode, nbytes
from raylingvo.training.host_state import HostState
from raylingvo.training.pieces import Assembled
from raylingvo.training.program import END, GO, PAUSE, Outcome, TrainProgram, Wish
from raylingvo.training.state import Model, TrainState, init_state, learning_rates, variable_lines
from raylingvo.training.step import step_settings
from raylingvo.training.warm_start import warm_started

# What a state is saved with.
_POSITION = {"input", "reports", "rollbacks", "skipped_updates"}
# In place of the step of the last snapshot or checkpoint: what there is of this step has another state.
_OUTDATED = -1


class Adoption(NamedTuple):
    """The train state of another run, and settings to go on with."""

    snapshots: list[Snapshot]  # what each host of the other run gave
    command: Command


class Publisher(Protocol):
    """What the Trainer needs of the SnapshotStore."""

    def announce(self, announcement: Announcement) -> None:
        """A snapshot is in the Trainer's outbox, and can be pulled. Must not wait."""
        ...

    def newest_state(self) -> tuple[int, list[Snapshot]] | None:
        """(step, what each host gave of it) of the newest whole state that was published, or None."""
        ...


class Trainer:
    """Runs the train loop of an experiment in `logdir`, from its newest state if there is one.

    `run` is for one thread. Others may call `stop`, `scale_rate`, `status` and the outbox meanwhile, and wait for what
    is `done`.
    """

    def __init__(
        self,
        experiment: Experiment,
        logdir: Path,
        store: Publisher,
        outbox: Outbox | None = None,
        host: Host = ALONE,
    ):
        """outbox: one that may hold snapshots of a Trainer that has died. host: which of those that train together."""
        self._experiment = experiment
        self._host = host
        self._settings = experiment.train
        self._logdir = logdir
        self._store = store
        self._asked = Wish()  # of this host
        self._agreed = Wish()  # of all hosts, if there are several: for the end of the step that has been taken
        self._wished_checkpoint = 0  # the step after which host 0 has wished for one; agreed on, once that is taken
        # None: none was asked for since this Trainer was made; the state that it goes on from may have a scaled rate.
        self._rate_factor: float | None = None
        self._adoption: Adoption | None = None  # to be done between two steps
        self._adopted: list[Adopted] | None = None  # in their order; None: not known yet
        self._copier = HostCopier()
        self.outbox = Outbox() if outbox is None else outbox
        self.done = DoneSteps()
        self._clock = StepClock()
        self._phase, self._step, self._rollbacks = "starting", 0, 0
        self._metrics: dict[str, float] = {}  # of the last report
        self._throughput: dict[str, float] = {}  # what is exported with it
        self._skipped_updates = 0
        self._events: list[str] = []

    def stop(self, *, resumable: bool) -> None:
        """Asks `run` to finish its step, publish it, write a checkpoint and return.

        resumable: the run will be continued later; otherwise this is its end.
        """
        self._asked = self._asked._replace(stop=PAUSE if resumable else END)

    def scale_rate(self, factor: float) -> None:
        """From the next step on, learning rates are the experiment's times this, whatever was asked for before."""
        # Rounded as hosts tell it each other: on one or several, a run has the same rates.
        self._asked = self._asked._replace(rate_factor=float(np.float32(factor)))

    def adopt(self, adoption: Adoption) -> None:
        """Before the next step, takes weights, averages and optimizer from another run, and sets other values.

        The same steps and batches follow. What is saved from then on knows the values. With the next snapshot a
        checkpoint is due: a run that is killed should not go on from weights other than those that were evaluated. For
        one host.
        """
        self._adoption = adoption

    def status(self, seen: int = 0) -> dict[str, Any]:
        """Where training stands, and what happened: (`seen`, the events after the first `seen`)."""
        return {
            "state": self._phase,
            "step": self._step,
            "max_steps": self._settings.max_steps,
            "steps_per_second": None,
            "examples_per_second": None,
            "input_wait_fraction": None,
            **self._clock.rates(self._step),
            "loss": self._metrics.get("loss"),
            "bad_records": int(self._metrics.get("num_bad_records", 0)),
            "skipped_updates": self._skipped_updates,
            "rollbacks": self._rollbacks,
            "first_step_time": self._clock.first_step_time,
            "adopted": self._adopted,
            "events": (seen, self._events[seen:]),
        }

    def exported(self) -> list[exported.Sample]:
        """What Prometheus is told, again and again; nothing before training begins."""
        if self._phase not in ("training", "stopping"):
            return []
        return exported.trainer_samples(self._settings.dataset, self.status(), self._metrics, self._throughput)

    def run(self) -> dict[str, Any]:
        """Trains until max_steps or `stop`.

        Returns {"step", "steps_per_second", "examples_per_second", "resumes": whether the run is to go on later}.

        Raises TrainingFailed, and what the task, the data and the disk raise.
        """
        with contextlib.ExitStack() as resources:
            resources.callback(self.done.end)
            self._start(resources)
            previous = None
            while self._step < self._settings.max_steps and self._decided.stop == GO:
                batch = self._next_batch()
                self._scale_rate()
                if self._adoption is not None:
                    self._adopt(previous)
                # What is wished now is agreed when the next step has been dispatched: it is for the end of that one.
                self._state, outcome = self._program(self._state, batch, self._wish(self._step + 2))
                self._step += 1
                self._clock.took(len(batch["weight"]) * self._layout.shard.count)
                if self._clock.first_step_time is None:
                    self._finish_first_step()
                # The device works on this step while the host waits for the one before: never more than one ahead.
                rolled_back = self._check_finite(previous)
                self.done.reach(self._step - 1)
                if previous is not None:
                    self._agreed = previous.agreed()
                previous = None if rolled_back else outcome
                # At the end too: whether the last checkpoint is of this step or of `_finish`, it has the same totals.
                if self._step % self._settings.report_every_steps == 0 or self._step == self._settings.max_steps:
                    self._report()
                if self._decided.checkpoint or self._snapshot_due(self._step):
                    self._publish()
                self._agreed = self._agreed._replace(checkpoint=False)  # done, and not again if nothing new is agreed
            self._check_finite(previous)
            self.done.reach(self._step)
            self.done.end()
            if self._adoption is not None and self._decided.stop == PAUSE:
                self._adopt(None)  # what is asked for after it may be that the run pauses
            return self._finish(resumable=self._decided.stop == PAUSE)

    @property
    def _decided(self) -> Wish:
        """What is to happen after the step that has been taken."""
        return self._wish(self._step) if self._host.count == 1 else self._agreed

    def _wish(self, step: int) -> Wish:
        """What this host wants to happen after `step`. When a checkpoint is due is for host 0 to say."""
        # Asked at every step, since it raises the error of a save that failed. While one is being written the next is
        # late, and the step does not wait.
        busy = self._writer.busy()
        in_flight = self._wished_checkpoint > self._step
        due = self._host.leads and not busy and not in_flight and self._checkpoint_due(step)
        if due and self._host.count > 1:
            self._wished_checkpoint = step
        return self._asked._replace(checkpoint=due)

    def _start(self, resources: contextlib.ExitStack) -> None:
        settings = self._settings
        resources.callback(self._copier.close)
        data = self._experiment.datasets[settings.dataset]
        task = self._experiment.task
        self._layout = make_layout(self._experiment.resources.mesh, lambda: Model(task).logical_axes)
        batches = data.train_batches(settings.batch_size, settings.seed, self._layout.shard)
        self._input = resources.enter_context(contextlib.closing(TrainInput(batches)))

        self._phase = "compiling"
        self._samples = list(batches.samples())
        state = self._initial_state()
        self._abstract = jax.eval_shape(lambda: state)
        # What is wrong with a checkpoint or a warm start is told before the long wait for the compiler.
        if self._host.leads:
            checkpoints.clean(self._logdir)
        restored = next(self._saved_states(), None)
        reports, published = [], False
        if restored is not None:
            state, position, published = restored
            self._input.restore(position["input"])
            reports = position["reports"]
            self._rollbacks, self._skipped_updates = position["rollbacks"], position["skipped_updates"]
            adopted = position.get("adopted", [])
            self._set(settings_of(adopted))
        else:
            state, adopted = self._warm_started(state), []
        self._adopted = adopted
        self._program = TrainProgram(self._experiment, self._layout, self._host)
        # Every shape before the clock starts: one that came later would be compiled within a lap.
        self._lowered = self._program.compile(state, self._samples)
        self._peak_flops = device_peak()
        self._state = state
        self._step = int(state.step)
        # What the store or the disk does not have of this step is given to it at the end, if there is no further step.
        self._last_snapshot = self._step if published else 0
        self._last_checkpoint = max(self._checkpoint_steps(), default=0)
        if restored is not None:
            self._happened(f"training goes on from step {self._step}")
        self._last_checkpoint_time = time.monotonic()
        self._num_snapshots = 0
        self._last_report = reports[-1]["step"] if reports else 0
        self._metrics = dict(reports[-1]["metrics"]) if reports else {}
        self._reporter = None
        if self._host.leads:
            reporter = Reporter(self._logdir / "train", last_step=self._step, reports=reports)
            self._reporter = resources.enter_context(contextlib.closing(reporter))
        writer = checkpoints.CheckpointWriter(self._logdir, settings.checkpoints, self._happened, self._host)
        self._writer = resources.enter_context(contextlib.closing(writer))
        # For the end of the first step, and for what was asked for before it.
        self._agreed = Wish.unpack(told_by_leader(self._host, lambda: self._wish(self._step + 1).pack().tolist()))
        self._phase = "training"

    def _initial_state(self) -> TrainState:
        return init_state(self._experiment, *self._samples, layout=self._layout)

    def _warm_started(self, state: TrainState) -> TrainState:
        """An initial state, with what `train.warm_start` takes from another run: from the same state each time."""
        warm_start = self._settings.warm_start
        return state if warm_start is None else warm_started(state, warm_start, self._layout)

    def _scale_rate(self) -> None:
        factor = self._decided.rate_factor
        if factor is None or factor == self._rate_factor:
            return
        self._rate_factor = factor
        rates = jax.device_get(learning_rates(self._experiment, factor))
        if rates != jax.device_get(self._state.learning_rate):
            self._happened(f"learning rate x {factor:g} from step {self._step + 1} on")
            self._state = self._state._replace(learning_rate=self._layout.put(rates))

    def _adopt(self, previous: Outcome | None) -> None:
        """Weights, averages and optimizer come from the other run; step, input and random numbers go on."""
        adoption, self._adoption = self._adoption, None
        assert adoption is not None
        start = time.monotonic()
        other, *_ = self._published_state(adoption.snapshots)
        if previous is not None:
            jax.block_until_ready(previous.nonfinite_in_a_row)  # the state that is given up is still in use
        command = adoption.command
        if self._set(dict(command.params)):
            self._program = TrainProgram(self._experiment, self._layout, self._host)
            self._program.compile(self._state, self._samples)
        factor = 1.0 if self._rate_factor is None else self._rate_factor
        self._state = self._state._replace(
            weights=other.weights,
            opt_state=other.opt_state,
            average=other.average,
            learning_rate=self._layout.put(jax.device_get(learning_rates(self._experiment, factor))),
            nonfinite_in_a_row=self._layout.put(np.zeros((), np.int32)),
        )
        jax.block_until_ready(self._state)
        known = Adopted(step=self._step, params=dict(command.params), origin=dict(command.origin))
        self._adopted = [*(self._adopted or []), known]
        self._last_snapshot = self._last_checkpoint = _OUTDATED
        values = ", ".join(f"{key}={value}" for key, value in command.params.items())
        took, after = time.monotonic() - start, time.time() - command.decided
        self._happened(
            f"adopted another run's state after step {self._step} in {took:.3f} s, "
            f"{after:.3f} s after the decision: {values}"
        )

    def _set(self, params: dict[str, Any]) -> bool:
        """Sets other values in the experiment; whether the train step is another one with them."""
        before = self._experiment
        self._experiment = config.override(before, params)
        return step_settings(before) != step_settings(self._experiment)

    def _next_batch(self) -> Any:
        start = time.monotonic()
        batch = next(self._input)
        self._clock.waited(time.monotonic() - start)
        return batch

    def _finish_first_step(self) -> None:
        jax.block_until_ready(self._state.step)
        self._clock.first_step(self._step)
        if self._host.leads:
            control, axes = self._logdir / "control", Model(self._experiment.task).logical_axes
            lines = variable_lines(self._state.weights, axes)
            write_atomically(control / "model_analysis.txt", "\n".join(lines) + "\n")
            write_atomically(control / "train_step.stablehlo.txt", self._lowered.as_text())
        del self._lowered

    def _check_finite(self, outcome: Outcome | None) -> bool:
        """Waits for the step that had this; rolls back, and says so, if it was one non-finite step too many."""
        if outcome is None:
            return False
        count = int(outcome.nonfinite_in_a_row)
        self._skipped_updates += count > 0
        if count < self._settings.max_nonfinite_in_a_row:
            return False
        where = f"{count} updates in a row were not finite at step {self._step}"
        if self._rollbacks >= self._settings.max_rollbacks:
            raise TrainingFailed(f"{where}, after {self._rollbacks} rollbacks: training diverges")
        self._rollbacks += 1
        self._writer.wait()  # it renames and deletes what is about to be read
        jax.block_until_ready(self._state)  # hosts that agree on what to read must have nothing else under way
        # A run that was interrupted in the middle of a streak has left a checkpoint of it: none to go back to.
        states = (state for state, *_ in self._saved_states() if not state.nonfinite_in_a_row)
        try:
            good = next(states, None) or self._warm_started(self._initial_state())
        except RequestError as error:  # of the disk, not of the request: it was right when the run started
            raise TrainingFailed(f"{where}, and what to go back to cannot be read: {error}") from error
        # The step after that one may be under way: it belongs to the same streak.
        self._skipped_updates += int(self._state.nonfinite_in_a_row) > count
        # Only the weights and the optimizer go back. Step and input go on: the same batches would fail again.
        self._happened(f"{where}: rolled back to the weights of step {int(good.step)}")
        self._state = self._state._replace(
            weights=good.weights,
            opt_state=good.opt_state,
            average=good.average,
            nonfinite_in_a_row=self._layout.put(np.zeros((), np.int32)),
        )
        return True

    def _report(self) -> None:
        """Records the metrics since the last report, and starts new totals."""
        totals = jax.device_get(self._state.totals)
        self._state = self._state._replace(totals=self._layout.put(jax.tree.map(np.zeros_like, totals)))
        self._metrics = to_means(totals) | self._clock.lap(self._step) | dict(self._input.facts)
        self._throughput = exported.throughput(
            steps=self._step - self._last_report,
            steps_per_second=self._metrics.get("steps_per_second"),
            tokens=float(totals["log_pplx"][1]) if "log_pplx" in totals else None,
            flops=self._program.take_flops(),
            peak=self._peak_flops,
        )
        self._last_report = self._step
        if self._reporter is not None:
            self._reporter.report(self._step, self._metrics)

    def _snapshot_due(self, step: int) -> bool:
        return step % self._settings.snapshots.every_steps == 0

    def _checkpoint_due(self, step: int) -> bool:
        if self._last_checkpoint == _OUTDATED:
            return self._snapshot_due(step)
        policy = self._settings.checkpoints
        every = policy.every_steps
        by_steps = every is not None and step // every > self._last_checkpoint // every
        age = time.monotonic() - self._last_checkpoint_time
        by_seconds = policy.every_seconds is not None and age >= policy.every_seconds
        return by_steps or by_seconds

    def _publish(self, *, last: bool = False) -> None:
        """Offers the state of this step to the store, and to the checkpoint writer if it is time."""
        jax.block_until_ready(self._state)
        end_of_step, start = time.time(), time.monotonic()
        # A state in the middle of a streak of skipped updates is none to go back to.
        good = int(self._state.nonfinite_in_a_row) == 0
        to_checkpoint = self._last_checkpoint != self._step if last else good and self._decided.checkpoint
        to_store = self._last_snapshot != self._step and (last or to_checkpoint or self._snapshot_due(self._step))
        if not (to_store or to_checkpoint):
            return
        with_rest = last or (good and self._num_snapshots % self._settings.snapshots.state_every == 0)

        state = exchanged(self._state)
        copy = HostState(self._copier, self._host, self._layout, state, rest=with_rest, to_checkpoint=to_checkpoint)
        lease = copy.lease(users=to_store + to_checkpoint)
        position = {
            "input": self._input.state(),
            "reports": [] if self._reporter is None else self._reporter.unwritten(),
            "rollbacks": self._rollbacks,
            "skipped_updates": self._skipped_updates,
            **({"adopted": self._adopted} if self._adopted else {}),
        }
        if to_store:
            self._offer(copy, position if with_rest else None, end_of_step, lease)
        if to_checkpoint:
            self._writer.save(self._step, copy.checkpointed(), position, on_saved=lease.release)
            self._last_checkpoint, self._last_checkpoint_time = self._step, time.monotonic()
        self._clock.copied(time.monotonic() - start)

    def _offer(self, copy: HostState, position: dict[str, Any] | None, end_of_step: float, lease: Lease) -> None:
        """To the store: the weights and, with a position, the rest."""
        weights, places = copy.offered(0)
        rest, rest_places = (None, None) if position is None else copy.offered(1)
        snapshot = Snapshot(
            encode(weights),
            None if rest is None else encode(rest),
            position,
            None if places is None else (places, rest_places),
            settings_of(self._adopted or ()),
        )
        rest_nbytes = None if rest is None else nbytes(rest)
        announcement = Announcement(self._step, end_of_step, nbytes(weights), rest_nbytes)
        self.outbox.put(announcement, snapshot, lease)
        self._store.announce(announcement)
        self._last_snapshot = self._step
        self._num_snapshots += 1

    def _finish(self, *, resumable: bool) -> dict[str, Any]:
        """The last report, snapshot and checkpoint."""
        self._phase = "stopping"
        overall = self._clock.overall(self._step)
        # A run that will resume reports these steps then, as if it had never stopped.
        resumes = resumable and self._step < self._settings.max_steps
        if not resumes and self._last_report != self._step:
            self._report()
        self._writer.wait()
        if self._last_checkpoint != self._step or self._last_snapshot != self._step:
            self._publish(last=True)
            self._writer.wait()
        self._phase = "finished"
        return {"step": self._step, **overall, "resumes": resumes}

    def _saved_states(self) -> Iterator[tuple[TrainState, dict[str, Any], bool]]:
        """Whole states of the store and of checkpoints, newest first: (state on the device, position, of the store).

        Damaged checkpoints that are newer than one of these are set aside. Raises RequestError instead of ending if a
        checkpoint was damaged: to begin anew in its place is not for us to decide.
        """
        published = self._newest_state()
        damaged: dict[int, str] = {}  # step -> what is wrong; not yet set aside
        found = False
        for step in reversed(self._checkpoint_steps()):
            if published is not None and published[0] >= step:
                self._set_aside(damaged, f"the snapshot of step {published[0]}")
                found = True
                yield self._published_state(published[1])
                published = None
            if reason := told_by_leader(self._host, lambda step=step: checkpoints.damage(self._logdir, step)):
                damaged[step] = reason
                continue
            state, position = checkpoints.restore_on(self._layout, self._host, self._logdir, step, self._abstract)
            if missing := _POSITION - position.keys():
                raise RequestError(
                    f"checkpoint {step} in {self._logdir} was written by another version of raylingvo: "
                    f"it lacks {', '.join(sorted(missing))}"
                )
            self._set_aside(damaged, f"checkpoint {step}")
            found = True
            yield exchanged(state), position, False
        if published is not None:
            self._set_aside(damaged, f"the snapshot of step {published[0]}")
            yield self._published_state(published[1])
        elif damaged or not found:
            checkpoints.refuse_damaged(self._logdir, damaged)

    def _newest_state(self) -> tuple[int, list[Snapshot]] | None:
        """The same for all hosts: one that asks while the store hears of a newer one asks again."""
        while True:
            newest = self._store.newest_state()
            if len({*all_say(self._host, -1 if newest is None else newest[0])}) == 1:
                return newest

    def _checkpoint_steps(self) -> list[int]:
        return told_by_leader(self._host, lambda: checkpoints.steps(self._logdir))

    def _set_aside(self, damaged: dict[int, str], instead: str) -> None:
        for step, reason in damaged.items():
            name = told_by_leader(self._host, lambda step=step: checkpoints.set_aside(self._logdir, step).name)
            self._happened(f"checkpoint {step} is damaged ({reason}), now {name}: {instead} is taken instead")
        damaged.clear()

    def _published_state(self, snapshots: list[Snapshot]) -> tuple[TrainState, dict[str, Any], bool]:
        places = [snapshot.places or (None, None) for snapshot in snapshots]
        weights = Assembled((s.weights, p) for s, (p, _) in zip(snapshots, places, strict=True))
        rest = Assembled((s.rest or [], p) for s, (_, p) in zip(snapshots, places, strict=True))
        others = self._layout.put_state(rest.read, self._abstract._replace(weights=None))
        state = others._replace(weights=self._layout.put_state(weights.read, self._abstract.weights))
        assert snapshots[0].position is not None  # it is a *whole* state
        return exchanged(state), snapshots[0].position, True

    def _happened(self, text: str) -> None:
        self._events.append(text)
