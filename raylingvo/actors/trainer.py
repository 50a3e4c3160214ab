"""The Trainer: takes optimizer steps, publishes snapshots, writes checkpoints and metrics. A plain class."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import jax

from raylingvo.actors.outbox import Announcement, Outbox, Snapshot
from raylingvo.actors.reporter import Reporter, StepClock
from raylingvo.data.pipeline import TrainInput
from raylingvo.errors import RequestError, TrainingFailed
from raylingvo.experiment import Experiment
from raylingvo.metrics.means import to_means
from raylingvo.monitor.atomic import write_atomically
from raylingvo.training import checkpoints
from raylingvo.training.average import exchanged
from raylingvo.training.host_copy import HostCopier, decode, encode, nbytes
from raylingvo.training.shapes import StepForShapes
from raylingvo.training.state import TrainState, init_state, learning_rates, variable_lines
from raylingvo.training.step import make_train_step
from raylingvo.training.warm_start import warm_started

# What a state is saved with.
_POSITION = {"input", "reports", "rollbacks", "skipped_updates"}


class Publisher(Protocol):
    """What the Trainer needs of the SnapshotStore."""

    def announce(self, announcement: Announcement) -> None:
        """A snapshot is in the Trainer's outbox, and can be pulled. Must not wait."""
        ...

    def newest_state(self) -> tuple[int, Snapshot] | None:
        """(step, snapshot) of the newest whole state that was published, or None."""
        ...


