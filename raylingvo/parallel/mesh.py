"""How the devices of a Trainer are arranged, and what is split over them: configuration only."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from raylingvo.config import FrozenDict


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mesh:
    """The devices of all hosts of the Trainer as an array with named axes, and which axis splits what.

    axes: name -> size, the slowest first: hosts follow each other along the first. One size may be -1: what is left.
    batch: the axes along which the rows of a batch are split.
    rules: logical axis of a variable (`raylingvo inspect model` lists them) -> mesh axis along which it is split. Of
      two logical axes of one variable that go to the same mesh axis the first is split.
    fsdp: the mesh axis along which every other variable is split too, at its largest axis that can be ("data": fully
      sharded data parallelism, ZeRO-3). None: other variables are whole on every device.
    Optimizer slots and moving averages lie as their variables do. An axis that a mesh axis does not divide evenly is
    not split by it. Raises ValueError if the fields do not fit together.
    """

    axes: Mapping[str, int] = FrozenDict({"data": -1})
    batch: tuple[str, ...] = ("data",)
    rules: Mapping[str, str] = FrozenDict()
    fsdp: str | None = None

    def __post_init__(self) -> None:
        for field in ("axes", "rules"):
            object.__setattr__(self, field, FrozenDict(getattr(self, field)))
        if not self.axes:
            raise ValueError("axes must have at least one (got none)")
        for name, size in self.axes.items():
            if size < 1 and size != -1:
                raise ValueError(f"axes: {name} must be >= 1, or -1 for what is left (got {size})")
        if list(self.axes.values()).count(-1) > 1:
            raise ValueError(f"axes: only one of them may be -1 (got {dict(self.axes)})")
        named = [("batch", name) for name in self.batch] + [(f"rules.{key}", name) for key, name in self.rules.items()]
        named += [("fsdp", self.fsdp)] if self.fsdp is not None else []
        for field, name in named:
            if name not in self.axes:
                raise ValueError(f"{field}: there is no mesh axis {name!r}; axes has {', '.join(self.axes)}")
        if len({*self.batch}) < len(self.batch):
            raise ValueError(f"batch must not name an axis twice (got {self.batch})")

    def shape(self, num_devices: int) -> tuple[int, ...]:
        """The sizes of the axes for so many devices. Raises ValueError if they do not come to that many."""
        known = 1
        for size in self.axes.values():
            known *= 1 if size == -1 else size
        rest, remainder = divmod(num_devices, known)
        has_rest = -1 in self.axes.values()
        if remainder or rest < 1 or (rest > 1 and not has_rest):
            raise ValueError(f"axes {dict(self.axes)} do not come to {num_devices} devices")
        return tuple(rest if size == -1 else size for size in self.axes.values())
