"""The demo: real weights, real images, every step. First photographs, then drawings."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from whiten.datasets.finding import find_items
from whiten.demo import drawings, photos
from whiten.errors import RunError
from whiten.report.run_page import ReportData
from whiten.report.table import Row

_MARK = "demo.json"  # marks the folder of a demo, and records its size


@dataclass(frozen=True)
class Demo:
    """Results of the demo.

    Attributes:
        photos: the tables of the photographs.
        photos_page, drawings_page: the reports.
        drawings: rows of the table of the drawings.
    """

    photos: ReportData
    photos_page: Path
    drawings: list[Row]
    drawings_page: Path


def run_demo(out: Path, *, quick: bool = False, show_progress: bool = True) -> Demo:
    """Run the demo, or continue an interrupted one.

    Args:
        out: a new or empty folder, or the folder of an earlier demo.
        quick: a version of a few seconds on little data; its numbers mean nothing.

    Raises:
        RunError: the folder holds something else.
    """
    _claim(out, quick)
    photographed = photos.demonstrate_photos(
        out / "photos", photos.QUICK if quick else photos.FULL, show_progress=show_progress
    )
    drawn = drawings.demonstrate_drawings(
        out / "drawings", drawings.QUICK if quick else drawings.FULL, show_progress=show_progress
    )
    return Demo(*photographed, *drawn)


def next_commands(out: Path) -> list[str]:
    """List commands for the demo's images and for the user's own."""
    images = out / "photos" / "images"
    query = next(iter(find_items(images / "test.csv"))).path
    student = out / "photos" / "run" / "student"
    return [
        f"whiten search {query} --model {student} --in {images / 'test.csv'}",
        "whiten teachers",
        "whiten distill YOUR_IMAGES --teachers demo:efficientnet-lite2 demo:mobilenetv2 "
        "--student demo:efficientnet-lite0 --out runs/mine",
        "whiten search QUERY.jpg --model runs/mine/student --in YOUR_IMAGES",
    ]


def _claim(out: Path, quick: bool) -> None:
    mark = out / _MARK
    kind = {"quick": quick, "parts": ["photos", "drawings"]}
    if mark.exists():
        if json.loads(mark.read_text()) != kind:
            raise RunError(f"{out} holds a demo of another size or version: name another --out")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out} holds something else than a demo: name another --out")
    out.mkdir(parents=True, exist_ok=True)
    mark.write_text(json.dumps(kind))
