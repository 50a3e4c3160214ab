"""tf.Examples: what is encoded parses back; every encoding protobuf accepts parses alike; no bytes crash the parser."""

import functools
import itertools
import pickle
import struct

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from raylingvo.data.tf_example import ExampleError, Feature, decode_example, encode_example, parse_examples

int64s = st.lists(st.one_of(st.integers(0, 300), st.integers(-(2**63), 2**63 - 1)), max_size=200)
float32s = st.lists(st.floats(width=32), max_size=60)
several_bytes = st.lists(st.binary(max_size=200), max_size=4)
examples = st.fixed_dictionaries({"i": int64s, "f": float32s, "b": several_bytes})
RAGGED = {"i": Feature("int64"), "f": Feature("float32"), "b": Feature("bytes")}


def typed(example):
    """With dtypes, so that empty lists have a kind."""
    return {
        "i": np.array(example["i"], np.int64),
        "f": np.array(example["f"], np.float32),
        "b": np.array(example["b"], object) if example["b"] else np.array([], "S"),
    } | ({"b": example["b"]} if example["b"] else {})


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], strict=True) if name != "b" else None
        assert type(a[name]) is type(b[name]) and len(a[name]) == len(b[name])
    assert a.get("b") == b.get("b")


@given(batch=st.lists(examples, max_size=5))
@settings(deadline=None, max_examples=100)
def test_what_is_encoded_parses_back(batch):
    expected = [{**typed(one), "b": one["b"]} for one in batch]
    serialized = [encode_example(typed(one)) for one in batch]
    for one, parsed in zip(expected, parse_examples(serialized, RAGGED), strict=True):
        assert_same(one, parsed)
    for one, data in zip(expected, serialized, strict=True):
        assert_same(one, decode_example(data))


def varint(n):
    n &= 2**64 - 1
    out = bytearray()
    while n >= 0x80:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    return bytes(out + bytes([n]))


def field(number, data):
    return varint(number << 3 | 2) + varint(len(data)) + data


def example_of(**features):
    """Feature name -> the bytes of a serialized Feature."""
    return field(1, b"".join(field(1, field(1, name.encode()) + field(2, raw)) for name, raw in features.items()))


@given(values=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=80), cuts=st.sets(st.integers(0, 80)))
@settings(deadline=None, max_examples=100)
def test_unpacked_and_split_numbers_parse_alike(values, cuts):
    bounds = sorted({0, len(values), *(cut for cut in cuts if cut < len(values))})
    pieces = [values[a:b] for a, b in itertools.pairwise(bounds)]
    unpacked = b"".join(varint(1 << 3) + varint(v) for v in values)
    in_pieces = b"".join(field(1, b"".join(map(varint, piece))) for piece in pieces)
    merged = b"".join(field(3, field(1, b"".join(map(varint, piece)))) for piece in pieces)
    for raw in (field(3, unpacked), field(3, in_pieces), merged):
        (parsed,) = parse_examples([example_of(x=raw)], {"x": Feature("int64")})
        np.testing.assert_array_equal(parsed["x"], np.array(values, np.int64), strict=True)
    floats = [struct.unpack("<f", struct.pack("<f", v))[0] for v in values]
    raw = field(2, b"".join(varint(1 << 3 | 5) + struct.pack("<f", v) for v in floats))
    (parsed,) = parse_examples([example_of(x=raw)], {"x": Feature("float32")})
    np.testing.assert_array_equal(parsed["x"], np.array(floats, np.float32), strict=True)


def test_the_last_kind_of_a_feature_counts():
    raw = field(3, field(1, varint(7))) + field(1, field(1, b"seven"))
    assert parse_examples([example_of(x=raw)], {"x": Feature("bytes")}) == [{"x": [b"seven"]}]
    with pytest.raises(ExampleError, match="'x' is bytes; expected int64"):
        parse_examples([example_of(x=raw)], {"x": Feature("int64")})


@functools.cache
def tensorflow_example():
    """A message class like ours, to compare with protobuf alone."""
    from raylingvo.data import tf_example

    return tf_example._messages().example


def by_protobuf(data):
    features = tensorflow_example().FromString(data).features.feature
    return {
        name: list(getattr(features[name], kind).value)
        for name in features
        if (kind := features[name].WhichOneof("kind")) is not None
    }


