"""The page holds everything, says it as text and not as HTML, and needs nothing from elsewhere."""

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from raylingvo.errors import RequestError
from raylingvo.monitor.decode_compare import Column, Comparison, Example
from raylingvo.monitor.decode_html import page, write_page
from raylingvo.monitor.runs import Run

VOID = {"meta", "input", "br"}


class Tree(HTMLParser):
    """Checks that tags close in order, and keeps the text and the attributes of each element by tag."""

    def __init__(self, html):
        super().__init__()
        self.open, self.elements = [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        element = {"tag": tag, "attrs": dict(attrs), "text": "", "within": [e["tag"] for e in self.open]}
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag):
        assert self.open.pop()["tag"] == tag

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data

    def all(self, tag):
        return [element for element in self.elements if element["tag"] == tag]


def column(name, **fields):
    run = Run(logdir=Path("/runs/a<b>"), info={"id": "id & co", "experiment": "mt.x"}, config_text="")
    fields = {"metrics": {"sacrebleu": 31.234}, "signatures": {"sacrebleu": "tok:13a|x"}} | fields
    return Column(name=name, run=run, folder=run.logdir, step=10, outputs={}, **fields)


def comparison(*examples, names=("a @ 10", "b @ 10"), **fields):
    columns = [column(name) for name in names]
    return Comparison(**{"dataset": "dev", "columns": columns, "settings": {}, "examples": examples} | fields)


def example(*texts, key="7", reference="ein Mann geht", **fields):
    own = [
        text if text is None else {"hypotheses": [{"text": text, "score": -0.5}, {"text": "other"}]} for text in texts
    ]
    common = {"source": "a man walks", "reference": reference}
    return Example(**{"key": key, "common": common, "own": own, "scores": [40.0, 52.5], "difference": 12.5} | fields)


def test_a_card_has_source_reference_and_hypotheses():
    tree = Tree(page(comparison(example("ein Mann", "ein Hund geht"))))
    (card,) = tree.all("article")
    for text in ("7", "+12.5", "a man walks", "ein Mann geht", "40.0", "52.5", "ein Hund geht"):
        assert text in card["text"]
    assert card["attrs"] == {"data-order": "0", "data-same": "0", "data-difference": "12.5", "data-score": "52.5"}
    assert [mark["text"] for mark in tree.all("mark") if "article" in mark["within"]] == ["Hund"]
    assert [(d["text"], "open" in d["attrs"]) for d in tree.all("summary")] == [("2 hypotheses", False)] * 2
    assert [li["text"] for li in tree.all("li")][:2] == ["ein Mann -0.5000", "other"]


def test_the_head_has_runs_scores_and_settings():
    tree = Tree(page(comparison(settings={"task.beam": {"a @ 10": "4"}})))
    rows = {row["text"] for row in tree.all("tr")}
    assert {"sacrebleu31.2331.23", "task.beam4absent", "runid & coid & co", "logdir/runs/a<b>/runs/a<b>"} <= rows
    assert "signature of sacrebleutok:13a|xtok:13a|x" in rows
    assert tree.all("h1")[0]["text"] == "dev: a @ 10, b @ 10"


def test_nothing_that_is_shown_becomes_html():
    evil = "<script>alert(1)</script>&amp;\"'<b>\x00"
    shown = example(evil, evil, key=evil, reference=evil, common={evil: evil, "list": [evil]})
    other = example(evil, evil, own=[{evil: {"x": evil}}, None])
    tree = Tree(page(comparison(shown, other, names=(evil, "b"), dataset=evil, settings={evil: {evil: evil}})))
    assert len(tree.all("script")) == 1
    assert tree.all("b") == []
    assert len(tree.all("article")) == 2
    assert evil[:-1] in tree.all("article")[0]["text"]


def test_words_of_any_script_are_marked():
    pairs = [
        ("我喜欢猫", "我喜欢狗", ["猫"]),
        ("Straße, ja", "Straße ja", [","]),
        ("", "x", []),
        ("a b c", "x", ["a b c"]),
    ]
    for hypothesis, reference, marks in pairs:
        tree = Tree(page(comparison(example(hypothesis, None, reference=reference), names=("a", "b"))))
        assert [mark["text"] for mark in tree.all("mark") if "article" in mark["within"]] == marks
        assert "no output" in tree.all("article")[0]["text"]


def test_outputs_of_other_tasks_are_names_and_values():
    other = example(common={"label": 3}, own=[{"p": [0.5, None]}, {"p": "é"}], scores=[None, None], difference=None)
    tree = Tree(page(comparison(other)))
    assert [d["text"] for d in tree.all("dd")] == ["3", "[0.5, null]", "é"]
    (card,) = tree.all("article")
    assert card["attrs"] == {"data-order": "0", "data-same": "0"}


def test_same_outputs_can_be_told():
    cards = [example("a", "a"), example("a", "b"), example("a", None), example(own=[{}, {}])]
    assert [a["attrs"]["data-same"] for a in Tree(page(comparison(*cards))).all("article")] == ["1", "0", "0", "1"]


def test_a_phone_without_a_network_can_show_it():
    html = page(comparison(example("a", "b")))
    tree = Tree(html)
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in [
        m["attrs"] for m in tree.all("meta")
    ]
    assert tree.all("meta")[0]["attrs"] == {"charset": "utf-8"}
    assert not {"src", "href"} & {name for element in tree.elements for name in element["attrs"]}
    assert "://" not in html
    assert "prefers-color-scheme: dark" in html


def test_the_file_is_utf8_also_of_half_characters(tmp_path):
    out = write_page(comparison(example("Größe \ud800", "x")), tmp_path / "new" / "page.html")
    assert "Größe ?" in out.read_text("utf-8")
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match=r"file/page\.html cannot be written: File exists"):
        write_page(comparison(), tmp_path / "file" / "page.html")


def test_reading_it_needs_no_heavy_package():
    script = "import sys, raylingvo.monitor.decode_html\n"
    script += "print({'matplotlib', 'jax', 'ray', 'sacrebleu'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
