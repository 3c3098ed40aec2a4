"""The HTML page of a report: its frame, style, sections, facts and tables."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from html import escape
from pathlib import Path

from whiten.report.table import printable
from whiten.utils.files import write_atomically

_LONG = 100  # characters of a fact
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
      content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body><main>
<h1>{title}</h1>
{body}
</main></body>
</html>
"""

STYLE = """
:root { color-scheme: light dark; --page: #fafafb; --card: #fff; --ink: #1f2430; --quiet: #5b6472;
  --line: #e3e6eb; --best: #007a59; --warm: #fff8ea; }
@media (prefers-color-scheme: dark) { :root { --page: #14171c; --card: #1c2027; --ink: #e7e9ee;
  --quiet: #a3abb8; --line: #303641; --best: #35c79b; --warm: #2a2518; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 64rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; overflow-wrap: anywhere; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 1.25rem; }
h2 { font-size: 1.25rem; margin: 0 0 .25rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
section { margin-top: 2.75rem; }
section > p { color: var(--quiet); margin: 0 0 .9rem; max-width: 46rem; }
.notes { background: var(--warm); border-left: 4px solid #e69f00; border-radius: 0 8px 8px 0;
  margin: 0 0 1.5rem; padding: .8rem 1rem .8rem 2.2rem; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(14rem, 45%), 1fr));
  gap: .9rem 1.25rem; margin: 0; }
dt { color: var(--quiet); font-size: .85rem; }
dd { margin: 0; font-weight: 500; }
.long { grid-column: 1 / -1; max-width: 46rem; }
.wide, .card, pre { overflow-x: auto; border: 1px solid var(--line); border-radius: 10px; }
.wide, pre { background: var(--card); }
.card { background: #fff; padding: .75rem; }
.card img { display: block; height: auto; max-width: 100%; margin: 0 auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .5rem .8rem; text-align: right; white-space: nowrap; font-weight: 500; }
thead th { color: var(--quiet); font-size: .85rem; }
tbody tr { border-top: 1px solid var(--line); }
tbody th { white-space: normal; min-width: 10rem; }
th:first-child, th:nth-child(2), td:nth-child(2) { text-align: left; }
td[class]::before { content: ""; display: inline-block; width: .65em; height: .65em;
  border-radius: 50%; margin-right: .5em; background: #8a94a6; }
td.fusion-raw::before { background: #e69f00; }
td.fusion-whitened::before { background: #0072b2; }
td.student::before { background: #009e73; }
td.asymmetric::before { background: #cc79a7; }
b { color: var(--best); font-weight: 700; }
pre { margin: 0; padding: 1rem; font: .88rem/1.7 ui-monospace, Menlo, Consolas, monospace; }
@media (max-width: 40rem) { main { padding: 1.5rem 1rem 3rem; } h1 { font-size: 1.5rem; }
  th, td { padding: .45rem .55rem; } tbody th { min-width: 8rem; }
  .card img { max-width: 36rem; } }
"""


def page(title: str, parts: Iterable[str], style: str = STYLE) -> str:
    """Return the HTML of a self-contained page.

    Args:
        title: text of the title and of the heading.
        parts: HTML below the heading.
    """
    return _PAGE.format(title=escape(title), style=style, body="\n".join(parts))


def write_page(path: Path, html: str) -> Path:
    """Write a page atomically, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, html.encode("utf-8", "backslashreplace"))
    return path


def facts_list(facts: Iterable[tuple[str, str]]) -> str:
    """Return a list of facts, each a name and its text; a long text has a line of its own."""
    listed = [
        f"<div{' class=long' if len(fact) > _LONG else ''}><dt>{escape(name)}</dt>"
        f"<dd>{escape(printable(fact))}</dd></div>"
        for name, fact in facts
    ]
    return f"<dl>{''.join(listed)}</dl>"


def notes_list(notes: Iterable[str]) -> str:
    """Return a list of sentences that stand out."""
    listed = "".join(f"<li>{escape(printable(note))}</li>" for note in notes)
    return f'<ul class="notes">{listed}</ul>'


def table(headings: Iterable[str], rows: Iterable[tuple[str, str]]) -> str:
    """Return a table.

    Args:
        headings: texts of the columns.
        rows: per row the text of its first cell, and the HTML of the others, see `cells`.
    """
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in headings)
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{others}</tr>\n' for name, others in rows
    )
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table>'
        "</div>"
    )


def cells(texts: Iterable[str]) -> str:
    """Return cells of a row."""
    return "".join(f"<td>{escape(text)}</td>" for text in texts)


def section(heading: str, help_: str, content: str) -> str:
    return f"<section><h2>{escape(heading)}</h2><p>{escape(help_)}</p>{content}</section>"


def embedded(alt: str, png: bytes) -> str:
    # Bytes 16 to 20 of a PNG hold its width; 1.25 of its pixels make one pixel of the page.
    width = round(int.from_bytes(png[16:20], "big") / 1.25)
    source = "data:image/png;base64," + base64.b64encode(png).decode("ascii")
    image = f'<img alt="{escape(printable(alt))}" width="{width}" src="{source}">'
    return f'<div class="card">{image}</div>'
