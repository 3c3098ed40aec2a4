"""Search a folder in one call: build or refresh its index, ask, and draw a page of the hits."""

from __future__ import annotations

import base64
import io
import tempfile
from dataclasses import dataclass
from html import escape
from pathlib import Path

from whiten.encoder import load
from whiten.errors import ConfigError, ImageError
from whiten.index import Index, Match
from whiten.media import Skipped, decode, display_path, read_bytes
from whiten.run_folder import RunFolder
from whiten.spec import fingerprint

_TILE = 220  # pixels


@dataclass(frozen=True)
class Found:
    """The hits of one search, best first, and what the index could not read."""

    matches: list[Match]
    skipped: list[Skipped]
    index: Path


def search_folder(
    query: Path,
    student: str,
    images: Path,
    *,
    index: Path | None = None,
    k: int = 10,
    show_progress: bool = False,
) -> Found:
    """Search by an image; the index is brought up to date first, embedding only what is new.

    Args:
        index: its folder; by default `RUN/index/…` beside a student, one for each image folder.

    Raises:
        ConfigError: k below 1, or no place for the index is known.
        ImageError: the query cannot be read.
    """
    if k < 1:
        raise ConfigError(f"k must be at least 1, not {k}")
    encoder = load(student)
    vector = encoder.embed(query)  # first: a query that cannot be read costs no indexing
    folder = index or _default_index(student, images)
    built = Index.build(encoder, images, folder, show_progress=show_progress)
    [matches] = built.search_vectors(vector, k)
    return Found(matches, built.skipped, folder)


def _default_index(student: str, images: Path) -> Path:
    folder = Path(student.removeprefix("whiten:"))
    if not folder.is_dir():
        raise ConfigError(f"{student} has no folder to keep its index in: add --index FOLDER")
    run = folder if RunFolder(folder).config.is_file() else folder.parent
    place = images.resolve()
    return run / "index" / f"{place.name}-{fingerprint(str(place))[:8]}"


def write_hits_page(query: Path, found: Found) -> Path:
    """A self-contained page in a temporary file: the query and its hits."""
    tiles = "".join(
        f'<figure><img src="{_tile(match.path)}" alt=""><figcaption>{match.score:.3f}<br>'
        f"{escape(match.id)}</figcaption></figure>"
        for match in found.matches
    )
    # A file's name need not be text, the page must be.
    name, count = escape(Path(display_path(str(query))).name), len(found.matches)
    page = f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{name}: {count} hits</title>
<style>
:root {{ color-scheme: light dark }}
body {{ font: 15px/1.4 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem;
  padding: 0 1rem }}
main {{ display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)) }}
figure {{ margin: 0 }}
img {{ background: #fff; border-radius: 6px; object-fit: contain; width: 100%; aspect-ratio: 1 }}
header img {{ width: 220px }}
figcaption {{ font-size: 13px; overflow-wrap: anywhere }}
</style>
<header><h1>{name}</h1><img src="{_tile(str(query))}" alt="the query"></header>
<h2>{count} nearest images</h2><main>{tiles}</main></html>
"""
    with tempfile.NamedTemporaryFile(
        "w", prefix="whiten-", suffix=".html", delete=False, encoding="utf-8"
    ) as file:
        file.write(page)
    return Path(file.name)


def _tile(path: str) -> str:
    try:
        image = decode(read_bytes(path))
    except ImageError:
        return ""
    image.thumbnail((_TILE, _TILE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
