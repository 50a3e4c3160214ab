"""The Brown corpus: sentences from tokens, what is left out, the split; a zip as NLTK's, made on the spot."""

import random
import zipfile

import pytest

from raylingvo.data.prepare import brown, prepare

WORDS = ["Apple", "Bread", "Cider", "Dough"]


def corpus(sentences):
    rows = "".join(f"<s n='{i}'>{sentence}</s>" for i, sentence in enumerate(sentences))
    body = f"<TEI><teiHeader/><text><body><p>{rows}</p></body></text></TEI>"
    return f'<teiCorpus xmlns="http://www.tei-c.org/ns/1.0">{body * 2}</teiCorpus>'  # all of them twice


@pytest.fixture
def archive(tmp_path):
    """archive(sentences): brown_tei.zip; its path."""

    def write(sentences, name=brown.CORPUS):
        with zipfile.ZipFile(tmp_path / "brown_tei.zip", "w", zipfile.ZIP_DEFLATED) as files:
            files.writestr(name, corpus(sentences))
        return tmp_path / "brown_tei.zip"

    return write


def numbered(n):
    return [f"<w type='NN'>{WORDS[i % 4]}</w> <w>{i}</w><c type='pct'>.</c>" for i in range(n)]


@pytest.mark.parametrize("folder", [False, True])
def test_distinct_sentences_are_shuffled_and_split(root, archive, folder):
    path = archive([*numbered(40), "<c>.</c>", ""])
    expected = sorted(f"{WORDS[i % 4]} {i}." for i in range(40))
    random.seed(1234)
    random.shuffle(expected)
    lines = prepare("brown", path.parent if folder else path)
    assert lines == [f"{root}/brown/train.txt: 38 sentences", f"{root}/brown/test.txt: 2 sentences"]
    found = [(root / "brown" / f"{split}.txt").read_text().splitlines() for split in ("train", "test")]
    assert found == [expected[:38], expected[38:]]


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        ("w:said w:Friday c:`` w:no w:evidence c:'' w:that c:.", 'said Friday "no evidence" that.'),
        ("w:a c:( w:b c:, w:c c:) w:d c:[ w:e c:] c:;", "a (b, c) d [e];"),
        ("w:so c:-- w:or c:- w:not c:.", "so -- or - not."),
        ("w:he c:' w:well c:' w:said", "he 'well 'said"),
        ("c:`` w:Yes c:, c:'' w:she w:said", '"Yes," she said'),
        ("w:a note:left-out w:b", "a b"),
    ],
)
def test_tokens_become_text(tokens, text):
    assert brown.joined([tuple(token.split(":", 1)) for token in tokens.split()]) == text


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("so what??", "So what?"),
        ("no -- really;; yes,, ** a::b!!", "No - really; yes, * a:b!"),
        ('"all quoted"', "All quoted"),
        ("(all of it)", "All of it"),
        ("[a]", "A"),
        ("1961 was it.", "1961 was it."),
        ('"a" and b', ""),  # does not start with a letter
        ("(a) b", ""),
        ("- a", ""),
        ("1961.", ""),
        ('a "b', ""),
        ("a (b", ""),
        ("a b]", ""),
        ("", ""),
    ],
)
def test_sentences_are_tidied_or_left_out(text, sentence):
    assert brown.tidied(text) == sentence


def test_what_cannot_be_read_is_refused(root, archive, tmp_path, refusal):
    assert refusal("brown", tmp_path) == f"cannot read --from {tmp_path}/brown_tei.zip: No such file or directory"
    path = archive(numbered(40), name="Corpus.xml")
    assert refusal("brown", path) == f"--from {path} has no brown_tei/Corpus.xml"
    path = archive(["<w>"])
    assert refusal("brown", path).startswith(f"--from {path} is damaged or cut short: mismatched tag")
    path.write_bytes(path.read_bytes()[:-30])
    assert refusal("brown", path).startswith(f"--from {path} is damaged or cut short: ")
    assert refusal("brown", archive(["<c>.</c>"])) == f"0 sentences are too few to split into {root}/brown/*.txt"
    assert not list(root.rglob("*.txt"))


def test_another_download_is_refused(root, archive, monkeypatch, refusal):
    path = archive(numbered(40))
    monkeypatch.setattr(
        brown,
        "PUBLISHED",
        brown._download.Published(name="brown_tei.zip", urls=(path.as_uri(),), checksum=brown.PUBLISHED.checksum),
    )
    message = refusal("brown", None)
    assert message.startswith(f"cannot download brown_tei.zip ({path.as_uri()}: SHA-256 is ")
    assert message.endswith("get brown_tei.zip elsewhere and run: raylingvo data prepare brown --from PATH")
    assert not root.exists()
