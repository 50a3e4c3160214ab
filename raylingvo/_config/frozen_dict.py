"""An immutable mapping, fit to be a field, and the default of a field, of a frozen dataclass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NoReturn, TypeVar, cast

K = TypeVar("K")
V = TypeVar("V", covariant=True)


class FrozenDict(Mapping[K, V]):
    """A mapping that cannot change: hashable if its values are, equal to any mapping with the same items.

    items: a mapping, or (key, value) pairs; their order is kept. As for a dict, it plays no part in equality.
    """

    __slots__ = ("_items",)
    _items: dict[K, V]

    def __init__(self, items: Mapping[K, V] | Iterable[tuple[K, V]] = (), /) -> None:
        object.__setattr__(self, "_items", dict(cast("Iterable[tuple[K, V]]", items)))

    def __getitem__(self, key: K) -> V:
        return self._items[key]

    def __iter__(self) -> Iterator[K]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(frozenset(self._items.items()))

    def __repr__(self) -> str:
        return f"FrozenDict({self._items!r})"

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a FrozenDict cannot change (set {name})")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a FrozenDict cannot change (delete {name})")

    def __reduce__(self) -> tuple[Any, ...]:
        # The default way of pickle and copy would set the slot, which __setattr__ refuses.
        return FrozenDict, (self._items,)
