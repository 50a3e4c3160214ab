"""Consistent copies of device pytrees in host memory, in buffers that are used again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from raylingvo.training.pieces import Place

# Below this, splitting a copy over threads costs more than it gains; above, one thread does not fill the memory bus.
_CHUNK_BYTES = 8 << 20


class Shard(NamedTuple):
    """A piece of a leaf in host memory."""

    place: Place
    first: bool  # whether it is the first of the replicas that there are on all hosts
    array: np.ndarray


class HostCopier:
    """Copies device arrays to the host at a step boundary, before their buffers are donated to the next step.

    A buffer that was touched before takes a copy at memory speed; a fresh one is several times slower (page faults).
    So buffers whose readers are done are used again.
    """

    def __init__(self, threads: int = 2):
        self._free: dict[int, list[np.ndarray]] = {}
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="host-copy")

    def copy(self, tree: Any) -> list[np.ndarray]:
        """The leaves of `tree` (jax arrays, waited for), in flatten order, as numpy arrays of their own dtypes."""
        return self._copies(jax.tree.leaves(tree))

    def copy_shards(self, tree: Any, wanted: Callable[[jax.Array, bool], bool]) -> list[Shard]:
        """Pieces of the leaves of `tree` that this host's devices hold, each of them once, in flatten order.

        wanted: (a leaf, whether the piece is the first of its replicas on all hosts) -> whether it is copied.
        """
        found, labels = [], []
        for leaf, x in enumerate(jax.tree.leaves(tree)):
            here: dict[tuple[int, ...], list[Any]] = {}
            for shard in x.addressable_shards:
                here.setdefault(tuple(s.start or 0 for s in shard.index), []).append(shard)
            for start, shards in here.items():
                first = any(shard.replica_id == 0 for shard in shards)
                if wanted(x, first):
                    found.append(shards[0].data)
                    labels.append((Place(leaf, start), first))
        copies = self._copies(found)
        return [Shard(place, first, array) for (place, first), array in zip(labels, copies, strict=True)]

    def _copies(self, leaves: Sequence[jax.Array]) -> list[np.ndarray]:
        for x in leaves:
            x.copy_to_host_async()  # starts all the transfers of an accelerator; nothing to do on a CPU
        copies, jobs = [], []
        for x in leaves:
            view = np.asarray(x)
            if not _aliases_device(x):
                copies.append(view)  # np.asarray has copied already, into memory that outlives the array
                continue
            target = self._take(view.nbytes)[: view.nbytes].view(view.dtype).reshape(view.shape)
            copies.append(target)
            jobs.extend(_chunks(target, view))
        # The small ones here, while the threads are at the large ones.
        large = [self._executor.submit(np.copyto, a, b) for a, b in jobs if a.nbytes >= _CHUNK_BYTES]
        for target, source in jobs:
            if target.nbytes < _CHUNK_BYTES:
                np.copyto(target, source)
        for job in large:
            job.result()
        return copies

    def lease(self, copies: Sequence[np.ndarray], users: int) -> Lease:
        """Gives the buffers of `copies` back when `users` readers have released them."""
        return Lease(self, copies, users)

    def reuse(self, copies: Sequence[np.ndarray]) -> None:
        """Takes back what `copy` returned; nobody may read it any more."""
        for array in copies:
            base = array
            while isinstance(base.base, np.ndarray):
                base = base.base
            if base.dtype == np.uint8 and base.ndim == 1 and base.flags.writeable:
                self._free.setdefault(base.nbytes, []).append(base)

    def close(self) -> None:
        self._executor.shutdown()

    def _take(self, nbytes: int) -> np.ndarray:
        size = max(nbytes, 1)
        free = self._free.get(size)
        return free.pop() if free else np.empty(size, np.uint8)


class Lease:
    """Counts down the readers of some copies. Thread-safe."""

    def __init__(self, copier: HostCopier, copies: Sequence[np.ndarray], users: int):
        self._copier = copier
        self._copies = copies
        self._users = users
        self._lock = threading.Lock()

    def release(self) -> None:
        """One reader has what it needs; after the last one the buffers are used again."""
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._copier.reuse(self._copies)


def encode(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The same bytes under dtypes that the object store does not copy: bfloat16, float8.. as unsigned integers."""
    return [x.view(f"u{x.dtype.itemsize}") if x.dtype.kind == "V" or x.dtype.isbuiltin != 1 else x for x in arrays]


def decode(arrays: Sequence[np.ndarray], abstract: Any) -> Any:
    """`encode`d leaves -> the tree of `abstract` (ShapeDtypeStructs or arrays), still as views of the same memory.

    Raises ValueError, naming the leaf, if number, shape or size of the leaves are not those of `abstract`.
    """
    paths, treedef = jax.tree_util.tree_flatten_with_path(abstract)
    if len(paths) != len(arrays):
        raise ValueError(f"expected {len(paths)} arrays (got {len(arrays)})")
    leaves = []
    for (path, want), x in zip(paths, arrays, strict=True):
        if x.shape != want.shape or x.dtype.itemsize != want.dtype.itemsize:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(f"{name}: expected {want.dtype}{want.shape} (got {x.dtype}{x.shape})")
        leaves.append(x if x.dtype == want.dtype else x.view(want.dtype))
    return jax.tree.unflatten(treedef, leaves)


def nbytes(arrays: Sequence[np.ndarray]) -> int:
    """The total size in bytes."""
    return sum(x.nbytes for x in arrays)


def _aliases_device(x: jax.Array) -> bool:
    return all(device.platform == "cpu" for device in x.devices())


def _chunks(target: np.ndarray, source: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    if target.nbytes < 2 * _CHUNK_BYTES or not source.flags.c_contiguous:
        return [(target, source)]
    flat_target, flat_source = target.reshape(-1), source.reshape(-1)
    step = _CHUNK_BYTES // target.itemsize
    return [(flat_target[i : i + step], flat_source[i : i + step]) for i in range(0, target.size, step)]
