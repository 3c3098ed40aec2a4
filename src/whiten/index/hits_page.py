"""The hits of one search as a self-contained page."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from html import escape
from pathlib import Path

from whiten.errors import counted
from whiten.index.rows import Match
from whiten.media.thumbnails import data_url
from whiten.utils.names import display_path

_TILE = 220  # pixels


def write_hits_page(queries: Sequence[Path], matches: Sequence[Match]) -> Path:
    """Write a self-contained page of the queries and their hits into a temporary file."""
    tiles = "".join(
        f'<figure><img src="{data_url(match.path, _TILE)}" alt=""><figcaption>{match.score:.3f}<br>'
        f"{escape(match.id)}</figcaption></figure>"
        for match in matches
    )
    # A file name may not be valid Unicode; the page must be.
    name = escape(", ".join(Path(display_path(str(query))).name for query in queries))
    pictures = "".join(
        f'<img src="{data_url(str(query), _TILE)}" alt="a query">' for query in queries
    )
    count = len(matches)
    page = f"""<!doctype html>
<html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name}: {counted(count, "hit")}</title>
<style>
:root {{ color-scheme: light dark }}
body {{ font: 15px/1.4 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem;
  padding: 0 1rem }}
main {{ display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)) }}
figure {{ margin: 0 }}
img {{ border-radius: 6px; object-fit: contain; width: 100%; aspect-ratio: 1 }}
header img {{ width: 220px }}
figcaption {{ font-size: 13px; overflow-wrap: anywhere }}
</style>
<header><h1>{name}</h1>{pictures}</header>
<h2>{counted(count, "nearest image")}</h2><main>{tiles}</main></html>
"""
    with tempfile.NamedTemporaryFile(
        "w", prefix="whiten-", suffix=".html", delete=False, encoding="utf-8"
    ) as file:
        file.write(page)
    return Path(file.name)
