"""Lingvo's tf.Examples for translation give the batches of the same pairs as text; the real files read as text."""

import numpy as np
import pytest

from raylingvo.data.records import open_records, write_records
from raylingvo.data.text import TextPairs
from raylingvo.data.tf_example import decode_example, encode_example
from raylingvo.data.tokenizers import AsciiTokenizer, WpmTokenizer
from raylingvo.data.translation_examples import DoubleExamples, WpmExamples
from raylingvo.errors import RequestError

PAIRS = [("hi", "na"), ("hello you", "hallo"), ("bye", "auf wiedersehen")]
ASCII = AsciiTokenizer()
COMMON = {"source_tokenizer": ASCII, "target_tokenizer": ASCII, "bucket_bounds": (8, 32)}


@pytest.fixture(autouse=True)
def data(monkeypatch, tmp_path):
    monkeypatch.setenv("RAYLINGVO_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def features(source, target, prefix="", pad=0):
    """What Lingvo's encoder would write, with `pad` positions of padding at the end."""
    source_T, label_T = (ids.tolist() for ids in ASCII.encode_ragged([source, target]))
    found = {
        "source_id": source_T + [0] * pad,
        "source_padding": [0.0] * len(source_T) + [1.0] * pad,
        "target_id": [ASCII.sos_id, *label_T[:-1]] + [0] * pad,
        "target_label": label_T + [0] * pad,
        "target_padding": [0.0] * len(label_T) + [1.0] * pad,
        "target_weight": [1.0] * len(label_T) + [0.0] * pad,
    }
    return {f"{prefix}{name}": values for name, values in found.items()}


def spelt(text, before=(), after=()):
    """Each word in two pieces, but for those of one letter."""
    pieces = [piece for word in text.split() for piece in (f"\u2581{word[:1]}", word[1:]) if piece]
    return [*before, *pieces, *after]


def assert_same_batches(found, expected):
    assert len(found) == len(expected)
    for k in range(len(found)):
        assert set(found[k]) == set(expected[k])
        for name, values in expected[k].items():
            np.testing.assert_array_equal(found[k][name], values, err_msg=name)


@pytest.fixture
def as_text():
    write_records("pairs.tsv", [f"{a}\t{b}".encode() for a, b in PAIRS])
    return TextPairs(records="pairs.tsv", source="0", target="1", **COMMON).eval_batches(2)


@pytest.mark.parametrize("pad", [0, 3])
def test_ids_give_the_batches_of_the_text(as_text, pad):
    write_records("pairs.tfrecord", [encode_example(features(a, b, pad=pad)) for a, b in PAIRS])
    assert_same_batches(WpmExamples(records="pairs.tfrecord", **COMMON).eval_batches(2), as_text)


def test_paddings_and_weights_need_not_be_there(as_text):
    rows = [{name: x for name, x in features(a, b).items() if x[0] != 0.0 or "id" in name} for a, b in PAIRS]
    assert "source_padding" not in rows[0]
    write_records("pairs.tfrecord", [encode_example(row) for row in rows])
    assert_same_batches(WpmExamples(records="pairs.tfrecord", **COMMON).eval_batches(2), as_text)


@pytest.mark.parametrize("in_pieces", [True, False])
def test_words_give_the_batches_of_the_text_whatever_the_ids(as_text, in_pieces):
    cut = spelt if in_pieces else lambda text, before=(), after=(): [*before, *text.split(), *after]
    rows = [
        {"source_id": [9], "source_word": cut(a, after=["</s>"]), "target_word": cut(b, before=["<s>"])}
        for a, b in PAIRS
    ]
    write_records("pairs.tfrecord", [encode_example(row) for row in rows])
    dataset = WpmExamples(records="pairs.tfrecord", from_words=True, **COMMON)
    assert_same_batches(dataset.eval_batches(2), as_text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source_id": [80, 2, 2, 2]}, r"source_id must be in \[0, 76\), the vocabulary \(got 80\)"),
        ({"target_id": [0, 5, 5, 0]}, r"target_id must be <s> \(id 1\) and target_label without its last"),
        ({"target_label": [5, 6, 2]}, r"target_label and target_padding must be equally many \(got 3 and 4\)"),
        ({"target_weight": [0.5, 1.0, 1.0, 0.0]}, r"target_weight must be 1.0 \(got 0.5\)"),
    ],
)
def test_records_that_do_not_fit_are_named(change, message):
    rows = [features("hi", "na", pad=1), {**features("hi", "na", pad=1), **change}]
    write_records("pairs.tfrecord", [encode_example(row) for row in rows])
    with pytest.raises(RequestError, match=rf"pairs\.tfrecord: record 1.*: {message}"):
        WpmExamples(records="pairs.tfrecord", **COMMON).open()


