"""tf.Example without TensorFlow: typed features of many serialized examples at once, and back.

Messages, from TensorFlow's core/example/{example,feature}.proto: an Example maps names to Features, each a list of
bytes, of floats or of int64s. upb (protobuf in C) takes the messages apart, down to the serialized Feature; numbers are
decoded for a whole batch of them in NumPy, several times as fast as one Python object for each.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

# Kind -> the number of its field in the message Feature; the lists' one field is number 1.
_KINDS = {"bytes": 1, "float32": 2, "int64": 3}
_LENGTH_DELIMITED = 2
_LIST_VALUE_TAG = 1 << 3 | _LENGTH_DELIMITED
_MAX_VARINT_BYTES = 10


class ExampleError(ValueError):
    """A serialized example that is malformed, or lacks what was asked of it. index: its position in the batch."""

    def __init__(self, index: int, message: str):
        super().__init__(message)
        self.index = index

    def __reduce__(self) -> tuple[type, tuple[int, str]]:
        # Exceptions pickle their `args`, which is only the message.
        return type(self), (self.index, str(self))


@dataclasses.dataclass(frozen=True)
class Feature:
    """What one feature must be.

    shape: of every example's values; None: any number of them, of rank 1. default: the value of examples without the
    feature, a scalar or values that broadcast to `shape` (with None: a scalar, or a sequence); None: it is required.
    """

    dtype: Literal["int64", "float32", "bytes"]
    shape: tuple[int, ...] | None = None
    default: Any = None

    def __post_init__(self) -> None:
        if self.dtype not in _KINDS:
            raise ValueError(f"dtype must be int64, float32 or bytes (got {self.dtype!r})")
        if self.shape is not None and any(size < 0 for size in self.shape):
            raise ValueError(f"shape must have sizes >= 0 (got {self.shape})")
        if self.default is not None:
            self._default()

    def _default(self) -> np.ndarray | list[bytes]:
        if self.dtype == "bytes":
            values = [self.default] if isinstance(self.default, bytes) else list(self.default)
            if self.shape is not None and len(values) == 1:
                values *= math.prod(self.shape)
            if not all(isinstance(value, bytes) for value in values) or (
                self.shape is not None and len(values) != math.prod(self.shape)
            ):
                raise ValueError(f"default must be bytes, or {self._sizes()} of them (got {self.default!r})")
            return values
        try:
            given = np.asarray(self.default)
            if given.size and not np.can_cast(given.dtype, self.dtype, "same_kind"):
                raise TypeError(f"{given.dtype} would be cut")
            values = given.astype(self.dtype)
            return np.atleast_1d(values) if self.shape is None else np.broadcast_to(values, self.shape)
        except (ValueError, TypeError, OverflowError) as e:
            raise ValueError(f"default must be {self.dtype}, of shape {self._sizes()} (got {self.default!r})") from e

    def _sizes(self) -> str:
        return "any" if self.shape is None else str(self.shape)


def parse_examples(
    serialized: Sequence[bytes], features: Mapping[str, Feature]
) -> list[dict[str, np.ndarray | list[bytes]]]:
    """The asked features of each serialized tf.Example; others are left aside.

    Numbers are int64 or float32 arrays of the feature's shape, (n,) without one; bytes are a list, of as many as the
    shape has places. The arrays are views of one for the whole batch: to keep one of them long, copy it. A feature that
    is present but of no kind counts as missing, as in TensorFlow; one without values is of any kind, other than there:
    who writes an empty list cannot always know which it should be.

    Raises ExampleError for the first feature that is missing, of another kind or size, and for malformed bytes.
    """
    maps = [_feature_map(i, one) for i, one in enumerate(serialized)]
    columns = {name: _column(name, feature, [m.get(name) for m in maps]) for name, feature in features.items()}
    return [{name: column[i] for name, column in columns.items()} for i in range(len(maps))]


def decode_example(serialized: bytes) -> dict[str, np.ndarray | list[bytes]]:
    """All features of one example, of the kinds that they have, sorted by name; those of no kind are left out.

    Raises ExampleError if it is malformed.
    """
    found: dict[str, np.ndarray | list[bytes]] = {}
    for name, raw in sorted(_feature_map(0, serialized).items()):
        message = _parse_feature(0, name, raw)
        kind = message.WhichOneof("kind")
        if kind is not None:
            values = getattr(message, kind).value
            found[name] = list(values) if kind == "bytes_list" else np.array(values, _DTYPES[kind])
    return found


def encode_example(features: Mapping[str, Any]) -> bytes:
    """A serialized tf.Example; equal features make equal bytes.

    Values: numbers, bytes, str, arrays or sequences of one of these. Whole numbers and bools become int64, other
    numbers float32, str UTF-8; shapes are not stored. Raises ValueError, naming the feature, for what no kind holds.
    """
    example = _messages().example()
    for name, value in features.items():
        feature = example.features.feature[name]
        try:
            kind, values = _flat(value)
            getattr(feature, kind).value.extend(values)
        except (ValueError, TypeError, OverflowError) as e:
            raise ValueError(f"feature {name!r} cannot be in a tf.Example: {e}") from e
        getattr(feature, kind).SetInParent()  # a list of length 0 is present, too
    return example.SerializeToString(deterministic=True)


# What the messages call the kinds.
_DTYPES = {"bytes_list": "bytes", "float_list": "float32", "int64_list": "int64"}
_LISTS = {dtype: kind for kind, dtype in _DTYPES.items()}


def _flat(value: Any) -> tuple[str, list[Any]]:
    if isinstance(value, bytes | str):
        value = [value]
    if isinstance(value, list | tuple) and value and all(isinstance(v, bytes | str) for v in value):
        return "bytes_list", [v.encode() if isinstance(v, str) else v for v in value]
    array = np.asarray(value)
    if array.dtype.kind in "SU" and isinstance(value, np.ndarray | np.generic):
        return _flat(array.ravel().tolist()) if array.size else ("bytes_list", [])
    if array.dtype.kind in "biu":
        return "int64_list", (array.astype(np.int64) if array.dtype == bool else array).ravel().tolist()
    if array.dtype.kind == "f":
        return "float_list", array.ravel().tolist()
    raise ValueError(f"it must be numbers, bytes or str (got {array.dtype})")


def _feature_map(index: int, serialized: bytes) -> Mapping[str, bytes]:
    """Name -> serialized Feature."""
    messages = _messages()
    try:
        return messages.raw_example(serialized).features.feature
    except messages.decode_error as e:
        raise _wrong(index, f"these {len(serialized)} bytes are no tf.Example") from e


def _parse_feature(index: int, name: str, raw: bytes) -> Any:
    messages = _messages()
    try:
        return messages.feature(raw)
    except messages.decode_error as e:
        raise _wrong(index, f"feature {name!r} is malformed") from e


def _wrong(index: int, what: str) -> ExampleError:
    return ExampleError(index, f"example {index} of the batch: {what}")


def _column(name: str, feature: Feature, raws: Sequence[bytes | None]) -> Sequence[np.ndarray | list[bytes]]:
    """The values of one feature in each example."""
    lists = _bytes_lists(name, raws) if feature.dtype == "bytes" else _number_lists(name, feature.dtype, raws)
    default = None if feature.default is None else feature._default()
    size = None if feature.shape is None else math.prod(feature.shape)
    for i, values in enumerate(lists):
        if values is None:
            if default is None:
                raise _wrong(i, f"no feature {name!r}; expected {_asked(feature)}")
            lists[i] = list(default) if isinstance(default, list) else default.copy()
        elif size is not None:
            if len(values) != size:
                raise _wrong(i, f"feature {name!r} has {len(values)} values; expected {_asked(feature)}")
            if isinstance(values, np.ndarray):
                lists[i] = values.reshape(feature.shape)
    return lists


def _asked(feature: Feature) -> str:
    return f"{feature.dtype}{'[...]' if feature.shape is None else [*feature.shape]}"


def _bytes_lists(name: str, raws: Sequence[bytes | None]) -> list[Any]:
    return [None if raw is None else _slow_values(i, name, "bytes", raw) for i, raw in enumerate(raws)]


def _number_lists(name: str, dtype: str, raws: Sequence[bytes | None]) -> list[Any]:
    """An array for each example, or None where there is no value of any kind."""
    tag = _KINDS[dtype] << 3 | _LENGTH_DELIMITED
    lists: list[Any] = [None] * len(raws)
    packed: list[bytes] = []
    positions: list[int] = []
    for i, raw in enumerate(raws):
        if not raw:
            continue
        values = _packed_values(raw, tag)
        if values is None:
            lists[i] = _slow_values(i, name, dtype, raw)
        else:
            packed.append(values)
            positions.append(i)
    arrays = (_int64s if dtype == "int64" else _float32s)(packed)
    if arrays is None:
        arrays = [_slow_values(i, name, dtype, raws[i] or b"") for i in positions]
    for i, array in zip(positions, arrays, strict=True):
        lists[i] = array
    return lists


def _packed_values(raw: bytes, tag: int) -> bytes | None:
    """The packed numbers of a serialized Feature of kind `tag`, if it is as every writer writes it; None: look closer.

    That is: the tag, the length of all that follows, the tag of `value`, the length of all that follows, the numbers.
    """
    size = len(raw)
    if raw[0] != tag:
        return None
    if size < 130:  # the lengths are of one byte each
        if size >= 4 and raw[1] == size - 2 and raw[2] == _LIST_VALUE_TAG and raw[3] == size - 4:
            return raw[4:]
        return b"" if size == 2 and raw[1] == 0 else None
    length, at = _varint(raw, 1)
    if length != size - at or raw[at] != _LIST_VALUE_TAG:
        return None
    length, at = _varint(raw, at + 1)
    return raw[at:] if length == size - at else None


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at `at`, and where it ends; -1 for what is no length. `data` has ten bytes from `at` on."""
    number = 0
    for i in range(5):  # no message has 2^35 bytes
        byte = data[at + i]
        number |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return number, at + i + 1
    return -1, at


