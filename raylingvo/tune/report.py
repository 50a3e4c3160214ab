"""The page of a sweep, `report.html`: one file that needs nothing else."""

from __future__ import annotations

import base64
import datetime
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from raylingvo.monitor import text
from raylingvo.monitor.atomic import write_atomically
from raylingvo.monitor.web_page import web_page
from raylingvo.tune import pictures
from raylingvo.tune.record import Sweep, Trial, best_trial, columns, ranked, rows, value_text

REPORT = "report.html"

_STYLE = """
h2 { font-size: 1.05rem; margin: 1.4rem 0 .4rem; }
img { display: block; max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line);
  border-radius: .4rem; margin: .6rem 0; }
pre, code { font-size: .88rem; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: .4rem; padding: .5rem .8rem;
  overflow-x: auto; }
th button { all: unset; cursor: pointer; } th button:focus-visible { outline: 2px solid; }
th[aria-sort=ascending] button::after { content: " \\25b2"; }
th[aria-sort=descending] button::after { content: " \\25bc"; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tr.best td { font-weight: bold; } .failed { color: var(--down); }
td.error { min-width: 20rem; overflow-wrap: anywhere; }
"""

# An empty cell is last in both directions.
_SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const value = row => row.cells[column].dataset.value;
    const compare = (a, b) => a !== "" && b !== "" && !isNaN(a) && !isNaN(b) ? a - b : a.localeCompare(b);
    const sorted = [...body.rows].sort((a, b) => (value(a) === "") - (value(b) === "")
      || (up ? 1 : -1) * compare(value(a), value(b)));
    body.append(...sorted);
  }));
}
"""


def write(sweep: Sweep, directory: Path) -> Path:
    """Draws the pictures of the sweep, and writes the page that holds them. Raises OSError, naming the file."""
    pngs = {path.name: path.read_bytes() for path in pictures.draw(sweep, directory)}
    path = Path(directory) / REPORT
    # Lone surrogates, which JSON can say, are not text.
    write_atomically(path, page(sweep, pngs).encode("utf-8", "replace"))
    return path


def page(sweep: Sweep, pngs: Mapping[str, bytes]) -> str:
    """The HTML. pngs: file name -> content of the pictures, in the order in which they are shown."""
    title = f"Sweep of {sweep.request['experiment']}: {sweep.mode} {sweep.metric}"
    body = (
        f"{_facts(_status(sweep))}\n"
        f"<h2>Best configuration</h2>\n{_best(sweep)}\n"
        f"<h2>Pictures</h2>\n{''.join(_picture(name, png) for name, png in pngs.items())}\n"
        f"<h2>Leaderboard</h2>\n{_leaderboard(sweep)}\n"
        f"{_failed(sweep)}"
        f"<h2>What was asked for</h2>\n{_facts(_request(sweep))}\n"
    )
    return web_page(title, body, style=_STYLE, script=_SCRIPT)


def _status(sweep: Sweep) -> list[tuple[str, str]]:
    counts = Counter(trial.status for trial in sweep.trials)
    facts = [("status", f"{sweep.status} ({sweep.stop_reason})" if sweep.stop_reason else sweep.status)]
    facts.append(("trials", ", ".join(f"{number} {status}" for status, number in counts.most_common()) or "none yet"))
    facts.append(("started", _when(sweep.started)))
    if sweep.ended is not None:
        took = text.duration(max(0.0, sweep.ended - sweep.started))
        facts.append(("ended", f"{_when(sweep.ended)}, after {took}"))
    facts.append(("trained", f"{text.duration(sum(trial.seconds for trial in sweep.trials))} in all trials"))
    return facts


def _when(seconds: float) -> str:
    """Unix seconds in local time."""
    return datetime.datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")


def _best(sweep: Sweep) -> str:
    best = best_trial(sweep)
    if best is None:
        return '<p class="dim">No trial has a value yet.</p>'
    step, value = best.best(sweep.mode) or (0, math.nan)
    facts = [
        ("trial", f"{best.number:04d} ({best.status}), {best.logdir}"),
        (sweep.metric, f"{value:.6g} at step {step}"),
        *((key, value_text(value, exact=True)) for key, value in best.params.items()),
    ]
    return (
        f"{_facts(facts)}{_changes(best)}"
        "<p>To train it again, in this folder:</p>"
        "<pre><code>raylingvo run --config best/config.yaml --logdir ...</code></pre>"
    )


def _changes(trial: Trial) -> str:
    """What population based training has changed on the way."""
    items = "".join(
        f"<li>at step {escape(str(change['step']))}, from trial {change['from_trial']:04d}: "
        f"{escape(_assignments(change['params']))}</li>"
        for change in trial.changes
    )
    return f"<p>It was changed while it trained:</p><ol>{items}</ol>" if items else ""


def _assignments(params: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={value_text(value)}" for key, value in params.items())


def _picture(name: str, png: bytes) -> str:
    words = escape(name.removesuffix(".png").replace("_", " "))
    return f'<img alt="{words}" src="data:image/png;base64,{base64.b64encode(png).decode()}">\n'


def _leaderboard(sweep: Sweep) -> str:
    names = [name for name in columns(sweep) if name != "error"]  # errors have a table of their own
    best = best_trial(sweep)
    head = "".join(
        f'<th scope="col"><button type="button">{escape(name.removeprefix("params/"))}</button></th>' for name in names
    )
    body = "".join(
        f"<tr{_class('best' if best and row['trial'] == best.number else '')}>"
        f"{''.join(_cell(name, row[name]) for name in names)}</tr>\n"
        for row in rows(sweep)
    )
    return (
        f'<div class="wide"><table class="sortable"><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'
    )


def _cell(name: str, value: Any) -> str:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is None:
        exact = shown = "null" if name.startswith("params/") else ""
    elif name == "trial":
        exact, shown = str(value), f"{value:04d}"
    elif isinstance(value, float) and not name.startswith("params/"):
        # Not a number is sorted as what there is not.
        exact, shown = (repr(value) if math.isfinite(value) else ""), text.number(value)
    else:
        exact, shown = value_text(value, exact=True), value_text(value)
    kind = "number" if number else "failed" if (name, value) == ("status", "failed") else ""
    return f'<td{_class(kind)} data-value="{escape(exact)}">{escape(shown)}</td>'


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""


def _failed(sweep: Sweep) -> str:
    failed = [trial for trial in ranked(sweep) if trial.status == "failed"]
    if not failed:
        return ""
    body = "".join(
        f'<tr><td>{trial.number:04d}</td><td class="number">{trial.step}</td>'
        f'<td class="error failed">{escape(trial.error or "")}</td><td>{escape(_assignments(trial.params))}</td></tr>\n'
        for trial in failed
    )
    head = "".join(f'<th scope="col">{name}</th>' for name in ("trial", "step", "error", "parameters"))
    return (
        f'<h2>Failed trials</h2>\n<div class="wide"><table class="failures"><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>\n"
    )


def _request(sweep: Sweep) -> Iterable[tuple[str, str]]:
    """The parameters' spaces a line each, and all else as it was said."""
    for name, value in sweep.request.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}: {key}", value_text(item, exact=True)) for key, item in value.items())
        elif value is not None:
            yield name, value_text(value, exact=True)


def _facts(facts: Iterable[Sequence[str]]) -> str:
    body = "".join(f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>' for name, value in facts)
    return f'<div class="wide"><table><tbody>{body}</tbody></table></div>'
