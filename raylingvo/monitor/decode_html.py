"""The page of `runs compare --decode`: one HTML file that needs nothing else."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from raylingvo.errors import RequestError
from raylingvo.monitor import text
from raylingvo.monitor.decode_compare import Column, Comparison, Example, Output, best_text
from raylingvo.monitor.web_page import web_page

# Words, single characters of scripts that put no space between words, punctuation, and white space.
_CJK = "\u2e80-\u9fff\uf900-\ufaff"
_PIECES = re.compile(rf"\s+|[{_CJK}]|[^\W{_CJK}]+|[^\w\s]")

_STYLE = """
dt, summary { color: var(--dim); font-size: .85rem; }
form { position: sticky; top: 0; display: flex; flex-wrap: wrap; gap: .5rem 1rem; align-items: center;
  padding: .5rem 0; background: var(--page); }
input[type=search], select { font: inherit; padding: .2rem .4rem; max-width: 100%; }
article { background: var(--card); border: 1px solid var(--line); border-radius: .4rem; padding: .6rem .8rem;
  margin: .6rem 0; content-visibility: auto; contain-intrinsic-size: auto 9rem; }
article > header { display: flex; gap: 1rem; justify-content: space-between; }
dl { margin: 0; } dd { margin: 0 0 .25rem; overflow-wrap: anywhere; white-space: pre-wrap; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); gap: .5rem 1.2rem;
  border-top: 1px solid var(--line); padding-top: .4rem; }
.columns > section { min-width: 0; }
mark { background: var(--mark); color: inherit; border-radius: .15rem; }
.up { color: var(--up); } .down { color: var(--down); }
[hidden] { display: none; }
"""

_SCRIPT = """
const rows = [...document.querySelectorAll("article")], main = document.querySelector("main");
const form = document.querySelector("form"), shown = document.getElementById("shown");
const number = (row, name) => row.dataset[name] === undefined ? NaN : Number(row.dataset[name]);
const orders = {
  order: row => number(row, "order"),
  worse: row => number(row, "difference"),
  better: row => -number(row, "difference"),
  far: row => -Math.abs(number(row, "difference")),
  low: row => number(row, "score"),
};
function show() {
  const key = orders[form.sort.value], wanted = form.find.value.toLowerCase();
  const last = value => Number.isNaN(value) ? Infinity : value;
  rows.sort((a, b) => last(key(a)) - last(key(b)) || number(a, "order") - number(b, "order"));
  let count = 0;
  for (const row of rows) {
    row.hidden = form.differ.checked && number(row, "same") === 1
      || !!wanted && !row.textContent.toLowerCase().includes(wanted);
    count += !row.hidden;
  }
  main.append(...rows);
  shown.value = count + " of " + rows.length;
}
form.addEventListener("input", show);
form.addEventListener("submit", event => event.preventDefault());
show();
"""


def write_page(comparison: Comparison, out: Path) -> Path:
    """Writes the page, UTF-8, and creates its folder. Raises RequestError if it cannot be written."""
    out = Path(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        # Lone surrogates, which JSON can say, are not text.
        out.write_bytes(page(comparison).encode("utf-8", "replace"))
    except OSError as error:
        raise RequestError(f"--out {out} cannot be written: {error.strerror}") from error
    return out


def page(comparison: Comparison) -> str:
    """The HTML: what is compared, and a card for each example with a column for each step."""
    title = f"{comparison.dataset}: {', '.join(column.name for column in comparison.columns)}"
    sort = "".join(
        f'<option value="{value}">{label}</option>'
        for value, label in [
            ("order", "as in the dataset"),
            ("worse", "most lost first"),
            ("better", "most gained first"),
            ("far", "most different first"),
            ("low", "lowest last score first"),
        ]
    )
    cards = "".join(_card(comparison.columns, i, example) for i, example in enumerate(comparison.examples))
    body = (
        f"{_facts(comparison)}\n"
        f'<form><label>Order <select name="sort">{sort}</select></label>'
        '<label>Find <input type="search" name="find"></label>'
        '<label><input type="checkbox" name="differ"> only where outputs differ</label>'
        '<output id="shown"></output></form>\n'
        '<p class="dim">Beside each output: chrF of that sentence, 0 to 100; beside each example: the last one less '
        "the first. <mark>Marked</mark>: words that are not in the reference, or elsewhere.</p>\n"
        f"<main>{cards}</main>\n"
    )
    return web_page(title, body, style=_STYLE, script=_SCRIPT)


def _facts(comparison: Comparison) -> str:
    """Runs, scores and settings, a column for each."""
    columns = comparison.columns
    rows = [
        ("run", [column.run.id for column in columns]),
        ("experiment", [str(column.run.info.get("experiment", "")) for column in columns]),
        ("logdir", [str(column.folder) for column in columns]),
        ("step", [str(column.step) for column in columns]),
    ]
    for name in dict.fromkeys(name for column in columns for name in column.metrics):
        values = [text.metric(name, c.metrics[name]) if name in c.metrics else "" for c in columns]
        rows.append((name, values))
    for name in dict.fromkeys(name for column in columns for name in column.signatures):
        rows.append((f"signature of {name}", [column.signatures.get(name, "") for column in columns]))
    for key, values in comparison.settings.items():
        rows.append((key, [str(values.get(column.name, "absent")) for column in columns]))
    head = "".join(f'<th scope="col">{escape(column.name)}</th>' for column in columns)
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{escape(value)}</td>" for value in values)}</tr>'
        for name, values in rows
    )
    return f'<div class="wide"><table><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _card(columns: Sequence[Column], order: int, example: Example) -> str:
    same = all(own is not None and _shown(own) == _shown(example.own[0]) for own in example.own)
    data = {"order": order, "same": int(same), "difference": example.difference, "score": example.scores[-1]}
    attributes = "".join(f' data-{name}="{round(value, 4)}"' for name, value in data.items() if value is not None)
    reference = example.common.get("reference")
    cells = "".join(
        f'<section><p class="dim">{escape(column.name)}{_score(score)}</p>{_cell(own, reference)}</section>'
        for column, own, score in zip(columns, example.own, example.scores, strict=True)
    )
    return (
        f'<article{attributes}><header><span class="dim">{escape(example.key)}</span>'
        f"{_difference(example.difference)}</header>"
        f'{_fields(example.common)}<div class="columns">{cells}</div></article>\n'
    )


def _shown(own: Output | None) -> Any:
    """What makes two outputs differ: of hypotheses the best one's text."""
    return own if own is None or best_text(own) is None else {**own, "hypotheses": best_text(own)}


