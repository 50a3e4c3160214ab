"""Vocabularies made from text: what they are made from comes back, ids are as agreed, requests are checked."""

import gzip
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylingvo.data.tokenizers import SentencePieceTokenizer, VocabFileTokenizer, WpmTokenizer
from raylingvo.data.vocabulary import train_vocab
from raylingvo.errors import RequestError

TOKENIZERS = {
    "wpm": lambda file: WpmTokenizer(vocab_filepath=str(file)),
    "sentencepiece": lambda file: SentencePieceTokenizer(spm_model=str(file)),
    "words": lambda file: VocabFileTokenizer(token_vocab_filepath=str(file)),
}


def there_and_back(tokenizer, lines):
    rows = tokenizer.encode_ragged(lines)
    lens = np.array([len(row) for row in rows])
    ids = np.zeros((len(rows), lens.max(initial=0)), np.int32)
    ids[np.arange(ids.shape[1]) < lens[:, None]] = np.concatenate([np.empty(0, np.int32), *rows])
    return tokenizer.decode(ids, lens - 1)


def split_at_ascii_space(line):
    return " ".join(word.decode() for word in line.encode().split())


def some_lines(folder, language, n):
    lines = gzip.decompress((folder / "multi30k" / f"train.{language}.gz").read_bytes()).decode().split("\n")
    return lines[:n]


@pytest.mark.parametrize("language", ["en", "de"])
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_text_comes_back(test_data, tmp_path, kind, language):
    lines = some_lines(test_data, language, 3000)
    seen = []
    file = train_vocab(kind, lines, 1500, tmp_path / "new" / "v", progress=lambda *report: seen.append(report))
    assert file == tmp_path / "new" / "v" and [path.name for path in file.parent.iterdir()] == ["v"]
    tokenizer = TOKENIZERS[kind](file)
    assert tokenizer.vocab_size == 1500
    assert (tokenizer.unk_id, tokenizer.sos_id, tokenizer.eos_id) == (0, 1, 2)
    texts = there_and_back(tokenizer, lines)
    if kind == "wpm":
        assert texts == [split_at_ascii_space(line) for line in lines]
    elif kind == "sentencepiece":
        assert texts == [" ".join(unicodedata.normalize("NFKC", line).split()) for line in lines]
    else:
        unknown = sum(text.split().count("<unk>") for text in texts) / sum(len(text.split()) for text in texts)
        assert 0.0 < unknown < 0.2
    doing = {name: (done, total) for name, done, total in seen}
    assert doing.pop("reading") == (3000, 3000)
    assert doing == {"wpm": {"merging": (1497, 1497)}, "sentencepiece": {"training": (1, 1)}, "words": {}}[kind]
    again = train_vocab(kind, lines, 1500, tmp_path / "again")
    assert again.read_bytes() == file.read_bytes()


texts = st.lists(
    st.text(alphabet=st.one_of(st.sampled_from("aabc \t<s>"), st.characters(exclude_characters="\u2581")), max_size=12),
    min_size=1,
    max_size=12,
)


@given(lines=texts, size=st.integers(4, 80))
@settings(deadline=None, max_examples=100)
def test_any_text_comes_back_from_word_pieces(tmp_path_factory, lines, size):
    lines = [line.encode("utf-8", "ignore").decode() for line in lines]
    file = tmp_path_factory.getbasetemp() / "property.vocab"
    characters = {c for line in lines for c in split_at_ascii_space(line)} - {" "}
    if not characters:
        with pytest.raises(RequestError, match="there is no word in the text"):
            train_vocab("wpm", lines, size, file)
        return
    if size < 4 + len(characters):
        with pytest.raises(RequestError, match=f"the text has {len(characters)} characters, for which"):
            train_vocab("wpm", lines, size, file)
        size = 4 + len(characters)
    tokenizer = TOKENIZERS["wpm"](train_vocab("wpm", lines, size, file))
    assert tokenizer.vocab_size <= size
    assert there_and_back(tokenizer, lines) == [split_at_ascii_space(line) for line in lines]


