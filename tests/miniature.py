"""Miniature copies of published data sets, in their own layouts, from the bundled images."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

EMOJI = Path(__file__).parent.parent / "src" / "whiten" / "demo" / "data" / "emoji.parquet"
VENDORS = ("noto", "twemoji", "fluent", "openmoji")


def drawing(split: str, number: int, vendor: str) -> Image.Image:
    """The 64 px drawing that a vendor made for a group of a split."""
    return Image.open(io.BytesIO(_emoji(split)[number][vendor])).convert("RGB")


@cache
def _emoji(split: str) -> list[dict[str, bytes]]:
    """Per group of a split, in the order of its code points, each vendor's file."""
    table = pq.read_table(EMOJI, filters=[("split", "=", split)])
    groups: dict[str, dict[str, bytes]] = defaultdict(dict)
    for row in table.select(["group", "vendor", "image"]).to_pylist():
        groups[row["group"]][row["vendor"]] = row["image"]
    return [groups[name] for name in sorted(groups)]


def write_gldv2(root: Path, landmarks: int, *, alone: int = 1) -> list[list[str]]:
    """`root/train_clean.csv`, `root/train/a/b/c/abc….jpg`; the images of each landmark.

    Landmarks have the four drawings of an emoji, the last `alone` of them one.
    """
    named = []
    for number in range(landmarks + alone):
        vendors = VENDORS if number < landmarks else VENDORS[:1]
        named.append([_image_id(number, vendor) for vendor in vendors])
        for name, vendor in zip(named[-1], vendors, strict=True):
            shown = drawing("train", number, vendor)
            _save(shown, root / "train" / name[0] / name[1] / name[2] / f"{name}.jpg")
    rows = [f"{100 + number},{' '.join(names)}" for number, names in enumerate(named)]
    (root / "train_clean.csv").write_text("\n".join(["landmark_id,images", *rows]) + "\n")
    return named


def write_revisited(root: Path, name: str, landmarks: int, *, json_form: bool = False) -> Path:
    """`root/NAME` with ground truth and images; the folder.

    A query shows its emoji, as noto draws it, inside of a box in a cluttered picture. Of its
    database images one is easy, one hard (small in a cluttered picture), one junk.
    """
    folder = root / name
    rng = np.random.default_rng(0)
    database: list[str] = []
    truth: list[dict[str, Any]] = []
    queries = [f"query_{number:06d}" for number in range(landmarks)]
    for number in range(landmarks):
        picture, box = _cluttered(drawing("test", number, "noto"), rng, (120, 90), 64)
        _save(picture, folder / "jpg" / f"{queries[number]}.jpg")
        first = len(database)
        for vendor in VENDORS[1:]:
            database.append(f"landmark_{number:06d}_{vendor}")
            shown = drawing("test", number, vendor)
            if vendor == "fluent":
                shown, _ = _cluttered(shown, rng, (72, 96), 56)
            _save(shown, folder / "jpg" / f"{database[-1]}.jpg")
        lists = {"easy": [first], "hard": [first + 1], "junk": [first + 2]}
        as_arrays = {key: np.array(value, np.int64) for key, value in lists.items()}
        truth.append({**(lists if json_form else as_arrays), "bbx": [float(side) for side in box]})
    facts = {"imlist": database, "qimlist": queries, "gnd": truth}
    if json_form:
        (folder / f"gnd_{name}.json").write_text(json.dumps(facts))
    else:
        (folder / f"gnd_{name}.pkl").write_bytes(pickle.dumps(facts, protocol=2))
    return folder


def write_distractors(root: Path, count: int) -> Path:
    """`root/revisitop1m` with its list and images; the folder."""
    folder = root / "revisitop1m"
    rng = np.random.default_rng(1)
    names = []
    for number in range(count):
        digest = hashlib.sha256(str(number).encode()).hexdigest()[:20]
        names.append(f"{digest[:3]}/{digest}.jpg")
        vendor = VENDORS[number % len(VENDORS)]
        picture, _ = _cluttered(drawing("val", number, vendor), rng, (80 + number % 3 * 16, 72), 60)
        _save(picture, folder / "jpg" / names[-1])
    (folder / "revisitop1m.txt").write_text("\n".join(names) + "\n")
    return folder


def _image_id(number: int, vendor: str) -> str:
    return hashlib.sha256(f"{number} {vendor}".encode()).hexdigest()[:16]


def _cluttered(
    shown: Image.Image, rng: np.random.Generator, size: tuple[int, int], side: int
) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """A drawing somewhere in a picture of coloured blobs, and its box."""
    blobs = rng.integers(120, 256, (4, 5, 3)).astype(np.uint8)
    picture = Image.fromarray(blobs).resize(size, Image.Resampling.BICUBIC)
    left, top = (int(rng.integers(0, whole - side + 1)) for whole in size)
    picture.paste(shown.resize((side, side)), (left, top))
    return picture, (left, top, left + side, top + side)


def _save(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, quality=95)
