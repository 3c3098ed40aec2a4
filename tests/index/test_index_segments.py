"""Segments of an index in a folder: mapped, in batches, looked up by id."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from index_helpers import block, clustered, found_ids, make, write
from whiten.index.local import segments
from whiten.index.local.folder import FolderIndex
from whiten.index.rows import Block
from whiten.retrieval import exact
from whiten.utils import memory

ROWS = 4000


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return clustered(ROWS)


def test_a_large_file_is_not_kept_resident(
    tmp_path: Path, vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks of a mapped file are let go of once scanned, and the answers stay the same."""
    forgotten: list[int] = []
    queries = vectors[100:150]
    index = make(tmp_path / "index", vectors)
    expected = found_ids(index, queries, 10)
    monkeypatch.setattr(exact, "forget", lambda part: forgotten.append(len(part)))
    assert found_ids(index, queries, 10) == expected and not forgotten
    monkeypatch.setattr(memory, "KEPT_BYTES", vectors.nbytes - 1)
    assert found_ids(index, queries, 10) == expected
    assert sum(forgotten) == ROWS


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_single_rows_of_a_large_file_are_not_kept_resident(tmp_path: Path) -> None:
    """The system maps 16 pages for one that is read, so that a few rows would map the file."""
    path, rows = tmp_path / "vectors", 5 << 20
    with path.open("wb") as file:
        file.truncate(rows * 1024)  # takes no room
    mapped = np.memmap(path, "<f4", "r", shape=(rows, 256))
    before = mapped_mb()
    for start in range(0, 64 << 10, 64):
        assert not memory.gather_rows(mapped, np.arange(start, start + 64)).any()
    assert mapped_mb() < before + 8


def mapped_mb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssFile:")) / 1024


def test_rows_of_many_batches_are_joined(
    tmp_path: Path, vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "_BATCH", 1500)
    whole = block(vectors)
    index = FolderIndex(tmp_path / "index")
    parts = [Block(whole.rows.slice(n, 50), vectors[n : n + 50]) for n in range(0, ROWS, 50)]
    write(index, parts)
    [segment] = (tmp_path / "index").glob("segment-*")
    with pa.ipc.open_stream(pa.memory_map(str(segment / "rows.arrows"))) as stream:
        assert [len(batch) for batch in stream] == [1500, 1500, 1000]
    assert sorted(path.name for path in segment.iterdir()) == ["rows.arrows", "vectors.f32"]
    assert FolderIndex(tmp_path / "index").known().equals(whole.rows)


def test_ids_are_found_by_scans_and_by_a_table(tmp_path: Path, vectors: np.ndarray) -> None:
    index = make(tmp_path / "index", vectors[:100])
    write(index, [block(vectors[200:203])], ["50"])  # 0 to 2 have other vectors now
    asked = ["2", "50", "99", "2", "none", "0"]
    for _ in range(5):
        places = index._opened.places(asked)
        assert places.tolist() == [102, -1, 99, 102, -1, 100]
    np.testing.assert_array_equal(index.fetch(["0", "3", "0"]).vectors, vectors[[200, 3, 200]])
