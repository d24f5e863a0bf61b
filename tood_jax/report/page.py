"""The HTML page of a report: a list of sections in one file that needs no other.

Every text from data goes through `escape`; pictures are embedded.
"""

import base64
import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from tood_jax.untrusted.printable import printable


class Section(NamedTuple):
    """A part of the page."""

    title: str
    body: str  # HTML

    @property
    def anchor(self) -> str:
        """Name of the section in links."""
        return "".join(letter if letter.isalnum() else "-" for letter in self.title.lower())


def render_page(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """Return the whole page."""
    links = " · ".join(f'<a href="#{one.anchor}">{escape(one.title)}</a>' for one in sections)
    bodies = "\n".join(
        f'<section id="{one.anchor}"><h2>{escape(one.title)}</h2>\n{one.body}\n</section>' for one in sections
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="generator" content="tood_jax"><link rel="icon" href="data:,"><title>{text(title)}</title>'
        f"<style>{_STYLE}</style></head>\n<body><h1>{text(title)}</h1><p>{text(subtitle)}</p><nav>{links}</nav>\n"
        f"{bodies}\n<script>{_SCRIPT}</script></body></html>\n"
    )


def text(value: object) -> str:
    """Return any text as HTML."""
    return escape(printable(value))


def paragraph(value: str) -> str:
    """Return a paragraph of plain text."""
    return f"<p>{escape(value)}</p>"


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table that a click on a heading sorts. Numbers are floats or integers; NaN is shown as n/a."""
    head = "".join(f'<th><button type="button">{text(name)}</button></th>' for name in header)
    body = "\n".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>'


class Shown(NamedTuple):
    """A cell that is sorted by another value than the text it shows."""

    value: float
    text: str


def _cell(value: object) -> str:
    if isinstance(value, Shown):
        number, shown = value
    elif isinstance(value, int | float):
        number, shown = value, f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
    else:
        return f"<td>{text(value)}</td>"
    if math.isnan(number):
        return '<td class="number" data-value="-1">n/a</td>'
    return f'<td class="number" data-value="{number!r}">{text(shown)}</td>'


def picture(data: bytes, kind: str, description: str) -> str:
    """Return an embedded picture. `kind` is png or jpeg."""
    encoded = base64.b64encode(data).decode()
    return f'<img src="data:image/{kind};base64,{encoded}" alt="{text(description)}">'


_STYLE = """
:root { color-scheme: light dark; --line: #8885; --link: light-dark(#0645ad, #8ab4f8); }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 1150px; padding: 0 1rem 3rem; }
a { color: var(--link); } h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
nav { border-block: 1px solid var(--line); padding: .4rem 0; }
.wide { overflow-x: auto; } table { border-collapse: collapse; }
th, td { border-bottom: 1px solid var(--line); padding: .2rem .6rem; text-align: left; white-space: nowrap; }
td.number { font-variant-numeric: tabular-nums; text-align: right; }
th button { background: none; border: 0; color: inherit; cursor: pointer; font: inherit; font-weight: 600; padding: 0; }
th[aria-sort=ascending] button::after { content: " ▲"; } th[aria-sort=descending] button::after { content: " ▼"; }
p, h1 { overflow-wrap: anywhere; }
img { background: white; border-radius: 4px; height: auto; max-width: 100%; }
.pictures { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr)); }
figure { margin: 0; } figcaption { overflow-wrap: anywhere; }
"""

_SCRIPT = """
for (const button of document.querySelectorAll("th button")) button.addEventListener("click", () => {
  const head = button.parentElement, table = head.closest("table"), body = table.tBodies[0];
  const column = [...head.parentElement.children].indexOf(head);
  const falling = head.getAttribute("aria-sort") !== "descending";
  for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", falling ? "descending" : "ascending");
  const key = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
  const order = (a, b) => isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b;
  const rows = [...body.rows].sort((a, b) => order(key(a), key(b)));
  body.append(...(falling ? rows.reverse() : rows));
});
"""
