"""SIGKILL while an index in any place is brought up to date: it goes on, and nothing is lost."""

from __future__ import annotations

import gc
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from killing import attempt
from warm import CONTEXT, start_server
from whiten.datasets.collection import Item
from whiten.index import Index, synchronise
from whiten.index.places import open_place
from whiten.index.rows import Facts


def _vector(n: int) -> np.ndarray:
    vector = np.random.default_rng(n).normal(size=16).astype(np.float32)
    return vector / np.linalg.norm(vector)


class Slow:
    """A collection of numbers whose embedding takes a while, and counts."""

    model, uri, name, dim = "model", "", "slow", 16

    def __init__(self, folder: Path) -> None:
        from whiten.datasets.collection import Items

        self._log = folder / "embedded"
        self.items = Items.of([Item(f"{n:03d}", f"/images/{n}") for n in range(200)])

    def stamps(self) -> pa.Array:
        return pa.array(["1:2:3"] * len(self.items), pa.large_string())

    def hashes(self, items) -> list[str]:  # type: ignore[no-untyped-def]
        return [f"#{item.id}" for item in items]

    def expect(self, items) -> None:  # type: ignore[no-untyped-def]
        pass

    def embed(self, items):  # type: ignore[no-untyped-def]
        from whiten.index.sources import Embedded

        with self._log.open("a") as log:
            log.writelines(f"{item.id}\n" for item in items)
        time.sleep(0.05)
        vectors = np.array([_vector(int(item.id)) for item in items])
        return Embedded(np.arange(len(items)), vectors, [])


def _synchronise(folder: Path) -> None:
    synchronise.CHUNK = 10
    backend = open_place((folder / "place").read_text())
    source = Slow(folder)
    with backend.writing():
        facts = Facts(source.model, source.uri, source.name, source.dim, ["numbers"])
        synchronise.synchronise(backend, source, facts)


@pytest.mark.slow
def test_a_killed_change_goes_on(place: str, tmp_path: Path) -> None:
    start_server()
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "place").write_text(place)
    kills = 0
    for _ in range(60):
        process = CONTEXT.Process(target=_synchronise, args=(folder,))
        process.start()
        embedded = _count(folder)
        # Not before something new was done, so that the loop ends.
        while process.is_alive() and _count(folder) < embedded + 50:
            time.sleep(0.01)
        process.kill()
        process.join()
        if process.exitcode == 0:
            break
        kills += 1
        backend = open_place(place)
        known = [] if backend.facts is None else backend.known()["id"].to_pylist()
        for name in known:  # what is there is right
            assert np.array_equal(backend.fetch([name]).vectors[0], _vector(int(name)))
        del backend
        gc.collect()
    assert kills >= 2
    assert attempt(_synchronise, folder)
    index = Index(open_place(place))
    assert index.ids() == [f"{n:03d}" for n in range(200)]
    assert np.array_equal(index.vectors(index.ids()), [_vector(n) for n in range(200)])
    assert _count(folder) <= 200 + 20 * kills  # what was written was not embedded again


def _count(folder: Path) -> int:
    log = folder / "embedded"
    return len(log.read_text().splitlines()) if log.exists() else 0
