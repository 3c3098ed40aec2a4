"""Images as tar shards and as Parquet, in the layouts of img2dataset and Hugging Face."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Sample = tuple[str, bytes, dict[str, Any]]
"""Name of an image, its content, and what is known of it."""


def samples(folder: Path) -> list[Sample]:
    """The images below a folder, numbered, with their folder as the group."""
    paths = sorted(path for path in folder.rglob("*.*") if path.is_file())
    return [
        (f"{n:09d}{path.suffix}", path.read_bytes(), facts_of(n, path.parent.name))
        for n, path in enumerate(paths)
    ]


def facts_of(number: int, group: str) -> dict[str, Any]:
    return {"caption": f"image {number}", "price": number / 2, "group": group, "sizes": [1, 2]}


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def write_tars(folder: Path, found: Sequence[Sample], count: int = 3) -> Path:
    """`folder/photos-000.tar` and so on."""
    for number, part in enumerate(_parts(found, count)):
        members = []
        for name, data, facts in part:
            key = name.partition(".")[0]
            members += [(name, data), (f"{key}.json", json.dumps(facts).encode())]
            members.append((f"{key}.txt", facts["caption"].encode()))
        write_tar(folder / f"photos-{number:03d}.tar", members)
    return folder


def write_parquets(folder: Path, found: Sequence[Sample], count: int = 2) -> Path:
    """`folder/train-0.parquet` and so on, with several row groups each."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, part in enumerate(_parts(found, count)):
        rows = [{"image": {"bytes": data, "path": name}, **facts} for name, data, facts in part]
        table = pa.Table.from_pylist(rows)
        pq.write_table(table, folder / f"train-{number}.parquet", row_group_size=3)
    return folder


def _parts(found: Sequence[Sample], count: int) -> list[Sequence[Sample]]:
    size = -(-len(found) // count)
    return [found[start : start + size] for start in range(0, len(found), size)]
