"""Where a train state and its batches lie: on one device, or spread over those of all hosts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from raylingvo.data.batches import WHOLE, Shard
from raylingvo.data.host_fields import device_fields
from raylingvo.errors import RequestError
from raylingvo.parallel.mesh import Mesh

# Path of a variable -> the logical names of its axes.
LogicalAxes = Mapping[str, tuple[str | None, ...]]


class OneDevice:
    """Everything is where JAX puts it."""

    spread = False
    num_devices = 1
    shard: Shard = WHOLE  # the part of each batch that this host reads

    def shardings(self, abstract: Any) -> Any:
        """How the leaves of a state of these shapes lie: a tree of shardings, None if there is nothing to say."""
        del abstract
        return None

    def batch(self, batch: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
        """This host's rows of a batch -> what the step takes."""
        return batch

    def abstract_batch(self, batch: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
        """Shapes (and shardings) of what `batch` gives."""
        return batch

    def put(self, tree: Any) -> Any:
        """Host arrays, the same on all hosts -> arrays of their own on the device, whole on each."""
        return jax.tree.map(jax.numpy.array, tree)

    def put_state(self, read: Callable[[int, tuple[slice, ...]], np.ndarray], abstract: Any) -> Any:
        """A state of these shapes, in memory of its own.

        read: (number of a leaf, index) -> that part of it on the host, with the bits of the leaf's dtype.
        """
        leaves, treedef = jax.tree.flatten(abstract)
        whole = [_as(leaf.dtype, read(i, tuple(slice(0, n) for n in leaf.shape))) for i, leaf in enumerate(leaves)]
        return jax.tree.unflatten(treedef, [jax.numpy.array(x) for x in whole])


ONE_DEVICE = OneDevice()


class Spread(OneDevice):
    """A state and its batches over a mesh of all devices of all hosts."""

    spread = True

    def __init__(self, config: Mesh, logical_axes: LogicalAxes):
        """Raises RequestError if the mesh does not fit the devices, or a rule the model."""
        self._config = config
        self._logical_axes = logical_axes
        self.num_devices = jax.device_count()
        try:
            shape = config.shape(self.num_devices)
        except ValueError as error:
            raise RequestError(f"resources.mesh: {error}") from error
        # Auto: the compiler decides how what is computed between inputs and outputs lies.
        self._mesh = jax.make_mesh(shape, tuple(config.axes), axis_types=(AxisType.Auto,) * len(shape))
        self._sizes = dict(zip(config.axes, shape, strict=True))
        _check_rules(config, logical_axes)
        self._whole = NamedSharding(self._mesh, P())
        self._rows = NamedSharding(self._mesh, P(config.batch or None))
        self.shard = self._shard()

    @property
    def everywhere(self) -> NamedSharding:
        """Of what is whole on every device."""
        return self._whole

    @property
    def each_device(self) -> NamedSharding:
        """Of an array whose first axis has an entry for each device."""
        return NamedSharding(self._mesh, P(tuple(self._config.axes)))

    def shardings(self, abstract: Any) -> Any:
        return jax.tree_util.tree_map_with_path(self._sharding, abstract)

    def batch(self, batch: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
        rows = device_fields(batch)
        return {
            name: jax.make_array_from_process_local_data(self._rows, np.asarray(x), self._global_shape(x))
            for name, x in rows.items()
        }

    def abstract_batch(self, batch: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
        rows, parts = device_fields(batch), math.prod(self._sizes[name] for name in self._config.batch)
        for x in rows.values():
            if self._global_shape(x)[0] % parts:
                raise RequestError(
                    f"a batch of {self._global_shape(x)[0]} rows cannot be split evenly over {parts} devices "
                    f"(resources.mesh.batch: {', '.join(self._config.batch)})"
                )
        return {
            name: jax.ShapeDtypeStruct(
                self._global_shape(x), jax.dtypes.canonicalize_dtype(x.dtype), sharding=self._rows
            )
            for name, x in rows.items()
        }

    def put(self, tree: Any) -> Any:
        return jax.tree.map(lambda x: self._put(np.array(x), self._whole), tree)

    def put_state(self, read: Callable[[int, tuple[slice, ...]], np.ndarray], abstract: Any) -> Any:
        leaves, treedef = jax.tree.flatten(abstract)
        shardings = jax.tree.leaves(self.shardings(abstract))
        put = []
        for i, (leaf, sharding) in enumerate(zip(leaves, shardings, strict=True)):
            # A copy, since the step donates its input.
            def part(index: Any, i: int = i, leaf: Any = leaf) -> np.ndarray:
                bounds = tuple(slice(*s.indices(n)[:2]) for s, n in zip(index, leaf.shape, strict=True))
                return np.array(_as(leaf.dtype, read(i, bounds)))

            put.append(jax.make_array_from_callback(leaf.shape, sharding, part))
        return jax.tree.unflatten(treedef, put)

    def _put(self, x: np.ndarray, sharding: NamedSharding) -> jax.Array:
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    def _global_shape(self, x: Any) -> tuple[int, ...]:
        return (x.shape[0] * self.shard.count, *x.shape[1:])

    def _shard(self) -> Shard:
        """Which rows this host's devices hold, as a part of all."""
        parts = math.prod(self._sizes[name] for name in self._config.batch)
        rows: dict[int, set[int]] = {}
        for device, (index,) in self._rows.devices_indices_map((parts,)).items():
            rows.setdefault(device.process_index, set()).update(range(*index.indices(parts)))
        mine = rows[jax.process_index()]
        first, size = min(mine), len(mine)
        if any(max(held) - min(held) >= size or len(held) != size or min(held) % size for held in rows.values()):
            raise RequestError(
                f"resources.mesh: with axes {dict(self._config.axes)} a host's devices would not hold consecutive rows "
                f"of a batch; name the axes of resources.mesh.batch ({', '.join(self._config.batch)}) first"
            )
        return Shard(index=first // size, count=parts // size)

    def _sharding(self, path: Any, leaf: Any) -> NamedSharding:
        """As the variable whose path is in its own, such as that of a slot, if it is of the same rank."""
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        within = [known for known in self._logical_axes if f"/{known}/" in f"/{name}/"]
        axes = self._logical_axes[max(within, key=len)] if within else None
        if axes is None or len(axes) != len(leaf.shape):
            return self._whole
        return NamedSharding(self._mesh, P(*self._split(axes, leaf.shape)))

    def _split(self, axes: tuple[str | None, ...], shape: tuple[int, ...]) -> list[str | None]:
        """The mesh axis, or None, that splits each axis of a variable."""
        split: list[str | None] = []
        for axis, size in zip(axes, shape, strict=True):
            wanted = self._config.rules.get(axis) if axis is not None else None
            fits = wanted is not None and wanted not in split and size % self._sizes[wanted] == 0
            split.append(wanted if fits else None)
        fsdp = self._config.fsdp
        if fsdp is not None and not any(split):
            fitting = [i for i, size in enumerate(shape) if size and size % self._sizes[fsdp] == 0]
            if fitting:
                split[max(fitting, key=lambda i: shape[i])] = fsdp
        return split


def _check_rules(config: Mesh, logical_axes: LogicalAxes) -> None:
    known = {name for axes in logical_axes.values() for name in axes if name is not None}
    for name in config.rules:
        if name not in known:
            has = f"its variables have {', '.join(sorted(known))}" if known else "its variables name none"
            raise RequestError(f"resources.mesh.rules: the model has no logical axis {name!r}; {has}")


def _as(dtype: Any, x: np.ndarray) -> np.ndarray:
    """The same bits as numbers of this dtype."""
    return x if x.dtype == dtype else x.view(dtype)


def make_layout(config: Mesh, logical_axes: Callable[[], LogicalAxes]) -> OneDevice:
    """The layout on the devices that there are: `Spread` if they are several. Raises RequestError as `Spread` does."""
    if jax.device_count() == 1:
        try:
            config.shape(1)
        except ValueError as error:
            raise RequestError(f"resources.mesh: {error}") from error
        if config.rules:
            _check_rules(config, logical_axes())
        return ONE_DEVICE
    return Spread(config, logical_axes())
