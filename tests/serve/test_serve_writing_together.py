"""Writes beside other writers, on a full disk, through kills, and in a database."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from helpers import TEACHER, draw, write_groups, write_image
from pictures import encode
from service import Service, TestClient
from whiten.errors import ConfigError, LockedError
from whiten.index import Index
from whiten.index.places import open_place
from whiten.serve import Settings, create_app, writing
from whiten.serve.batching import Batcher
from whiten.serve.live import LiveIndex
from whiten.serve.uploads import Uploads
from writes import KNOWN, TOKEN, add, best, total

KILLS = 20


# --- beside other changes ---------------------------------------------------------------


def test_images_of_collections_stay_apart(index: Index, images: Path, drawing: bytes) -> None:
    shoes = write_groups(images.parent / "shoes", {"x": 2, "y": 2})
    for path in shoes.rglob("*.png"):
        draw(50, int(path.stem) + ord(path.parent.name)).save(path)
    index.add(shoes, collection="shoes")
    settings = Settings(writable=True, token=TOKEN)
    with TestClient(create_app(index, settings), base_url="http://localhost", headers=KNOWN) as one:
        answer = add(one, drawing, id="shoes/x/9.png")
        assert answer.status_code == 409
        assert "ids that begin with 'shoes/' are of a collection" in answer.json()["detail"]
        assert add(one, drawing, id="mine").status_code == 201
        assert one.delete("/items/shoes/x/0.png").status_code == 200
        (images / "a" / "0.png").unlink()
        changes = Index.build(index.encoder, images, index.place).changes
        assert (changes.removed, changes.added) == (1, 0)
        assert best(one, drawing) == ("mine", 1.0)
        assert total(one) == 12 - 1 + 4 - 1 + 1


def test_another_process_that_writes_is_waited_for(
    client: TestClient, index: Index, drawing: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = open_place(index.place)
    monkeypatch.setattr(writing, "_PATIENCE", 0.05)
    with other.writing():
        answer = add(client, drawing, id="n")
        assert answer.status_code == 503 and answer.headers["retry-after"] == "1"
        assert answer.json() == {"detail": "another process is changing the index: try again"}
        assert client.delete("/items/a/0.png").status_code == 503
        assert best(client, drawing)[0].startswith("b/")
    monkeypatch.setattr(writing, "_PATIENCE", 20.0)
    with ThreadPoolExecutor(1) as pool:
        with other.writing():
            waiting = pool.submit(add, client, drawing, id="n")
            time.sleep(0.1)
            assert not waiting.done()
        assert waiting.result().status_code == 201


def test_a_removal_that_waits_too_long_is_no_slow_upload(index: Index) -> None:
    settings = Settings(writable=True, token=TOKEN, timeout=0.3)
    with (
        TestClient(create_app(index, settings), base_url="http://localhost", headers=KNOWN) as one,
        open_place(index.place).writing(),
    ):
        answer = one.delete("/items/a/0.png")
    assert (answer.status_code, answer.json()["detail"]) == (503, "no answer within 0.3 seconds")


def test_a_full_disk_is_an_answer(
    client: TestClient, drawing: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr("whiten.serve.uploads.write_durably", full)
        answer = add(client, drawing, id="n")
    assert answer.status_code == 503
    assert answer.json() == {"detail": "nothing was stored: no space left on device"}
    assert add(client, drawing, id="n").status_code == 201


def test_an_index_made_again_with_another_model(
    client: TestClient, index: Index, images: Path, drawing: bytes
) -> None:
    shutil.rmtree(index.place)
    assert add(client, drawing, id="n").status_code == 503
    Index.build(f"{TEACHER}?seed=1", images, index.place)
    assert add(client, drawing, id="n").status_code == 201
    assert best(client, drawing) == ("n", 1.0)


def test_writes_that_wait_are_one_change_in_their_order(
    client: TestClient, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = json.loads(Path(index.place, "manifest.json").read_text())["generation"]
    go, work = threading.Event(), Batcher._answer

    def wait(batcher: Any, taken: Any) -> None:
        assert go.wait(20)
        work(batcher, taken)

    monkeypatch.setattr(Batcher, "_answer", wait)
    pictures = [encode(draw(100 + n)) for n in range(12)]
    with ThreadPoolExecutor(24) as pool:
        answers = [pool.submit(add, client, one, id=f"n{n}") for n, one in enumerate(pictures)]
        time.sleep(0.3)
        go.set()
        assert [answer.result().status_code for answer in answers] == [201] * 12
    assert total(client) == 24
    after = json.loads(Path(index.place, "manifest.json").read_text())["generation"]
    assert after - before < 12
    for number, one in enumerate(pictures):
        assert best(client, one) == (f"n{number}", 1.0)


def test_a_write_that_cannot_be_stored_spoils_no_other() -> None:
    """Writes are cut where the second needs what the first does."""
    from numpy import zeros

    def one(name: str, content: str, **values: Any) -> writing.Add:
        return writing.Add(name, name, content, zeros(2), "model", values=values)

    gone = writing.Remove("a")
    writes = [one("a", "1"), one("b", "2"), one("a", "3"), gone, gone, one("a", "1", price=1)]
    runs = list(writing._runs(writes))
    assert runs == [writes[:2], writes[2:3], writes[3:4], writes[4:5], writes[5:]]
    mixed = [one("a", "1", p=1), one("b", "2", p="x"), one("c", "3", p="y"), one("d", "3", p="z")]
    assert list(writing._runs(mixed)) == [mixed[:1], mixed[1:3], mixed[3:]]


def test_what_was_stored_before_another_process_came_is_said_to_be(
    index: Index, drawing: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of writes that wait together, only those are refused that were not made."""
    live = LiveIndex(index, writable=True)
    live.load()
    uploads = Uploads(Path(f"{index.place}-uploads"), index)
    facts, vector = index.facts, index.vectors(["a/0.png"])[0]
    one = writing.Add("n", "n", "content", vector, facts.model, data=drawing)
    other = replace(one, id="m", content="another", values={"price": 1})
    put = Index.put

    def put_once(*arguments: Any) -> Any:
        changes = put(*arguments)
        monkeypatch.setattr(Index, "put", locked)
        return changes

    def locked(*_: Any) -> Any:
        raise LockedError("another process changes it")

    monkeypatch.setattr(Index, "put", put_once)
    monkeypatch.setattr(writing, "_PATIENCE", 0.0)
    writes = [one, other, writing.Remove("a/0.png")]
    done, *refused = writing.Writer(live, uploads).apply(writes)
    assert isinstance(done, writing.Done) and done.is_new
    assert [str(error) for error in refused] == [
        "another process is changing the index: try again"
    ] * 2
    index.refresh()
    assert index.items(["n", "a/0.png"]) and len(index) == 13
    kept = [path.stem for path in Path(f"{index.place}-uploads").rglob("*.png")]
    assert kept == ["content"]


