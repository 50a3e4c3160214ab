"""Datasets of text: what is in a batch reads as what was in the file; damaged records, wrong names, aligned files."""

import dataclasses
import gzip
import json

import numpy as np
import pytest

from raylingvo import config
from raylingvo.data.dataset import Dataset
from raylingvo.data.mixing import MixWithinBatches
from raylingvo.data.records import write_records
from raylingvo.data.text import TextLines, TextPairs, TokenPairs
from raylingvo.data.tf_example import encode_example
from raylingvo.data.tokenizers import (
    AsciiTokenizer,
    SentencePieceTokenizer,
    T2tSubwordTokenizer,
    VocabFileTokenizer,
    WpmTokenizer,
)
from raylingvo.errors import RequestError

ASCII = AsciiTokenizer()
PAIRS = [(f"the number {i}", f"die zahl {i}" + " und mehr" * (i % 3)) for i in range(50)]
COMMON = {"source_tokenizer": ASCII, "target_tokenizer": ASCII, "bucket_bounds": (16, 32, 64)}


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYLINGVO_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def decoded(tokenizer, ids, paddings):
    return tokenizer.decode(ids, (paddings == 0).sum(axis=1) - 1)  # without the end of the sentence


def read_all(dataset, batch_size=4):
    batches = dataset.eval_batches(batch_size)
    return [batches[k] for k in range(len(batches))]


def texts(dataset):
    """id -> the pair, as the model sees it."""
    found = {}
    for batch in read_all(dataset):
        source = decoded(dataset.source_tokenizer, batch["src_ids"], batch["src_paddings"])
        target = decoded(dataset.target_tokenizer, batch["tgt_labels"], batch["tgt_paddings"])
        for row in np.flatnonzero(batch["weight"]):
            found[int(batch["id"][row])] = source[row], target[row]
    return found


def test_the_same_pairs_from_every_format(data):
    write_records("pairs.tsv", [f"{a}\t{b}".encode() for a, b in PAIRS])
    write_records("pairs.parquet", [{"en": a, "de": b} for a, b in PAIRS])
    write_records("pairs.jsonl", [{"en": a, "de": b} for a, b in PAIRS])
    for name, index in (("en.txt", 0), ("de.txt", 1)):
        write_records(name, [pair[index].encode() for pair in PAIRS])
    datasets = [
        TextPairs(records="pairs.tsv", source="0", target="1", **COMMON),
        TextPairs(records="pairs.parquet", source="en", target="de", **COMMON),
        TextPairs(records="pairs.jsonl", source="en", target="de", **COMMON),
        TextPairs(records="en.txt", target_records="de.txt", source="", target="", **COMMON),
    ]
    for dataset in datasets:
        dataset.check()
        assert texts(dataset) == dict(enumerate(PAIRS))


def test_lines_are_predicted_from_what_stands_before(data):
    write_records("lines.txt", [a.encode() for a, _ in PAIRS])
    dataset = TextLines(records="lines.txt", tokenizer=ASCII, bucket_bounds=(32,))
    batch = dataset.train_batches(8, 0)[0]
    assert set(batch) == {"ids", "labels", "paddings", "id", "weight"}
    assert decoded(ASCII, batch["labels"], batch["paddings"]) == [PAIRS[i][0] for i in batch["id"]]
    assert (batch["ids"][:, 0] == ASCII.sos_id).all()
    real = batch["paddings"][:, 1:] == 0
    np.testing.assert_array_equal(batch["ids"][:, 1:][real], batch["labels"][:, :-1][real])


def test_packed_rows_hold_whole_pairs(data):
    write_records("pairs.tsv", [f"{a}\t{b}".encode() for a, b in PAIRS])
    settings = {**COMMON, "bucket_bounds": (), "packed_lengths": (64, 96)}
    batch = TextPairs(records="pairs.tsv", source="0", target="1", **settings).train_batches(6, 0)[0]
    for row in range(6):
        for segment in range(1, batch["src_segment_ids"][row].max() + 1):
            source = batch["src_ids"][row][batch["src_segment_ids"][row] == segment]
            target = batch["tgt_labels"][row][batch["tgt_segment_ids"][row] == segment]
            pair = tuple(ASCII.decode(x[None], [len(x) - 1])[0] for x in (source, target))
            assert pair in PAIRS


def test_files_of_different_length_are_refused(data):
    write_records("en.txt", [b"a", b"b"])
    write_records("de.txt", [b"a", b"b", b"c"])
    dataset = TextPairs(records="en.txt", target_records="de.txt", source="", target="", **COMMON)
    with pytest.raises(RequestError, match=r"do not belong together: 2 records .*en\.txt.* but 3 .*de\.txt"):
        dataset.open()


