"""One page of HTML that needs nothing else: tables, pictures as SVG, folded parts; no script.

All text that is handed over is escaped here, and nowhere else.
"""

from __future__ import annotations

import hashlib
import html
import io
import math
import re
from collections.abc import Iterable, Sequence

from matplotlib import rc_context
from matplotlib.figure import Figure

from elemdist.plain_text import printable

# Black on white in print, the system's light or dark colours on a screen, one column on a phone.
STYLE = """
:root { color-scheme: light dark; --line: #c8ccd0; --soft: #f3f5f7; --quiet: #57606a; }
@media (prefers-color-scheme: dark) {
  :root { --line: #444c56; --soft: #22272e; --quiet: #a0aab4; }
}
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; } h2 { font-size: 1.2rem; margin-top: 2rem; }
p, summary, figcaption, li { overflow-wrap: anywhere; }
.quiet, figcaption, caption { color: var(--quiet); }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: .2rem 0; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .6rem; text-align: right; }
th:first-child, td:first-child { text-align: left; }
thead th { border-bottom-width: 2px; vertical-align: bottom; }
figure { margin: 1rem 0; break-inside: avoid; }
figure svg { width: 100%; max-width: 42rem; height: auto; background: #fff; border-radius: 4px; }
pre { background: var(--soft); padding: .6rem; white-space: pre-wrap; overflow-wrap: anywhere; }
details { border: 1px solid var(--line); border-radius: 4px; padding: .4rem .8rem; margin: 1rem 0; }
summary { cursor: pointer; font-weight: 600; }
@media print {
  body { max-width: none; font-size: 10pt; } .wide { overflow: visible; }
  tr, pre { break-inside: avoid; }
  details::details-content { content-visibility: visible; height: auto; }
}
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

Cell = str | float | int | None


def escape(words: str) -> str:
    """Return a text as HTML that shows it, in an element or in an attribute."""
    return html.escape(printable(words, keep="\n\t"))


def text(cell: Cell) -> str:
    """A value as it is shown: numbers short, nothing as a dash."""
    if cell is None or (isinstance(cell, float) and not math.isfinite(cell)):
        return "–"
    if isinstance(cell, (bool, str)):
        return str(cell)
    if isinstance(cell, int):
        return f"{cell:,}"
    return f"{cell:.4g}" if abs(cell) >= 1000 or 0 < abs(cell) < 0.001 else f"{cell:.4f}"


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    """A table, in a box of its own that scrolls where it is too wide."""
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = []
    for first, *rest in rows:
        cells = "".join(f"<td>{escape(text(cell))}</td>" for cell in rest)
        body.append(f'<tr><th scope="row">{escape(text(first))}</th>{cells}</tr>')
    inner = f"<thead><tr>{top}</tr></thead><tbody>{''.join(body)}</tbody>"
    return f'<div class="wide"><table><caption>{escape(caption)}</caption>{inner}</table></div>'


def paragraph(words: str, kind: str = "") -> str:
    """A paragraph of plain words."""
    shown = f' class="{kind}"' if kind else ""
    return f"<p{shown}>{escape(words)}</p>"


def code(words: str) -> str:
    """Lines as they are."""
    return f"<pre><code>{escape(words)}</code></pre>"


def section(heading: str, *parts: str) -> str:
    """A heading and its parts, which are HTML."""
    return f"<section><h2>{escape(heading)}</h2>{''.join(parts)}</section>"


def folded(heading: str, *parts: str, is_open: bool = False) -> str:
    """Parts that a click opens."""
    shown = " open" if is_open else ""
    return f"<details{shown}><summary>{escape(heading)}</summary>{''.join(parts)}</details>"


def picture(figure: Figure, told: str) -> str:
    """A figure of matplotlib, its letters as text; `told` says in words what is to be seen."""
    data = io.StringIO()
    options = {"svg.fonttype": "none", "svg.hashsalt": "elemdist"}  # the same page each time
    with rc_context(options):  # type: ignore[arg-type]
        figure.savefig(data, format="svg", metadata={"Date": None})
    svg = data.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Parts are named, and used by their names: they must be no other picture's on the page.
    own = hashlib.blake2b(svg.encode(), digest_size=4).hexdigest()
    svg = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>p{own}-", svg)
    head, rest = svg.split(">", 1)
    head = re.sub(r' (width|height)="[^"]*"', "", head)  # the page says how wide it is
    head = head.replace("<svg", f'<svg role="img" aria-label="{escape(told)}"', 1)
    return f"<figure>{head}>{rest}<figcaption>{escape(told)}</figcaption></figure>"


def page(title: str, *parts: str) -> str:
    """The whole page."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><main><h1>{escape(title)}</h1>\n" + "\n".join(parts) + "\n</main></body></html>\n"
    )
