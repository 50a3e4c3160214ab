"""The train step as a compiled program, on one device or over a mesh, on one host or several."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import jax
import numpy as np

from raylingvo.parallel.hosts import Host
from raylingvo.parallel.layout import OneDevice, Spread
from raylingvo.training.shapes import StepForShapes
from raylingvo.training.state import TrainState
from raylingvo.training.step import make_train_step

if TYPE_CHECKING:
    from raylingvo.experiment import Experiment

# Whether training goes on, comes to its end, or is to be resumed later.
Stop = Literal[0, 1, 2]
GO, END, PAUSE = cast(tuple[Stop, Stop, Stop], (0, 1, 2))


class Wish(NamedTuple):
    """What is to happen between two steps."""

    stop: Stop = GO
    checkpoint: bool = False
    rate_factor: float | None = None  # that learning rates are to have from now on; None: what they have

    def pack(self) -> np.ndarray:
        """f32[3], of which the elementwise maximum over hosts is what they want together."""
        return np.array([self.stop, self.checkpoint, -1 if self.rate_factor is None else self.rate_factor], np.float32)

    @classmethod
    def unpack(cls, packed: Sequence[float]) -> Wish:
        stop, checkpoint, rate_factor = packed
        return cls(cast(Stop, int(stop)), checkpoint > 0, rate_factor if rate_factor >= 0 else None)


class Outcome(NamedTuple):
    """What a step tells besides the state. Reading it waits for the step."""

    nonfinite_in_a_row: jax.Array  # i32[]
    wishes: jax.Array | None  # f32[3], None if there is one host

    def agreed(self) -> Wish:
        """What the hosts want together: the strongest of the wishes that they gave with the step."""
        return Wish() if self.wishes is None else Wish.unpack(np.asarray(self.wishes).tolist())


class TrainProgram:
    """`make_train_step`, compiled for a layout.

    Of several hosts none can decide alone what happens after a step: they would no longer compute the same. So what
    each wishes travels with a step, and each reads there what was wished, one step later and without a wait of its own.
    """

    def __init__(self, experiment: Experiment, layout: OneDevice, host: Host):
        self._layout = layout
        self._step = make_train_step(experiment)
        self._several = host.count > 1
        self._compiled: StepForShapes | None = None

    def compile(self, state: TrainState, samples: Iterable[Mapping[str, Any]]) -> Any:
        """For each shape of batch, as `StepForShapes.compile`. Raises RequestError if the layout cannot split one."""
        shardings = None
        if isinstance(self._layout, Spread):
            everywhere = self._layout.everywhere
            shardings = self._layout.shardings(state), everywhere, *([everywhere] if self._several else [])
        function = self._with_wishes if self._several else self._step
        self._compiled = StepForShapes(function, donate_argnums=0, out_shardings=shardings)
        batches = [self._layout.abstract_batch(batch) for batch in samples]
        return self._compiled.compile(state, batches, *self._packed(Wish()))

    def __call__(self, state: TrainState, batch: Mapping[str, np.ndarray], wish: Wish) -> tuple[TrainState, Outcome]:
        """This host's rows of a batch -> the next state, which has the memory of the former, and the outcome."""
        assert self._compiled is not None, "compile() must be called first"
        state, nonfinite, *wishes = self._compiled(state, self._layout.batch(batch), *self._packed(wish))
        return state, Outcome(nonfinite, wishes[0] if wishes else None)

    def take_flops(self) -> float | None:
        """Of a step, on all devices, see StepForShapes."""
        return self._compiled and self._compiled.take_flops()

    def _with_wishes(self, state: TrainState, batch: Any, wishes: jax.Array) -> tuple[TrainState, jax.Array, jax.Array]:
        return *self._step(state, batch), wishes.max(axis=0)

    def _packed(self, wish: Wish) -> list[jax.Array]:
        """f32[D, 3]: a row for each device of all hosts; nothing if there is one host."""
        if not isinstance(self._layout, Spread) or not self._several:  # several hosts have several devices
            return []
        rows = np.tile(wish.pack(), (jax.local_device_count(), 1))
        shape = self._layout.num_devices, rows.shape[1]
        return [jax.make_array_from_process_local_data(self._layout.each_device, rows, shape)]