@pytest.mark.parametrize(
    ("record", "message"),
    [({"de": "b"}, "there is no field 'en'; it has de"), ({"en": 1, "de": "b"}, "field 'en' is not text .got 1.")],
)
def test_a_record_without_its_text_is_named(data, record, message):
    write_records("pairs.jsonl", [{"en": "a", "de": "b"}, record])
    dataset = TextPairs(records="pairs.jsonl", source="en", target="de", **COMMON)
    with pytest.raises(RequestError, match=rf"pairs\.jsonl: record 1.*: {message}; max_bad_records is 0$"):
        dataset.open()


def test_a_field_that_there_is_not_is_a_wrong_setting(data):
    write_records("pairs.jsonl", [{"en": "a", "de": "b"}])
    write_records("pairs.tsv", [b"a\tb"])
    write_records("ids.tfrecord", [encode_example({"inputs": [1], "targets": [2]})])
    settings = {"bucket_bounds": (8,), "max_bad_records": 5}
    for dataset, message in (
        (TextLines(records="pairs.jsonl", field="fr", tokenizer=ASCII, **settings), "'fr'; it has en, de"),
        (TextLines(records="pairs.jsonl", tokenizer=ASCII, **settings), "''; it has en, de"),
        (TextLines(records="pairs.tsv", field="en", tokenizer=ASCII, **settings), "'en'; it has 2 tab-separated"),
        (TokenPairs(records="ids.tfrecord", source="in", **settings), "'in'; it has inputs, targets"),
    ):
        with pytest.raises(RequestError, match=f": there is no field {message}") as error:
            dataset.open()
        assert "max_bad_records" not in str(error.value)


def test_text_in_tf_examples(data):
    write_records("pairs.tfrecord", [encode_example({"en": a, "de": b}) for a, b in PAIRS])
    dataset = TextPairs(records="pairs.tfrecord", source="en", target="de", **COMMON)
    assert texts(dataset) == dict(enumerate(PAIRS))


@pytest.mark.parametrize("wrong", [-1, 1 << 31])
def test_an_id_that_is_none_is_a_bad_record(data, wrong):
    write_records("ids.tfrecord", [encode_example({"inputs": [1, i], "targets": [2]}) for i in (3, wrong)])
    dataset = TokenPairs(records="ids.tfrecord", bucket_bounds=(8,))
    with pytest.raises(
        RequestError, match=rf"ids\.tfrecord: record 1.*an id must be in .*got {wrong}.*bad_records is 0"
    ):
        dataset.open()


def test_what_the_cache_depends_on(data, monkeypatch):
    write_records("lines.txt", [b"abc", b"de"])
    (data / "v").write_text("<unk>\n<s>\n</s>\nabc\n")
    dataset = TextLines(
        records="lines.txt",
        tokenizer=VocabFileTokenizer(token_vocab_filepath="v", load_token_ids_from_vocab=False),
        bucket_bounds=(8,),
    )
    keys = [dataset._key()]
    assert dataset._key() == keys[0] == dataclasses.replace(dataset, bucket_bounds=(4,), max_bad_records=3)._key()
    keys.append(Reversed(**vars(dataset))._key())
    with monkeypatch.context() as patch:
        patch.setattr(TextLines, "_VERSION", 2)
        keys.append(dataset._key())
    with monkeypatch.context() as patch:
        patch.setattr("raylingvo.__version__", "99")
        keys.append(dataset._key())
    (data / "v").write_text("<unk>\n<s>\n</s>\nde\nabc\n")
    keys.append(dataset._key())
    assert len(set(keys)) == len(keys)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reversed(TextLines):
    """The same settings, other tokens."""

    def _parser(self):
        parse = super()._parser()
        return lambda records: [[x[::-1] for x in column] for column in parse(records)]


def test_classes_of_the_same_settings_do_not_share(data):
    write_records("lines.txt", [b"abc", b"de"])
    settings = {"records": "lines.txt", "tokenizer": ASCII, "bucket_bounds": (8,)}
    plain, turned = (kind(**settings).open().take(np.arange(2))[0].token_T for kind in (TextLines, Reversed))
    assert plain.tolist() == [5, 6, 7, 2, 8, 9, 2] and turned.tolist() == [2, 7, 6, 5, 2, 9, 8]


