"""Photos and five edits of each, the set of imagededup's published comparison.

A 70 % crop (of the area, central), both flips, a rotation by 25° and a resize to 256 × 256 pixels,
as JPEG of quality 90. The photo of a file is its name up to the hyphen.
"""

from __future__ import annotations

import os
import random
import re
from itertools import combinations
from pathlib import Path

from PIL import Image, ImageOps

from whiten.datasets.finding import find_items
from whiten.errors import ImageError
from whiten.media.decoding import decode
from whiten.media.reading import read_bytes

CROP, TURN, SIDE = 0.7, 25, 256

Pairs = set[tuple[str, str]]


def edits(image: Image.Image) -> dict[str, Image.Image]:
    width, height = image.size
    left, top = (round(side * (1 - CROP**0.5) / 2) for side in image.size)
    return {
        "whole": image,
        "crop": image.crop((left, top, width - left, height - top)),
        "mirror": ImageOps.mirror(image),
        "flip": ImageOps.flip(image),
        "turn": image.rotate(TURN, resample=Image.Resampling.BICUBIC),
        "square": image.resize((SIDE, SIDE)),
    }


def write_copies(photos: list[Path], folder: Path, count: int) -> int:
    """Write the edits of `count` photos, drawn at random, always the same; return the photos used.

    Args:
        photos: folders with photos of different things. Of UKBench in its published layout
            (`ukbench00000.jpg` and so on, four of each object) the first of each object is used.
    """
    paths = [
        Path(os.fsdecode(path)) for one in photos for path in find_items(one).paths.to_pylist()
    ]
    numbers = {path: re.fullmatch(r"ukbench(\d{5})", path.stem) for path in paths}
    paths = [p for p in paths if (found := numbers[p]) is None or int(found[1]) % 4 == 0]
    random.Random(0).shuffle(paths)
    folder.mkdir(parents=True)
    done = 0
    for path in paths:
        try:
            image = decode(read_bytes(str(path)))
        except ImageError:
            continue
        for name, edit in edits(image).items():
            edit.save(folder / f"{done:04d}-{name}.jpg", quality=90)
        done += 1
        if done == count:
            break
    return done


def score(found: Pairs, folder: Path) -> dict[str, float]:
    """Return precision, recall and the number of pairs, of names of files."""
    of_photo: dict[str, list[str]] = {}
    for path in sorted(folder.iterdir()):
        of_photo.setdefault(path.name.split("-")[0], []).append(path.name)
    true = {pair for names in of_photo.values() for pair in combinations(names, 2)}
    right = len(found & true)
    return {
        "precision": round(right / len(found), 4) if found else 1.0,
        "recall": round(right / len(true), 4),
        "pairs": len(found),
    }