def _float32s(packed: Sequence[bytes]) -> list[np.ndarray] | None:
    if any(len(values) % 4 for values in packed):
        return None
    value_M = np.frombuffer(b"".join(packed), "<f4").astype(np.float32)
    return _split(value_M, np.cumsum([len(values) // 4 for values in packed]))


def _int64s(packed: Sequence[bytes]) -> list[np.ndarray] | None:
    """The varints of each, decoded together; None if one is malformed.

    A varint has seven bits a byte, the lowest first; the top bit says that another byte follows.
    """
    byte_L = np.frombuffer(b"".join(packed), np.uint8)
    stop_M = np.flatnonzero(byte_L < 0x80)
    ends = np.cumsum([len(values) for values in packed], dtype=np.int64)
    counts = np.searchsorted(stop_M, ends)  # of varints that end before the end
    if not len(byte_L):
        return _split(np.zeros(0, np.int64), counts)
    # The last byte of each list must end a varint.
    if (byte_L[ends[ends > 0] - 1] >= 0x80).any():
        return None
    start_M = np.concatenate([np.zeros(1, np.int64), stop_M[:-1] + 1])
    more_M = stop_M - start_M
    longest = int(more_M.max())
    if longest >= _MAX_VARINT_BYTES:
        return None
    value_M = (byte_L[start_M] & 0x7F).astype(np.uint64)
    for i in range(1, longest + 1):
        long_K = np.flatnonzero(more_M >= i)
        value_M[long_K] |= (byte_L[start_M[long_K] + i] & 0x7F).astype(np.uint64) << np.uint64(7 * i)
    return _split(value_M.view(np.int64), counts)


def _split(value_M: np.ndarray, ends: np.ndarray) -> list[np.ndarray]:
    start, arrays = 0, []
    for end in ends.tolist():
        arrays.append(value_M[start:end])
        start = end
    return arrays


def _slow_values(index: int, name: str, dtype: str, raw: bytes) -> Any:
    """The values of any valid encoding, by protobuf alone; None if the feature is of no kind."""
    message = _parse_feature(index, name, raw)
    kind = message.WhichOneof("kind")
    if kind is None:
        return None
    values = getattr(message, kind).value
    if _DTYPES[kind] != dtype and len(values):
        raise _wrong(index, f"feature {name!r} is {_DTYPES[kind]}; expected {dtype}")
    return list(values) if dtype == "bytes" else np.array(values, dtype)


class _Messages(NamedTuple):
    """raw_example, feature: bytes -> message. In the raw Example, the values of the map are serialized Features."""

    example: Callable[[], Any]
    raw_example: Callable[[bytes], Any]
    feature: Callable[[bytes], Any]
    decode_error: type[Exception]


@functools.cache
def _messages() -> _Messages:
    """Built at run time: generated code works with some versions of protobuf only."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

    proto = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="raylingvo/example.proto", package="raylingvo", syntax="proto3")

    def add(to: Any, name: str, number: int, type_: Any, *, message_type: str = "", repeated: bool = False) -> Any:
        field = to.add(name=name, number=number, type=type_)
        field.label = proto.LABEL_REPEATED if repeated else proto.LABEL_OPTIONAL
        if message_type:
            field.type_name = f".raylingvo.{message_type}"
        return field

    lists = {
        "bytes_list": ("BytesList", proto.TYPE_BYTES),
        "float_list": ("FloatList", proto.TYPE_FLOAT),
        "int64_list": ("Int64List", proto.TYPE_INT64),
    }
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for kind, (type_name, value_type) in lists.items():
        add(file.message_type.add(name=type_name).field, "value", 1, value_type, repeated=True)
        number = _KINDS[_DTYPES[kind]]
        add(feature.field, kind, number, proto.TYPE_MESSAGE, message_type=type_name).oneof_index = 0
    for prefix, value_type, value_name in (("", proto.TYPE_MESSAGE, "Feature"), ("Raw", proto.TYPE_BYTES, "")):
        features = file.message_type.add(name=f"{prefix}Features")
        entry = features.nested_type.add(name="FeatureEntry")
        entry.options.map_entry = True
        add(entry.field, "key", 1, proto.TYPE_STRING)
        add(entry.field, "value", 2, value_type, message_type=value_name)
        entry_name = f"{prefix}Features.FeatureEntry"
        add(features.field, "feature", 1, proto.TYPE_MESSAGE, message_type=entry_name, repeated=True)
        example = file.message_type.add(name=f"{prefix}Example")
        add(example.field, "features", 1, proto.TYPE_MESSAGE, message_type=f"{prefix}Features")

    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    classes = {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"raylingvo.{name}"))
        for name in ("Example", "RawExample", "Feature")
    }
    return _Messages(
        example=classes["Example"],
        raw_example=classes["RawExample"].FromString,
        feature=classes["Feature"].FromString,
        decode_error=message.DecodeError,
    )
