"""Groups of near-duplicates by the model that costs nothing, and copies of hostile names."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from whiten.dedup import Deduplication, deduplicate, open_collection
from whiten.embedding.opening import load

TEACHER = "python:small_pictures:make"

HOSTILE = [
    "it's.png",
    "two\nlines.png",
    "-rf.png",
    "$(touch owned).png",
    "`touch owned`.png",
    'quo"te.png',
    "back\\slash.png",
    " blank .png",
    "*.png",
    "ümlaut.png",
    os.fsdecode(b"not-utf8-\xff.png"),
    "--.png",
    "semi;colon & and.png",
    "{{brace}}%s.png",
]


def run(folder: Path, threshold: float, *, cache: Path | None = None) -> Deduplication:
    with open_collection(folder, load(TEACHER), cache) as collection:
        return deduplicate(collection, threshold)


def pairs(found: Deduplication) -> dict[str, str]:
    return {member.id: member.copy_of for member in found.copies}


def hostile_copies(root: Path) -> Iterator[tuple[Path, Path]]:
    """(kept, copy) with names that shells and pages stumble over; the kept one is larger."""
    (root / "images" / "big").mkdir(parents=True)
    for number, name in enumerate(HOSTILE):
        image = Image.fromarray(
            np.random.default_rng(number).integers(0, 256, (2, 2, 3), np.uint8)
        ).resize((32, 32), Image.Resampling.NEAREST)
        copy, kept = root / "images" / name, root / "images" / "big" / name
        image.save(copy, "PNG")
        image.resize((64, 64), Image.Resampling.NEAREST).save(kept, "PNG")
        yield kept, copy


def shell(script: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[bytes]:
    command = ["sh", script, *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, timeout=60)