def test_a_vocabulary_that_changes_in_one_process(data):
    write_records("lines.txt", [b"a b", b"b"])
    tokenizer = VocabFileTokenizer(token_vocab_filepath="v", load_token_ids_from_vocab=False, append_eos=False)
    dataset = TextLines(records="lines.txt", tokenizer=tokenizer, bucket_bounds=(8,))
    for words, expected in (("a\nb", [3, 4, 4]), ("b\nlonger\na", [5, 3, 3])):
        (data / "v").write_text(f"<unk>\n<s>\n</s>\n{words}\n")
        for again in (dataset, dataclasses.replace(dataset, tokenizer=dataclasses.replace(tokenizer))):
            assert again.open().take(np.arange(2))[0].token_T.tolist() == expected


def test_checking_and_opening_again_read_no_records(data, monkeypatch):
    for name, index in (("en.txt", 0), ("de.txt", 1)):
        write_records(name, [pair[index].encode() for pair in PAIRS])
    dataset = TextPairs(records="en.txt", target_records="de.txt", source="", target="", **COMMON)
    expected = dataset.train_batches(4, 0)[0]
    with monkeypatch.context() as patch:
        patch.setattr("raylingvo.data.text.open_records", None)
        dataset.check()
        np.testing.assert_equal(dataset.train_batches(4, 0)[0], expected)
    write_records("de.txt", [pair[0].encode() for pair in PAIRS])  # either file counts
    assert texts(dataset) == {i: (a, a) for i, (a, _) in enumerate(PAIRS)}
    (data / "de.txt").unlink()
    with pytest.raises(RequestError, match=r"de\.txt"):
        dataset.check()


@pytest.mark.parametrize(
    "tokenizer",
    [WpmTokenizer(vocab_filepath="v", merge_prob=0.9), SentencePieceTokenizer(spm_model="m", nbest_size=-1)],
)
def test_ids_that_would_be_drawn_once_are_refused(tokenizer):
    with pytest.raises(ValueError, match="ids are made once and kept, so a tokenizer must draw nothing at random"):
        TextLines(records="x", tokenizer=tokenizer, bucket_bounds=(4,))
    with pytest.raises(ValueError, match=r"set nbest_size=0 or merge_prob=1\.0"):
        TextPairs(records="x", source="0", target="1", **(COMMON | {"target_tokenizer": tokenizer}))