def test_features_that_there_are_not_are_named():
    write_records("pairs.tfrecord", [encode_example(features("hi", "na"))])
    with pytest.raises(RequestError, match="there is no field 'source_word'; it has source_id, source_padding"):
        WpmExamples(records="pairs.tfrecord", from_words=True, **COMMON).open()
    with pytest.raises(RequestError, match="there is no field 'mono_source_id'; it has source_id, source_padding"):
        DoubleExamples(records="pairs.tfrecord", tokenizer=ASCII, bucket_bounds=(8,)).open()


def test_two_pairs_in_one_example():
    rows = [features(a, b) | features(b * 2, b, prefix="mono_", pad=2) for a, b in PAIRS]
    write_records("pairs.tfrecord", [encode_example(row) for row in rows])
    batches = DoubleExamples(records="pairs.tfrecord", tokenizer=ASCII, bucket_bounds=(8, 32)).eval_batches(4)
    first, second = batches[0], batches[1]
    names = {"ids", "paddings"}, {"ids", "labels", "paddings"}
    sides = [
        f"{other}{side}_{name}"
        for other in ("", "other_")
        for i, side in enumerate(("src", "tgt"))
        for name in names[i]
    ]
    assert set(first) == {*sides, "id", "weight"}
    # The second and the third are long only in a source or its double.
    assert first["id"][first["weight"] > 0].tolist() == [0]
    assert second["id"][second["weight"] > 0].tolist() == [1, 2]
    for column, expected in (
        ("other_src_ids", ["hallohallo", "auf wiedersehenauf wiedersehen"]),
        ("other_tgt_labels", ["hallo", "auf wiedersehen"]),
    ):
        lens = (second[f"{column[:9]}_paddings"] == 0).sum(axis=1) - 1
        assert ASCII.decode(second[column][:2], lens[:2]) == expected
    assert (second["other_tgt_ids"][:2, 0] == ASCII.sos_id).all()


@pytest.fixture(scope="module")
def wmt(test_data):
    return WpmTokenizer(vocab_filepath=str(test_data / "vocab/wmt14_ende_wpm_32k_test.vocab"))


@pytest.mark.data
def test_newstest_by_its_words(test_data, wmt):
    records = str(test_data / "wmt/wmt14_ende_wpm_32k_test.tfrecord")
    dataset = WpmExamples(
        records=records, source_tokenizer=wmt, target_tokenizer=wmt, from_words=True, bucket_bounds=(128,)
    )
    source, target = dataset.open().take(np.arange(100))
    ids = [np.split(side.token_T, np.cumsum(side.length_B)[:-1]) for side in (source, target)]
    texts = [[wmt.decode(row[None], [len(row) - 1])[0] for row in side] for side in ids]
    assert texts[0][0] == "A Republican strategy to counter the re-election of Obama"
    assert texts[1][0] == "Eine republikanische Strategie , um der Wiederwahl von Obama entgegenzutreten"
    assert not any("\u2581" in text or "</s>" in text or "<s>" in text for side in texts for text in side)
    assert sum("<unk>" in text for side in texts for text in side) < 10
    # Its ids are of two other vocabularies: they are in range, but read as nonsense here.
    by_id = WpmExamples(records=records, source_tokenizer=wmt, target_tokenizer=wmt, bucket_bounds=(128,)).open()
    first = by_id.take(np.array([0]))[0]
    assert first.token_T.tolist() == [93, 15027, 643, 8, 2985, 3, 27025, 6, 4569, 2]
    assert wmt.decode(first.token_T[None], [9]) != texts[0][:1]


@pytest.mark.data
def test_the_pairs_for_xendec(test_data, wmt):
    records = f"tfrecord:{test_data}/wmt/wmt14_ende_wpm_32k_doublebatch_test-000-001"
    source = DoubleExamples(records=records, tokenizer=wmt, bucket_bounds=(64, 128)).open()
    assert source.length_NxC.shape == (200, 4)
    columns = [np.split(ragged.token_T, np.cumsum(ragged.length_B)[:-1]) for ragged in source.take(np.arange(200))]
    # The other pair is one German sentence twice, without noise.
    for a, b in zip(columns[2], columns[3], strict=True):
        np.testing.assert_array_equal(a, b)
    texts = [[wmt.decode(row[None], [len(row) - 1])[0] for row in column] for column in columns]
    assert texts[0][57].startswith("For this reason , many photographers and graphic artists are considered")
    assert texts[1][57].startswith("Aus diesem Grund , viele Fotografen und Grafikern gelten")
    assert texts[2][57].startswith("Er wisse , dass diese Auseinandersetzung in der Koalition")
    # The ids are those that the tokenizer gives to the text, unless a character is unknown.
    for column, text in zip(columns, texts, strict=True):
        for row, again in zip(column, wmt.encode_ragged(text), strict=True):
            assert row[-1] == wmt.eos_id
            assert np.array_equal(row, again) or wmt.unk_id in row
    # They are what is stored.
    stored = decode_example(open_records(records).read(np.array([57]))[0])
    for column, name in zip(columns, ("source_id", "target_label", "mono_source_id", "mono_target_label"), strict=True):
        np.testing.assert_array_equal(column[57], stored[name])