# --- killed -----------------------------------------------------------------------------


@pytest.mark.slow
def test_no_write_that_was_answered_is_lost_or_doubled(index: Index, tmp_path: Path) -> None:
    """Clients add and remove while the service is killed at random moments, again and again."""
    place, code = Path(index.place), tmp_path / "code"
    chance = random.Random(0)
    alive: dict[str, bytes] = {}  # as answered
    unsure: set[str] = set()  # were asked for when the service was killed
    lock, numbers, answered = threading.Lock(), iter(range(10**6)), [0]

    def work(url: str, seed: int) -> None:
        own = random.Random(seed)
        with httpx.Client(base_url=url, timeout=60, headers=KNOWN) as client:
            while True:
                with lock:
                    name = None
                    if alive and own.random() < 0.3:
                        name = own.choice(sorted(alive))
                        image = alive.pop(name)
                    else:
                        number = next(numbers)
                        image = encode(draw(1000 + number))
                try:
                    if name is None:
                        name = f"n{number}"
                        with lock:
                            unsure.add(name)
                        files = {"image": ("x", image)}
                        status = client.post("items", files=files, data={"id": name}).status_code
                        assert status == 201
                        stored = {name: image}
                    else:
                        with lock:
                            unsure.add(name)
                        status = client.delete(f"items/{name}").status_code
                        assert status == 200
                        stored = {}
                    with lock:
                        alive.update(stored)
                        unsure.discard(name)
                        answered[0] += 1
                except httpx.TransportError:
                    return

    for kill in range(KILLS):
        with Service(place, "--writable", code=code, token=TOKEN, is_warm=True) as service:
            threads = [
                threading.Thread(target=work, args=(service.url, 10 * kill + n)) for n in range(4)
            ]
            for thread in threads:
                thread.start()
            enough = answered[0] + chance.randint(1, 16)
            while answered[0] < enough and any(thread.is_alive() for thread in threads):
                time.sleep(0.001)
            time.sleep(chance.uniform(0, 0.05))
            os.kill(service.process.pid, signal.SIGKILL)
            for thread in threads:
                thread.join(60)
        opened = Index.open(place)
        ids = opened.ids()
        assert len(ids) == len(set(ids)) == len(opened)
        there = {name for name in ids if name.startswith("n")}
        assert set(alive) <= there, f"lost after kill {kill + 1}"
        assert there <= set(alive) | unsure, f"came back after kill {kill + 1}"
        for name in unsure & there:  # stored, but never answered
            [item] = opened.items([name])
            alive[name] = Path(item.path).read_bytes()
        unsure.clear()
        for name in chance.sample(sorted(alive), min(5, len(alive))):
            [item] = opened.items([name])
            assert Path(item.path).read_bytes() == alive[name]
    assert len(alive) > KILLS