class Trainer:
    """Runs the train loop of an experiment in `logdir`, from its newest state if there is one.

    `run` is for one thread. Others may call `stop`, `scale_rate`, `status` and the outbox meanwhile.
    """

    def __init__(self, experiment: Experiment, logdir: Path, store: Publisher, outbox: Outbox | None = None):
        """outbox: one that may hold snapshots of a Trainer that has died."""
        self._experiment = experiment
        self._settings = experiment.train
        self._logdir = logdir
        self._store = store
        self._stopping = False
        self._resumable = False
        # None: none was asked for since this Trainer was made; the state that it goes on from may have a scaled rate.
        self._rate_factor: float | None = None
        self._asked_rate_factor: float | None = None
        self._copier = HostCopier()
        self.outbox = Outbox() if outbox is None else outbox
        self._clock = StepClock()
        self._phase, self._step, self._rollbacks = "starting", 0, 0
        self._metrics: dict[str, float] = {}  # of the last report
        self._skipped_updates = 0
        self._events: list[str] = []

    def stop(self, *, resumable: bool) -> None:
        """Asks `run` to finish its step, publish it, write a checkpoint and return.

        resumable: the run will be continued later; otherwise this is its end.
        """
        self._resumable = resumable
        self._stopping = True

    def scale_rate(self, factor: float) -> None:
        """From the next step on, learning rates are the experiment's times this, whatever was asked for before."""
        self._asked_rate_factor = factor

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
            "events": (seen, self._events[seen:]),
        }

    def run(self) -> dict[str, Any]:
        """Trains until max_steps or `stop`; returns {"step", "steps_per_second", "examples_per_second"}.

        Raises TrainingFailed, and what the task, the data and the disk raise.
        """
        with contextlib.ExitStack() as resources:
            self._start(resources)
            previous = None
            while self._step < self._settings.max_steps and not self._stopping:
                batch = self._next_batch()
                self._scale_rate()
                self._state, nonfinite_in_a_row = self._train_step(self._state, batch)
                self._step += 1
                self._clock.took(len(batch["weight"]))
                if self._clock.first_step_time is None:
                    self._finish_first_step()
                # The device works on this step while the host waits for the one before: never more than one ahead.
                rolled_back = self._check_finite(previous)
                previous = None if rolled_back else nonfinite_in_a_row
                if self._step % self._settings.report_every_steps == 0:
                    self._report()
                if self._checkpoint_due() or self._snapshot_due():
                    self._publish()
            self._check_finite(previous)
            return self._finish()

    def _start(self, resources: contextlib.ExitStack) -> None:
        settings = self._settings
        resources.callback(self._copier.close)
        data = self._experiment.datasets[settings.dataset]
        batches = data.train_batches(settings.batch_size, settings.seed)
        self._input = resources.enter_context(contextlib.closing(TrainInput(batches)))

        self._phase = "compiling"
        self._samples = list(batches.samples())
        state = init_state(self._experiment, *self._samples)
        self._abstract = jax.eval_shape(lambda: state)
        # What is wrong with a checkpoint or a warm start is told before the long wait for the compiler.
        checkpoints.clean(self._logdir)
        restored = next(self._saved_states(), None)
        reports, published = [], False
        if restored is not None:
            state, position, published = restored
            self._input.restore(position["input"])
            reports = position["reports"]
            self._rollbacks, self._skipped_updates = position["rollbacks"], position["skipped_updates"]
        else:
            state = self._warm_started(state)
        self._train_step = StepForShapes(make_train_step(self._experiment), donate_argnums=0)
        # Every shape before the clock starts: one that came later would be compiled within a lap.
        self._lowered = self._train_step.compile(state, self._samples)
        self._state = state
        self._step = int(state.step)
        # What the store or the disk does not have of this step is given to it at the end, if there is no further step.
        self._last_snapshot = self._step if published else 0
        self._last_checkpoint = max(checkpoints.steps(self._logdir), default=0)
        if restored is not None:
            self._happened(f"training goes on from step {self._step}")
        self._last_checkpoint_time = time.monotonic()
        self._num_snapshots = 0
        directory = self._logdir / "train"
        reporter = Reporter(directory, last_step=self._step, reports=reports)
        self._reporter = resources.enter_context(contextlib.closing(reporter))
        self._metrics = dict(reports[-1]["metrics"]) if reports else {}
        writer = checkpoints.CheckpointWriter(self._logdir, settings.checkpoints, self._happened)
        self._writer = resources.enter_context(contextlib.closing(writer))
        self._phase = "training"

    def _warm_started(self, state: TrainState) -> TrainState:
        """An initial state, with what `train.warm_start` takes from another run: from the same state each time."""
        warm_start = self._settings.warm_start
        return state if warm_start is None else warm_started(state, warm_start)

    def _scale_rate(self) -> None:
        factor = self._asked_rate_factor
        if factor is None or factor == self._rate_factor:
            return
        self._rate_factor = factor
        rates = learning_rates(self._experiment, factor)
        if jax.device_get(rates) != jax.device_get(self._state.learning_rate):
            self._happened(f"learning rate x {factor:g} from step {self._step + 1} on")
            self._state = self._state._replace(learning_rate=rates)

    def _next_batch(self) -> Any:
        start = time.monotonic()
        batch = next(self._input)
        self._clock.waited(time.monotonic() - start)
        return batch

    def _finish_first_step(self) -> None:
        jax.block_until_ready(self._state.step)
        self._clock.first_step(self._step)
        control = self._logdir / "control"
        write_atomically(control / "model_analysis.txt", "\n".join(variable_lines(self._state.weights)) + "\n")
        write_atomically(control / "train_step.stablehlo.txt", self._lowered.as_text())
        del self._lowered

    def _check_finite(self, nonfinite_in_a_row: jax.Array | None) -> bool:
        """Waits for the step that returned this; rolls back, and says so, if it was one non-finite step too many."""
        if nonfinite_in_a_row is None:
            return False
        count = int(nonfinite_in_a_row)
        self._skipped_updates += count > 0
        if count < self._settings.max_nonfinite_in_a_row:
            return False
        where = f"{count} updates in a row were not finite at step {self._step}"
        if self._rollbacks >= self._settings.max_rollbacks:
            raise TrainingFailed(f"{where}, after {self._rollbacks} rollbacks: training diverges")
        self._rollbacks += 1
        self._writer.wait()  # it renames and deletes what is about to be read
        # A run that was interrupted in the middle of a streak has left a checkpoint of it: none to go back to.
        states = (state for state, *_ in self._saved_states() if not state.nonfinite_in_a_row)
        try:
            good = next(states, None) or self._warm_started(init_state(self._experiment, *self._samples))
        except RequestError as error:  # of the disk, not of the request: it was right when the run started
            raise TrainingFailed(f"{where}, and what to go back to cannot be read: {error}") from error
        # The step after that one may be under way: it belongs to the same streak.
        self._skipped_updates += int(self._state.nonfinite_in_a_row) > count
        # Only the weights and the optimizer go back. Step and input go on: the same batches would fail again.
        self._happened(f"{where}: rolled back to the weights of step {int(good.step)}")
        self._state = self._state._replace(
            weights=jax.device_put(good.weights),
            opt_state=jax.device_put(good.opt_state),
            average=jax.device_put(good.average),
            nonfinite_in_a_row=jax.numpy.zeros((), jax.numpy.int32),
        )
        return True

    def _report(self) -> None:
        """Records the metrics since the last report, and starts new totals."""
        totals = jax.device_get(self._state.totals)
        self._state = self._state._replace(totals=jax.tree.map(jax.numpy.zeros_like, self._state.totals))
        self._metrics = to_means(totals) | self._clock.lap(self._step) | dict(self._input.facts)
        self._reporter.report(self._step, self._metrics)

    def _snapshot_due(self) -> bool:
        return self._step % self._settings.snapshots.every_steps == 0

    def _checkpoint_due(self) -> bool:
        # Asked at every step, since it raises the error of a save that failed. While one is being written the next is
        # late, and the step does not wait.
        if self._writer.busy():
            return False
        policy = self._settings.checkpoints
        every = policy.every_steps
        by_steps = every is not None and self._step // every > self._last_checkpoint // every
        age = time.monotonic() - self._last_checkpoint_time
        by_seconds = policy.every_seconds is not None and age >= policy.every_seconds
        return by_steps or by_seconds

    def _publish(self, *, last: bool = False) -> None:
        """Offers the state of this step to the store, and to the checkpoint writer if it is time."""
        jax.block_until_ready(self._state)
        end_of_step, start = time.time(), time.monotonic()
        # A state in the middle of a streak of skipped updates is none to go back to.
        good = int(self._state.nonfinite_in_a_row) == 0
        to_checkpoint = self._last_checkpoint != self._step if last else good and self._checkpoint_due()
        to_store = self._last_snapshot != self._step and (last or to_checkpoint or self._snapshot_due())
        if not (to_store or to_checkpoint):
            return
        with_rest = last or (good and self._num_snapshots % self._settings.snapshots.state_every == 0)

        state = exchanged(self._state)
        weights = self._copier.copy(state.weights)
        rest = self._copier.copy(state._replace(weights=None)) if with_rest or to_checkpoint else []
        lease = self._copier.lease([*weights, *rest], users=to_store + to_checkpoint)
        position = {
            "input": self._input.state(),
            "reports": self._reporter.unwritten(),
            "rollbacks": self._rollbacks,
            "skipped_updates": self._skipped_updates,
        }
        if to_store:
            snapshot = Snapshot(encode(weights), encode(rest) if with_rest else None, position if with_rest else None)
            rest_nbytes = nbytes(rest) if with_rest else None
            announcement = Announcement(self._step, end_of_step, nbytes(weights), rest_nbytes)
            self.outbox.put(announcement, snapshot, lease)
            self._store.announce(announcement)
            self._last_snapshot = self._step
            self._num_snapshots += 1
        if to_checkpoint:
            self._writer.save(self._step, self._join(weights, rest), position, on_saved=lease.release)
            self._last_checkpoint, self._last_checkpoint_time = self._step, time.monotonic()
        self._clock.copied(time.monotonic() - start)

    def _finish(self) -> dict[str, Any]:
        """The last report, snapshot and checkpoint."""
        self._phase = "stopping"
        overall = self._clock.overall(self._step)
        # A run that will resume reports these steps then, as if it had never stopped.
        resumes = self._resumable and self._step < self._settings.max_steps
        last_report = self._reporter.last["step"] if self._reporter.last else 0
        if not resumes and last_report != self._step:
            self._report()
        self._writer.wait()
        if self._last_checkpoint != self._step or self._last_snapshot != self._step:
            self._publish(last=True)
            self._writer.wait()
        self._phase = "finished"
        return {"step": self._step, **overall}

    def _saved_states(self) -> Iterator[tuple[TrainState, dict[str, Any], bool]]:
        """Whole states of the store and of checkpoints, newest first: (state on the device, position, of the store).

        Damaged checkpoints that are newer than one of these are set aside. Raises RequestError instead of ending if a
        checkpoint was damaged: to begin anew in its place is not for us to decide.
        """
        published = self._store.newest_state()
        damaged: dict[int, str] = {}  # step -> what is wrong; not yet set aside
        found = False
        for step in reversed(checkpoints.steps(self._logdir)):
            if published is not None and published[0] >= step:
                self._set_aside(damaged, f"the snapshot of step {published[0]}")
                found = True
                yield self._published_state(published[1])
                published = None
            try:
                state, position = checkpoints.restore(self._logdir, step, self._abstract)
            except checkpoints.DamagedCheckpoint as error:
                damaged[step] = error.reason
                continue
            if missing := _POSITION - position.keys():
                raise RequestError(
                    f"checkpoint {step} in {self._logdir} was written by another version of raylingvo: "
                    f"it lacks {', '.join(sorted(missing))}"
                )
            self._set_aside(damaged, f"checkpoint {step}")
            found = True
            yield jax.tree.map(jax.numpy.array, exchanged(state)), position, False
        if published is not None:
            self._set_aside(damaged, f"the snapshot of step {published[0]}")
            yield self._published_state(published[1])
        elif damaged or not found:
            checkpoints.refuse_damaged(self._logdir, damaged)

    def _set_aside(self, damaged: dict[int, str], instead: str) -> None:
        for step, reason in damaged.items():
            path = checkpoints.set_aside(self._logdir, step)
            self._happened(f"checkpoint {step} is damaged ({reason}), now {path.name}: {instead} is taken instead")
        damaged.clear()

    def _published_state(self, snapshot: Snapshot) -> tuple[TrainState, dict[str, Any], bool]:
        assert snapshot.rest is not None and snapshot.position is not None  # it is a *whole* state
        state = exchanged(self._join(snapshot.weights, snapshot.rest))
        # A copy: the step donates its input, which must not be memory of the object store.
        return jax.tree.map(jax.numpy.array, state), snapshot.position, True

    def _join(self, weights: list[Any], rest: list[Any]) -> TrainState:
        state = decode(rest, self._abstract._replace(weights=None))
        return state._replace(weights=decode(weights, self._abstract.weights))

    def _happened(self, text: str) -> None:
        self._events.append(text)
