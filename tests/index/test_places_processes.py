"""Two processes that write one place at once: one is refused by name, and nothing is lost."""

from __future__ import annotations

import gc
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from warm import CONTEXT, start_server
from whiten.datasets.collection import Item, Items
from whiten.errors import StoreError
from whiten.index import Index, synchronise
from whiten.index.membership import join
from whiten.index.places import open_place
from whiten.index.rows import Facts
from whiten.index.sources import Embedded

COUNT = 60


def vector(name: str) -> np.ndarray:
    drawn = np.random.default_rng(list(name.encode())).normal(size=8).astype(np.float32)
    return drawn / np.linalg.norm(drawn)


class Numbers:
    """A collection whose embedding takes a while."""

    model, uri, name, dim = "model", "", "numbers", 8

    def __init__(self, who: str) -> None:
        self.items = Items.of([Item(f"{who}{n:02d}", f"/{who}/{n}") for n in range(COUNT)])

    def stamps(self) -> pa.Array:
        return pa.array([f"{n}:2:3" for n in range(COUNT)], pa.large_string())

    def hashes(self, items: Items) -> list[str]:
        return [f"#{item.id}" for item in items]

    def expect(self, items: Items) -> None:
        pass

    def embed(self, items: Items) -> Embedded:
        time.sleep(0.1)
        return Embedded(np.arange(len(items)), np.array([vector(i.id) for i in items]), [])


def _add(place: str, who: str, folder: Path) -> None:
    """Add a collection, again and again while another process writes; notes each refusal."""
    synchronise.CHUNK = 10
    source = Numbers(who)
    (folder / f"ready-{who}").touch()
    while len(list(folder.glob("ready-*"))) < 2:
        time.sleep(0.01)
    for _ in range(600):
        try:
            backend = open_place(place)
            with backend.writing():
                before = backend.facts
                joined = join(f"/{who}", None, before, place, keep=True, known=backend.known)
                facts = Facts("model", "", "numbers", 8, joined.sources, {}, [], {}, joined.divided)
                synchronise.synchronise(backend, source, facts, joined=joined, keep=True)
            return
        except StoreError as error:
            backend = None
            gc.collect()
            with (folder / f"refused-{who}").open("a") as log:
                log.write(f"{error}\n")
            time.sleep(0.1)
    raise AssertionError("never got a turn")


@pytest.mark.slow
def test_two_processes_that_write_at_once(place: str, tmp_path: Path) -> None:
    start_server()
    folder = tmp_path / "work"
    folder.mkdir()
    processes = [CONTEXT.Process(target=_add, args=(place, who, folder)) for who in "ab"]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
        assert process.exitcode == 0
    refused = "".join(log.read_text() for log in folder.glob("refused-*")).splitlines()
    assert refused
    for line in refused:
        assert "another process is changing" in line or "another process has it open" in line
    index = Index.open(place)
    names = [f"{who}{n:02d}" for who in "ab" for n in range(COUNT)]
    assert sorted(index.ids()) == names
    np.testing.assert_allclose(index.vectors(names), [vector(name) for name in names], atol=1e-6)
    assert sorted(index.facts.sources) == ["/a", "/b"]


def test_a_connection_that_is_lost_while_writing(postgres, encoder, images: Path) -> None:  # type: ignore[no-untyped-def]
    place = f"pgvector:{postgres.new_schema()}#photos"
    backend = open_place(place)
    with pytest.raises(StoreError, match="was lost while writing: run again"), backend.writing():
        backend._postgres._connections[0].close()  # type: ignore[attr-defined]
        Index.build(encoder, images, place)  # by another process, meanwhile
        backend.refresh()
    assert len(Index.open(place)) == 6