@given(data=st.data())
@settings(deadline=None, max_examples=100)
def test_damaged_bytes_parse_as_protobuf_parses_them_or_are_refused(data):
    serialized = bytearray(encode_example(typed(data.draw(examples))))
    assume(serialized)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(serialized) - 1))
        serialized[at] ^= 1 << data.draw(st.integers(0, 7))
    serialized = bytes(serialized[: data.draw(st.integers(0, len(serialized)))])
    optional = {
        "i": Feature("int64", default=()),
        "f": Feature("float32", default=()),
        "b": Feature("bytes", default=[]),
    }
    try:
        (parsed,) = parse_examples([serialized], optional)
    except ExampleError as e:
        assert "\n" not in str(e) and e.index == 0
        return
    reference = by_protobuf(serialized)
    for name, values in parsed.items():
        # Only one that has the right kind in both can be compared.
        if name in reference:
            np.testing.assert_array_equal(np.array(reference[name], getattr(values, "dtype", object)), values)


@given(serialized=st.binary(max_size=300))
@settings(deadline=None, max_examples=100)
def test_random_bytes_never_crash(serialized):
    for parse in (decode_example, lambda one: parse_examples([one], RAGGED)):
        try:
            parse(serialized)
        except ExampleError as e:
            assert isinstance(e, ValueError)


def test_malformed_numbers_name_their_example_and_feature():
    good = encode_example({"x": [1, 2, 3]})
    for raw in (
        field(3, field(1, b"\x80")),  # ends within a number
        field(3, field(1, b"\x80" * 10 + b"\x01")),  # eleven bytes
    ):
        with pytest.raises(ExampleError, match="example 1 of the batch: feature 'x' is malformed") as error:
            parse_examples([good, example_of(x=raw), good], {"x": Feature("int64")})
        assert error.value.index == 1
    with pytest.raises(ExampleError, match="feature 'x' is malformed"):
        parse_examples([example_of(x=field(2, field(1, b"12345")))], {"x": Feature("float32")})


def test_bits_beyond_the_64th_are_dropped_as_protobuf_drops_them():
    data = example_of(x=field(3, field(1, b"\x80" * 9 + b"\x7f" + b"\x05")))
    assert parse_examples([data], {"x": Feature("int64")})[0]["x"].tolist() == by_protobuf(data)["x"] == [-(2**63), 5]


def test_shapes():
    serialized = [encode_example({"m": np.arange(6) + i, "s": i + 0.5, "b": [b"x", b"y"]}) for i in range(3)]
    parsed = parse_examples(
        serialized, {"m": Feature("int64", (2, 3)), "s": Feature("float32", ()), "b": Feature("bytes", (2,))}
    )
    np.testing.assert_array_equal(parsed[2]["m"], [[2, 3, 4], [5, 6, 7]])
    assert isinstance(parsed[1]["s"], np.ndarray) and parsed[1]["s"].shape == () and parsed[1]["s"] == 1.5
    assert parsed[0]["b"] == [b"x", b"y"]
    parsed[0]["m"][:] = 0  # writable, and of this example alone
    assert parsed[1]["m"].min() == 1


def test_defaults():
    spec = {
        "a": Feature("int64", (2, 2), default=7),
        "b": Feature("float32", default=1.5),
        "c": Feature("bytes", (2,), default=b""),
        "d": Feature("int64", default=()),
        "e": Feature("int64", (3,), default=(1, 2, 3)),
    }
    first, second = parse_examples([encode_example({}), encode_example({"a": [1, 2, 3, 4], "d": [9]})], spec)
    np.testing.assert_array_equal(first["a"], np.full((2, 2), 7), strict=True)
    np.testing.assert_array_equal(first["b"], np.array([1.5], np.float32), strict=True)
    assert first["c"] == [b"", b""]
    np.testing.assert_array_equal(first["d"], np.zeros(0, np.int64), strict=True)
    np.testing.assert_array_equal(first["e"], [1, 2, 3])
    np.testing.assert_array_equal(second["a"], [[1, 2], [3, 4]])
    np.testing.assert_array_equal(second["d"], [9])
    first["a"][0, 0] = 0  # no example shares its default with another
    assert parse_examples([encode_example({})], spec)[0]["a"][0, 0] == 7


def test_a_feature_of_no_kind_is_missing_and_an_empty_list_is_not():
    spec = {"x": Feature("int64", default=5)}
    assert parse_examples([example_of(x=b"")], spec)[0]["x"].tolist() == [5]
    assert parse_examples([example_of(x=field(3, b""))], spec)[0]["x"].tolist() == []
    assert decode_example(example_of(x=b"", y=field(3, b""))).keys() == {"y"}