@given(lines=texts, size=st.integers(4, 80))
@settings(deadline=None, max_examples=60)
def test_words_are_the_most_frequent(tmp_path_factory, lines, size):
    lines = [line.encode("utf-8", "ignore").decode() for line in lines]
    words = [word.decode() for line in lines for word in line.encode().split()]
    words = [word for word in words if word not in ("<unk>", "<s>", "</s>", "<UNK>", "<S>", "</S>")]
    if not words:
        return
    file = train_vocab("words", lines, size, tmp_path_factory.getbasetemp() / "property.words")
    expected = sorted(set(words), key=lambda word: (-words.count(word), word))[: size - 3]
    rows = [line.split("\t") for line in file.read_bytes().decode().split("\n")[:-1]]
    assert rows == [[word, str(i)] for i, word in enumerate(["<unk>", "<s>", "</s>", *expected])]
    TOKENIZERS["words"](file).encode(lines, 5)


def test_word_pieces_start_with_the_agreed_ids(tmp_path):
    file = train_vocab("wpm", ["ab ab abc", "b", "<S> <S>"], 100, tmp_path / "v")
    pieces = file.read_text().splitlines()
    assert pieces[:4] == ["<unk>", "<s>", "</s>", "\u2581"]
    assert pieces[4:10] == ["b", "a", "<", ">", "S", "c"]
    assert pieces[10:] == ["ab", "\u2581ab", "<S", "\u2581<S", "\u2581<S>"]  # nothing that occurs once, no <S>


def test_less_than_all_characters(tmp_path):
    lines = ["ab" * 50, "abz"]
    for kind in ("wpm", "sentencepiece"):
        tokenizer = TOKENIZERS[kind](train_vocab(kind, lines, 20, tmp_path / kind, character_coverage=0.98))
        assert 0 in tokenizer.encode_ragged(["z"])[0].tolist()
        assert 0 not in tokenizer.encode_ragged(["ab"])[0].tolist()


def test_lone_surrogates_are_unknown_text(tmp_path):
    for kind, tokenizer in TOKENIZERS.items():
        file = train_vocab(kind, ["ab \ud800 ab", "ab"], 30, tmp_path / kind)
        assert there_and_back(tokenizer(file), ["ab"]) == ["ab"]


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_wrong_requests(tmp_path, kind):
    out = tmp_path / "v"
    for lines, size, more, message in [
        (["a"], 3, {}, r"the size of a vocabulary must be > 3, its special ids \(got 3\)"),
        (["a"], 10, {"character_coverage": 0.0}, r"character_coverage must be in \(0, 1\] \(got 0.0\)"),
        ([], 10, {}, "there is no word in the text to make a vocabulary from; name other files"),
        (["", " \t"], 10, {}, "there is no word in the text"),
    ]:
        with pytest.raises(RequestError, match=message):
            train_vocab(kind, lines, size, out, **more)
        assert not out.exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match=r"cannot write .*file/v: "):
        train_vocab(kind, ["a b c d e f g h"], 30, tmp_path / "file" / "v")


def test_an_unknown_kind(tmp_path):
    with pytest.raises(RequestError, match=r"must be one of sentencepiece, wpm, words \(got 'bpe'\)"):
        train_vocab("bpe", ["a"], 10, tmp_path / "v")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("error", [KeyboardInterrupt(), RequestError("x.txt: record 7: corrupt")])
def test_what_stops_the_text_is_raised_as_it_is(tmp_path, kind, error):
    def lines():
        yield "a"
        raise error

    with pytest.raises(type(error)) as raised:
        train_vocab(kind, lines(), 30, tmp_path / "v")
    assert raised.value is error


def test_a_failure_leaves_the_former_vocabulary(tmp_path):
    file = train_vocab("words", ["a"], 10, tmp_path / "v")
    before = file.read_bytes()

    def lines():
        yield "b"
        raise RequestError("corrupt")

    for kind in TOKENIZERS:
        with pytest.raises(RequestError, match="corrupt"):
            train_vocab(kind, lines(), 30, file)
    assert file.read_bytes() == before and [path.name for path in tmp_path.iterdir()] == ["v"]
