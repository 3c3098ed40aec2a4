"""Write the bundled images as files."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

_COMPLETE = "complete"  # written last


def extract_drawings(folder: Path, groups: int | None = None) -> None:
    """Write the drawings as `SPLIT/GROUP/VENDOR.webp`, for train and test.

    Args:
        groups: the number of groups per split; None takes all.
    """
    if (folder / _COMPLETE).exists():
        return
    taken: dict[str, set[str]] = {"train": set(), "test": set()}
    for row in _read("emoji.parquet", ["group", "vendor", "split", "image"]):
        names = taken.get(row["split"])
        if names is None or (groups and row["group"] not in names and len(names) >= groups):
            continue
        names.add(row["group"])
        target = folder / row["split"] / row["group"] / f"{row['vendor']}.webp"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(row["image"])
    (folder / _COMPLETE).touch()


def extract_photos(folder: Path, groups: int | None = None) -> None:
    """Write the photographs as `GROUP/NAME.webp`, and the tables `train.csv` and `test.csv`.

    `train.csv` (path, group, source) also lists the fruit and vegetables, of the source `produce`.

    Args:
        groups: the number of groups per split; None takes all.
    """
    if (folder / _COMPLETE).exists():
        return
    taken: dict[str, set[str]] = {"train": set(), "test": set(), "unseen": set()}
    tables: dict[str, list[tuple[str, str, str]]] = {"train": [], "test": []}
    for row in _read("photos.parquet", ["group", "source", "split", "name", "image"]):
        names = taken[row["split"]]
        if groups and row["group"] not in names and len(names) >= groups:
            continue
        names.add(row["group"])
        path = Path(row["group"], f"{row['name']}.webp")
        (folder / path.parent).mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(row["image"])
        table = "test" if row["split"] == "test" else "train"
        tables[table].append((path.as_posix(), row["group"], row["source"]))
    for name, rows in tables.items():
        with (folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("path", "group", "source"), *rows])
    (folder / _COMPLETE).touch()


def _read(name: str, columns: list[str]) -> Iterator[dict[str, Any]]:
    with resources.as_file(resources.files("whiten") / "demo" / "data" / name) as path:
        yield from pq.read_table(path, columns=columns).to_pylist()
