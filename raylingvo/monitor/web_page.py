"""The frame of the HTML pages: one file that needs nothing else, and is dark where the reader's system is."""

from __future__ import annotations

from html import escape

_STYLE = """
:root { color-scheme: light dark; --line: #ccc; --dim: #666; --card: #fff; --page: #f4f4f5; --text: #18181b;
  --mark: #fde68a; --up: #15803d; --down: #b91c1c; }
@media (prefers-color-scheme: dark) { :root { --line: #3f3f46; --dim: #a1a1aa; --card: #1f1f23; --page: #131316;
  --text: #e4e4e7; --mark: #7c5c10; --up: #4ade80; --down: #f87171; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 90rem; background: var(--page); color: var(--text);
  font: 15px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.2rem; margin: 0 0 .6rem; }
.wide { overflow-x: auto; margin-bottom: .8rem; }
table { border-collapse: collapse; font-size: .88rem; }
th, td { text-align: left; vertical-align: top; padding: .15rem .9rem .15rem 0; border-bottom: 1px solid var(--line); }
tbody th { font-weight: normal; color: var(--dim); }
.dim { color: var(--dim); font-size: .85rem; }
p { margin: .1rem 0; overflow-wrap: anywhere; }
ol { margin: .2rem 0; padding-left: 1.6rem; overflow-wrap: anywhere; }
"""


def web_page(title: str, body: str, *, style: str, script: str) -> str:
    """A page, as HTML, with its title as its heading.

    title: text, which is escaped. body: HTML. style: CSS, after what all pages have; the colors are variables such as
    `--line`. script: JavaScript, which runs when the body is there.
    """
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}{style}</style></head>\n<body><h1>{escape(title)}</h1>\n"
        f"{body}<script>{script}</script></body></html>\n"
    )
