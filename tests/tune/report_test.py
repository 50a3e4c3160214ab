"""The page holds everything, says it as text and not as HTML, and needs nothing from elsewhere."""

import base64
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from toy_sweep import sweep, trial

from raylingvo.tune.report import _SCRIPT, page, write

VOID = {"meta", "img"}
PNGS = {"metric_by_step.png": b"\x89PNG1", "params.png": b"\x89PNG2"}
NASTY = "<script>alert('x')</script> & \"q\""


class Tree(HTMLParser):
    """Checks that tags close in order, and keeps the text and the attributes of each element."""

    def __init__(self, html):
        super().__init__()
        self.open, self.elements = [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        element = {"tag": tag, "attrs": dict(attrs), "text": "", "within": list(self.open)}
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag):
        assert self.open.pop()["tag"] == tag

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data

    def all(self, tag, within=None):
        return [e for e in self.elements if e["tag"] == tag and (within is None or within in e["within"])]

    def rows(self, table):
        return [[cell["text"] for cell in self.all("td", row)] for row in self.all("tr", table)][1:]

    def facts(self):
        pairs = {}
        for row in self.all("tr"):
            head, cells = self.all("th", row), self.all("td", row)
            if len(head) == len(cells) == 1:
                pairs[head[0]["text"]] = cells[0]["text"]
        return pairs


@pytest.fixture
def three():
    failed = trial(2, 0.5, status="failed", step=15, error=f"ValueError: {NASTY}")
    return sweep(trial(0, 3.0, float("nan"), seconds=60.0), trial(1, 2.0, 1.0), failed)


def test_the_page_needs_nothing_from_elsewhere(three):
    html = page(three, PNGS)
    tree = Tree(html)
    assert not tree.all("link") and not tree.all("a") and not tree.all("iframe")
    sources = [e["attrs"][name] for e in tree.elements for name in ("src", "href", "srcset") if name in e["attrs"]]
    assert len(sources) == 2 and all(source.startswith("data:image/png;base64,") for source in sources)
    assert "url(" not in html and "@import" not in html and not re.search(r"https?://", html)
    assert "prefers-color-scheme: dark" in html


def test_pictures_are_embedded_in_their_order(three):
    images = Tree(page(three, PNGS)).all("img")
    assert [base64.b64decode(image["attrs"]["src"].partition(",")[2]) for image in images] == list(PNGS.values())
    assert [image["attrs"]["alt"] for image in images] == ["metric by step", "params"]


def test_what_was_asked_for_and_how_it_stands(three):
    done = sweep(*three.trials, status="interrupted", ended=3605.0, stop_reason="time is up")
    tree = Tree(page(done, PNGS))
    assert tree.all("title")[0]["text"] == tree.all("h1")[0]["text"] == "Sweep of toy.Toy: min test/loss"
    facts = tree.facts()
    assert facts["status"] == "interrupted (time is up)"
    assert facts["trials"] == "2 finished, 1 failed"
    assert facts["ended"].endswith("after 1:00:00")
    assert facts["trained"] == "0:01:00 in all trials"
    assert facts["params: learner.lr"] == "loguniform(1e-4, 1)"
    assert (facts["scheduler"], facts["samples"]) == ("asha", "40")
    assert "seed" not in facts


def test_the_best_configuration_is_exact(three):
    tree = Tree(page(three, PNGS))
    facts = tree.facts()
    assert facts["trial"] == "0001 (finished), trials/0001"
    assert facts["test/loss"] == "1 at step 20"
    assert facts["learner.lr"] == repr(0.123456789 / 2)
    assert tree.all("pre")[0]["text"] == "raylingvo run --config best/config.yaml --logdir ..."
    assert not tree.all("ol")


def test_the_best_ones_changes_are_told(three):
    change = {"step": 10, "from_trial": 7, "params": {"learner.lr": 0.5}}
    tree = Tree(page(sweep(trial(0, 1.0, changes=(change,))), PNGS))
    assert [item["text"] for item in tree.all("li")] == ["at step 10, from trial 0007: learner.lr=0.5"]