def test_an_empty_list_is_of_any_kind():
    batch = [encode_example({"x": []}), encode_example({"x": [7]})]  # the first one is of floats
    assert [one["x"].tolist() for one in parse_examples(batch, {"x": Feature("int64")})] == [[], [7]]
    assert parse_examples(batch[:1], {"x": Feature("bytes")}) == [{"x": []}]
    with pytest.raises(ExampleError, match=r"feature 'x' has 0 values; expected int64\[1\]"):
        parse_examples(batch, {"x": Feature("int64", (1,))})


def test_errors_say_what_was_expected_and_what_was_found():
    batch = [encode_example({"x": [1], "y": "text"}), encode_example({"x": [1, 2], "y": "text"})]
    for spec, index, message in [
        ({"z": Feature("float32", (2,))}, 0, "example 0 of the batch: no feature 'z'; expected float32[2]"),
        ({"x": Feature("int64", (1,))}, 1, "example 1 of the batch: feature 'x' has 2 values; expected int64[1]"),
        ({"y": Feature("int64")}, 0, "example 0 of the batch: feature 'y' is bytes; expected int64"),
        ({"x": Feature("bytes")}, 0, "example 0 of the batch: feature 'x' is int64; expected bytes"),
    ]:
        with pytest.raises(ExampleError) as error:
            parse_examples(batch, spec)
        assert (str(error.value), error.value.index) == (message, index)
    with pytest.raises(ExampleError, match=r"these 5 bytes are no tf\.Example"):
        parse_examples([b"\xff\xff\xff\xff\xff"], {})


def test_errors_travel_between_processes():
    error = pickle.loads(pickle.dumps(ExampleError(3, "text")))
    assert (error.index, str(error)) == (3, "text")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("int32",), r"dtype must be int64, float32 or bytes \(got 'int32'\)"),
        (("int64", (-1,)), r"shape must have sizes >= 0 \(got \(-1,\)\)"),
        (("int64", (2,), (1, 2, 3)), r"default must be int64, of shape \(2,\) \(got \(1, 2, 3\)\)"),
        (("int64", None, "x"), "default must be int64, of shape any"),
        (("int64", (), 0.5), r"default must be int64, of shape \(\) \(got 0.5\)"),
        (("float32", None, "1.5"), "default must be float32, of shape any"),
        (("bytes", (2,), [b"a", b"b", b"c"]), r"default must be bytes, or \(2,\) of them"),
        (("bytes", None, ["text"]), "default must be bytes"),
    ],
)
def test_features_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        Feature(*arguments)


def test_encoding_chooses_the_kind():
    encoded = decode_example(
        encode_example(
            {
                "bool": True,
                "float": np.float64(0.5),
                "int": np.int8([[1, -1]]),
                "str": "ü",
                "strs": np.array(["a", "b"]),
                "mixed": [1, 0.5],
            }
        )
    )
    assert encoded["bool"].tolist() == [1] and encoded["bool"].dtype == np.int64
    assert encoded["float"].tolist() == [0.5] and encoded["float"].dtype == np.float32
    assert encoded["int"].tolist() == [1, -1]
    assert encoded["str"] == ["ü".encode()]
    assert encoded["strs"] == [b"a", b"b"]
    assert encoded["mixed"].tolist() == [1, 0.5]


@pytest.mark.parametrize("value", [None, 1j, 2**63, {"a": 1}, [b"a", 1], [[1], [1, 2]]])
def test_encoding_refuses_what_no_kind_holds(value):
    with pytest.raises(ValueError, match=r"feature 'x' cannot be in a tf\.Example"):
        encode_example({"x": value})


def test_real_examples_are_what_tensorflow_wrote(test_data):
    """A record whose bytes are taken apart by hand: framing, map, packed numbers."""
    data = (test_data / "wmt/translate_ende_wmt32k-train-00511-of-00512").read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    found = decode_example(data[12 : 12 + length])
    assert found.keys() == {"inputs", "targets"}
    assert found["targets"][:4].tolist() == [484, 3215, 1285, 29317]
    assert found["targets"][-1] == 1  # <EOS>
    assert parse_examples([encode_example(found)], {"inputs": Feature("int64")})[0]["inputs"].tolist() == (
        found["inputs"].tolist()
    )