# --- in a database ----------------------------------------------------------------------


@pytest.mark.slow
def test_a_database_is_written_as_a_folder_is(
    index: Index, images: Path, place: str, tmp_path: Path, drawing: bytes
) -> None:
    if ":" not in place:
        pytest.skip("a folder, as everywhere here")
    Index.build(index.encoder, images, place, metadata=images.parent / "prices.csv")
    settings = Settings(writable=True, token=TOKEN, roots=(images,))
    with TestClient(
        create_app(Index.open(place), settings), base_url="http://localhost", headers=KNOWN
    ) as client:
        refused = add(client, drawing)
        assert refused.status_code == 409 and "--uploads FOLDER" in refused.json()["detail"]
        new = write_image(images / "e" / "0.png", 77)
        assert client.post("/items", data={"path": "e/0.png"}).status_code == 201
        assert best(client, new.read_bytes()) == ("e/0.png", 1.0)
    settings = Settings(writable=True, token=TOKEN, uploads=tmp_path / "kept")
    with TestClient(
        create_app(Index.open(place), settings), base_url="http://localhost", headers=KNOWN
    ) as client:
        answer = add(client, drawing, id="n", metadata={"price": 99, "shop": "x"})
        assert answer.status_code == 201
        assert answer.json()["metadata"] == {"price": 99, "shop": "x"}
        assert best(client, drawing, where="shop == 'x'") == ("n", 1.0)
        assert add(client, drawing).json()["id"] == "n"
        assert client.delete("/items/n").status_code == 200
        assert client.delete("/items/n").status_code == 404
        assert total(client) == 13
        [mark] = [path for path in (tmp_path / "kept").rglob("*") if path.is_file()]
        assert mark.name == ".whiten-index" and place not in mark.read_text()
    others = Index.build(index.encoder, images, tmp_path / "other")
    with pytest.raises(ConfigError, match="keeps the uploads of a database"):
        create_app(others, settings)
