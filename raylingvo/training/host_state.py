"""The state of one step in host memory: what the SnapshotStore is offered of it, and what goes to a checkpoint."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from raylingvo.parallel.hosts import Host
from raylingvo.parallel.layout import OneDevice
from raylingvo.training.host_copy import HostCopier, Lease, Shard, decode
from raylingvo.training.pieces import Assembled, Place
from raylingvo.training.state import TrainState


class HostState:
    """A copy of what this host has to give of a state, taken when it is made; its buffers go back by `lease`."""

    def __init__(
        self, copier: HostCopier, host: Host, layout: OneDevice, state: TrainState, *, rest: bool, to_checkpoint: bool
    ):
        """rest: of the state too, not of the weights alone. to_checkpoint: `checkpointed` will be asked for."""
        self._copier = copier
        self._host = host
        self._layout = layout
        self._state = jax.eval_shape(lambda: state)
        parts = [state.weights, state._replace(weights=None)] if rest or to_checkpoint else [state.weights]
        if layout.spread:
            self._shardings = [x.sharding for x in jax.tree.leaves((state.weights, state._replace(weights=None)))]
            self._shards = [copier.copy_shards(part, self._wanted(to_checkpoint)) for part in parts]
            self._copies = [[shard.array for shard in shards] for shards in self._shards]
        else:
            self._copies = [copier.copy(part) for part in parts]

    def lease(self, users: int) -> Lease:
        return self._copier.lease([x for copies in self._copies for x in copies], users)

    def offered(self, part: int) -> tuple[list[np.ndarray], list[Place] | None]:
        """What the store gets of the weights (part 0) or of the rest (1), and where it lies: as in a `Snapshot`."""
        if not self._layout.spread:
            return self._copies[part], None
        first = [shard for shard in self._shards[part] if shard.first]
        return [shard.array for shard in first], [shard.place for shard in first]

    def checkpointed(self) -> TrainState:
        """The whole state for `CheckpointWriter.save`: NumPy arrays; of several hosts global ones where it is split."""
        weights, rest = self._state.weights, self._state._replace(weights=None)
        if not self._layout.spread:
            leaves = self._copies
        elif self._host.count == 1:
            leaves = [Assembled([self.offered(part)]).leaves() for part in (0, 1)]
        else:
            sharding_of = iter(self._shardings)
            leaves = []
            for part, shards in zip((weights, rest), self._shards, strict=True):
                by_leaf: dict[int, list[Shard]] = {}
                for shard in shards:
                    by_leaf.setdefault(shard.place.leaf, []).append(shard)
                shapes = enumerate(jax.tree.leaves(part))
                leaves.append([self._global(shape, next(sharding_of), by_leaf.get(i, [])) for i, shape in shapes])
            joined = jax.tree.unflatten(jax.tree.structure(rest), leaves[1])
            return joined._replace(weights=jax.tree.unflatten(jax.tree.structure(weights), leaves[0]))
        return decode(leaves[1], rest)._replace(weights=decode(leaves[0], weights))

    def _wanted(self, to_checkpoint: bool) -> Any:
        def wanted(leaf: jax.Array, first: bool) -> bool:
            # A leaf that is whole everywhere is written by host 0; of another, each device's piece is wanted.
            return first or (to_checkpoint and (self._host.leads or not leaf.is_fully_replicated))

        return wanted

    def _global(self, shape: jax.ShapeDtypeStruct, sharding: Any, shards: list[Shard]) -> Any:
        if sharding.is_fully_replicated:
            if self._host.leads:
                return shards[0].array
            return np.broadcast_to(np.zeros((), shape.dtype), shape.shape)  # only host 0 writes it
        by_start = {shard.place.start: shard.array for shard in shards}
        arrays = [
            # On a CPU this is the copy itself; an accelerator need not hold the state twice.
            jax.device_put(by_start[tuple(s.start or 0 for s in index)], _host_memory(device), may_alias=True)
            for device, index in sharding.addressable_devices_indices_map(shape.shape).items()
        ]
        kind = arrays[0].sharding.memory_kind
        return jax.make_array_from_single_device_arrays(shape.shape, sharding.with_memory_kind(kind), arrays)


def _host_memory(device: Any) -> Any:
    kind = None if device.platform == "cpu" else "pinned_host"
    return jax.sharding.SingleDeviceSharding(device, memory_kind=kind)