def _score(score: float | None) -> str:
    return "" if score is None else f" &nbsp; {score:.1f}"


def _difference(difference: float | None) -> str:
    if difference is None:
        return ""
    kind = "up" if difference > 0 else "down" if difference < 0 else "dim"
    return f'<span class="{kind}">{difference:+.1f}</span>'


def _cell(own: Output | None, reference: Any) -> str:
    if own is None:
        return '<p class="dim">no output</p>'
    best = best_text(own)
    if best is None:
        return _fields(own)
    rest = {name: value for name, value in own.items() if name != "hypotheses"}
    reference = rest.get("reference", reference)
    shown = _marked(best, reference) if isinstance(reference, str) else escape(best)
    hypotheses = own["hypotheses"]
    cell = f'{_fields(rest)}<p dir="auto">{shown or _dim("nothing")}</p>'
    if len(hypotheses) > 1:
        items = "".join(f'<li dir="auto">{escape(str(h["text"]))}{_log_score(h)}</li>' for h in hypotheses)
        cell += f"<details><summary>{len(hypotheses)} hypotheses</summary><ol>{items}</ol></details>"
    return cell


def _log_score(hypothesis: Mapping[str, Any]) -> str:
    score = hypothesis.get("score")
    return _dim(f" {text.number(score)}") if isinstance(score, int | float) else ""


def _dim(words: str) -> str:
    return f'<span class="dim">{escape(words)}</span>'


def _fields(output: Output) -> str:
    if not output:
        return ""
    items = "".join(f'<dt>{escape(name)}</dt><dd dir="auto">{_value(value)}</dd>' for name, value in output.items())
    return f"<dl>{items}</dl>"


def _value(value: Any) -> str:
    return escape(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _marked(hypothesis: str, reference: str) -> str:
    """The hypothesis, with marks around what the reference has not, or not in that place."""
    pieces = _PIECES.findall(hypothesis)
    words = [i for i, piece in enumerate(pieces) if not piece.isspace()]
    matcher = difflib.SequenceMatcher(None, [pieces[i] for i in words], _words(reference), autojunk=False)
    kept = {words[i] for block in matcher.get_matching_blocks() for i in range(block.a, block.a + block.size)}
    new = set(words) - kept
    # White space between marked words is marked too, to make them one.
    new |= {i for i in range(1, len(pieces) - 1) if pieces[i].isspace() and i - 1 in new and i + 1 in new}
    return "".join(_runs(pieces, new))


def _words(sentence: str) -> list[str]:
    return [piece for piece in _PIECES.findall(sentence) if not piece.isspace()]


def _runs(pieces: Sequence[str], marked: set[int]) -> Iterable[str]:
    is_open = False
    for i, piece in enumerate(pieces):
        if (i in marked) != is_open:
            is_open = not is_open
            yield "<mark>" if is_open else "</mark>"
        yield escape(piece)
    if is_open:
        yield "</mark>"