def test_bad_records_are_counted_within_the_budget(data):
    lines = [json.dumps({"en": a, "de": b}).encode() for a, b in PAIRS]
    lines[3], lines[40] = b"{", b'{"en": "x"}'
    (data / "pairs.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    dataset = TextPairs(records="pairs.jsonl", source="en", target="de", max_bad_records=2, **COMMON)
    batches = dataset.train_batches(4, 0)
    assert batches.facts["num_bad_records"] == 2
    good = [pair for i, pair in enumerate(PAIRS) if i not in (3, 40)]
    assert list(texts(dataset).values()).__len__() == 48
    assert set(texts(dataset).values()) == set(good)


def test_changed_files_and_settings_are_read_again(data):
    write_records("pairs.tsv", [f"{a}\t{b}".encode() for a, b in PAIRS])
    dataset = TextPairs(records="pairs.tsv", source="0", target="1", **COMMON)
    texts(dataset)
    turned = dataclasses.replace(dataset, source="1", target="0")
    assert texts(turned)[0] == PAIRS[0][::-1]
    write_records("pairs.tsv", [b"new\tneu"])
    assert texts(dataset) == {0: ("new", "neu")}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bucket_bounds": ()}, "one of bucket_bounds and packed_lengths must be given"),
        ({"packed_lengths": (3, 3)}, "and not both"),
        ({"bucket_bounds": (8, 8)}, "bucket_bounds must be > 0 and increasing"),
        ({"bucket_batch_sizes": (8,)}, "a number for each of the 3 bucket_bounds"),
        ({"bucket_batch_sizes": (8, 0, 1)}, "bucket_batch_sizes must be >= 1"),
        ({"max_bad_records": -1}, "max_bad_records must be >= 0"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        TextPairs(records="x", source="0", target="1", **(COMMON | settings))


def test_missing_data_and_vocabularies_are_named(data):
    with pytest.raises(RequestError, match=r"nowhere\.tsv"):
        TextPairs(records="nowhere.tsv", source="0", target="1", **COMMON).check()
    write_records("lines.txt", [b"a"])
    tokenizer = SentencePieceTokenizer(spm_model="nowhere.model")
    with pytest.raises(RequestError, match=r"nowhere\.model"):
        TextLines(records="lines.txt", tokenizer=tokenizer, bucket_bounds=(4,)).check()


def test_a_dataset_is_plain_data():
    dataset = TextPairs(records="x", source="0", target="1", **COMMON)
    text = config.dump(dataset)
    again = config.load(text, TextPairs)
    assert again == dataset
    assert isinstance(again, Dataset)
    assert config.dump(again) == text


@pytest.mark.data
def test_the_wmt_pairs_read_as_text(test_data):
    tokenizer = T2tSubwordTokenizer(vocab_filepath=str(test_data / "vocab/mlperf.ende.subwords.vocab"))
    dataset = TokenPairs(
        records=f"tfrecord:{test_data}/wmt/translate_ende_wmt32k-train-00511-of-00512",
        bucket_bounds=(16, 32, 64, 128, 256),
    )
    source = dataset.open()
    assert len(source.length_NxC) == 8941
    english, german = source.take(np.arange(8941))
    assert english.token_T.max() < tokenizer.vocab_size
    batch = dataset.train_batches(32, 0)[0]
    found = tokenizer.decode(batch["src_ids"], (batch["src_paddings"] == 0).sum(axis=1) - 1)
    words = " ".join(found).lower().split()
    assert len(set(words) & {"the", "of", "and", "to", "in", "is"}) >= 4
    assert german.length_B.min() >= 1


@pytest.mark.data
def test_the_text_of_the_wmt_pairs_gives_their_ids_again(test_data):
    tokenizer = T2tSubwordTokenizer(vocab_filepath=str(test_data / "vocab/mlperf.ende.subwords.vocab"))
    records = f"tfrecord:{test_data}/wmt/translate_ende_wmt32k-train-00511-of-00512"
    stored = TokenPairs(records=records, bucket_bounds=(512,)).open().take(np.arange(1000))
    sides = [np.split(side.token_T, np.cumsum(side.length_B)[:-1]) for side in stored]
    text = [[tokenizer.decode(row[None], [len(row) - 1])[0] for row in side] for side in sides]
    write_records("pairs.parquet", [{"en": a, "de": b} for a, b in zip(*text, strict=True)])
    dataset = TextPairs(
        records="pairs.parquet",
        source="en",
        target="de",
        source_tokenizer=tokenizer,
        target_tokenizer=tokenizer,
        bucket_bounds=(512,),
    )
    for side, again in zip(stored, dataset.open().take(np.arange(1000)), strict=True):
        np.testing.assert_array_equal(again.token_T, side.token_T)
        np.testing.assert_array_equal(again.length_B, side.length_B)
    batch = dataset.eval_batches(2)[0]
    assert (batch["tgt_ids"][:, 0] == 0).all()  # <pad>, as MLPerf starts sentences
    ends = (batch["tgt_paddings"] == 0).sum(axis=1) - 1
    assert (batch["tgt_labels"][np.arange(2), ends] == 1).all()  # <EOS>
    assert (batch["tgt_labels"][batch["tgt_paddings"] == 1] == 0).all()


def test_a_tsv_and_files_side_by_side_are_mixed_by_weight(data):
    """As with back-translations: some pairs of people, some whose source a machine made."""
    write_records("pairs.tsv", [f"{a}\t{b}".encode() for a, b in PAIRS])
    for name, index in (("made.en", 0), ("mono.de", 1)):
        write_records(name, [f"x{pair[index]}".encode() for pair in PAIRS], "text")
    human = TextPairs(records="pairs.tsv", source="0", target="1", **COMMON)
    machine = TextPairs(records="made.en", target_records="mono.de", source="", target="", **COMMON)
    batches = MixWithinBatches(datasets=(human, machine), weights=(3.0, 1.0)).train_batches(8, 0)
    source_id, made = [], []
    for k in range(50):
        source_id.extend(batches[k]["source_id"])
        made.extend(batches[k]["src_ids"][:, 0] == ASCII.encode_ragged(["x"])[0][0])
    np.testing.assert_array_equal(made, np.array(source_id) == 1)
    assert 0.2 < np.mean(made) < 0.3


@pytest.mark.data
def test_multi30k_from_gzipped_text(test_data):
    tokenizer = SentencePieceTokenizer(spm_model=str(test_data / "vocab/en-1k.spm.model"))
    lines = gzip.decompress((test_data / "multi30k/val.en.gz").read_bytes()).decode().splitlines()
    dataset = TextPairs(
        records=str(test_data / "multi30k/val.en.gz"),
        target_records=str(test_data / "multi30k/val.de.gz"),
        source="",
        target="",
        source_tokenizer=tokenizer,
        target_tokenizer=tokenizer,
        bucket_bounds=(32, 64, 128, 256),
    )
    batch = dataset.train_batches(16, 0)[0]
    found = decoded(tokenizer, batch["src_ids"], batch["src_paddings"])
    expected = tokenizer.decode(*_padded(tokenizer, [lines[i] for i in batch["id"]]))
    assert found == expected


def _padded(tokenizer, strings):
    _, labels, paddings = tokenizer.encode(strings, 300)
    return labels, (paddings == 0).sum(axis=1) - 1