def test_the_leaderboard(three):
    tree = Tree(page(three, PNGS))
    (table,) = [table for table in tree.all("table") if table["attrs"].get("class") == "sortable"]
    heads = [head["text"] for head in tree.all("th", table)]
    assert heads[:6] == ["rank", "trial", "status", "test/loss", "best_step", "test/loss/last"]
    assert heads[6:] == ["step", "seconds", "learner.lr", "model.norm", "logdir"]
    rows = tree.rows(table)
    assert [row[:6] for row in rows] == [
        ["1", "0001", "finished", "1.0000", "20", "1.0000"],
        ["2", "0000", "finished", "3.0000", "10", "nan"],
        ["3", "0002", "failed", "0.5000", "10", "0.5000"],
    ]
    assert rows[0][6:] == ["20", "0.0000", "0.06173", "b", "trials/0001"]
    values = [cell["attrs"]["data-value"] for cell in tree.all("td", tree.all("tr", table)[2])]
    assert values == ["2", "0", "finished", "3.0", "10", "", "20", "60.0", "0.123456789", "a", "trials/0000"]
    assert [row["attrs"].get("class") for row in tree.all("tr", table)[1:]] == ["best", None, None]


def test_failed_trials_say_why_and_nothing_is_taken_for_html(three):
    request = {**three.request, "experiment": NASTY, "params": {NASTY: NASTY}}
    odd = trial(3, 9.0, params={NASTY: NASTY, "x": None}, stop_reason=NASTY)
    html = page(sweep(*three.trials, odd, request=request, stop_reason=NASTY), PNGS)
    tree = Tree(html)
    (table,) = [table for table in tree.all("table") if table["attrs"].get("class") == "failures"]
    ((number, step, error, _),) = tree.rows(table)
    assert (number, step, error) == ("0002", "15", f"ValueError: {NASTY}")
    assert len(tree.all("script")) == 1 and "<script>alert" not in html
    assert tree.facts()[f"params: {NASTY}"] == NASTY


def test_nothing_failed_and_nothing_is_there_yet():
    tree = Tree(page(sweep(trial(0, status="running")), {}))
    assert "Failed trials" not in [head["text"] for head in tree.all("h2")]
    assert "No trial has a value yet." in [p["text"] for p in tree.all("p")]
    assert not tree.all("pre")


def test_the_file_and_its_pictures(three, tmp_path):
    path = write(sweep(*three.trials, stop_reason="\ud800"), tmp_path)
    assert path == tmp_path / "report.html"
    images = Tree(path.read_text(encoding="utf-8")).all("img")
    embedded = [base64.b64decode(image["attrs"]["src"].partition(",")[2]) for image in images]
    names = ("metric_by_step.png", "parallel_coordinates.png", "params.png")
    assert embedded == [(tmp_path / name).read_bytes() for name in names]


# As much of a browser's document as the script asks for.
_DOCUMENT = """
const attribute = () => { const own = {}; return {getAttribute: n => own[n], setAttribute: (n, v) => own[n] = v,
  removeAttribute: n => delete own[n]}; };
const clicks = [];
const row = cells => ({cells: cells.map(value => ({dataset: {value}}))});
const head = {...attribute(), querySelector: () => ({addEventListener: (_, act) => clicks.push(act)})};
const body = {rows: ["10", "", "9", "1e-3", "2"].map(value => row([value])), append: (...rows) => body.rows = rows};
const document = {querySelectorAll: () => [{tHead: {rows: [{cells: [head]}]}, tBodies: [body]}]};
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node to run the page's script")
def test_a_click_sorts_by_number_and_what_is_absent_is_last():
    show = "clicks[0](); console.log(body.rows.map(row => row.cells[0].dataset.value).join());"
    done = subprocess.run(["node", "-e", _DOCUMENT + _SCRIPT + show + show], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["1e-3,2,9,10,", "10,9,2,1e-3,"], done.stderr
