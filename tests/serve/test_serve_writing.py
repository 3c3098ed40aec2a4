"""Images are added and removed over HTTP, by those who may, once each, and for good."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from command_line import fails
from helpers import TEACHER, draw, write_groups, write_image
from service import Serve, Service, TestClient, as_bytes
from whiten.errors import ConfigError
from whiten.index import Index
from whiten.index.places import open_place
from whiten.serve import Settings, create_app, writing
from whiten.serve.batching import Batcher

TOKEN = "rose-17"
KNOWN = {"Authorization": f"Bearer {TOKEN}"}
KILLS = 20


@pytest.fixture
def client(index: Index, images: Path) -> Iterator[TestClient]:
    settings = Settings(writable=True, token=TOKEN, roots=(images.parent,))
    with TestClient(
        create_app(index, settings), base_url="http://localhost", headers=KNOWN,
        raise_server_exceptions=False,
    ) as started:  # fmt: skip
        yield started


def add(client: TestClient, image: bytes, **fields: Any) -> Any:
    if "metadata" in fields:
        fields["metadata"] = json.dumps(fields["metadata"])
    return client.post("/items", files={"image": ("photo.jpg", image)}, data=fields)


def total(client: TestClient) -> int:
    found: int = client.get("/items").json()["total"]
    return found


def best(client: TestClient, image: bytes, **options: object) -> tuple[str, float]:
    answer = client.post("/search", files={"image": ("x", image)}, data={"k": 1, **options})
    assert answer.status_code == 200, answer.text
    hits = answer.json()["hits"]
    return (hits[0]["id"], round(hits[0]["score"], 4)) if hits else ("", 0.0)


# --- who may ----------------------------------------------------------------------------


def test_a_service_only_reads_unless_it_is_told_to_write(serve: Serve, drawing: bytes) -> None:
    client = serve(token=TOKEN)
    posted = client.post("/items", files={"image": ("x", drawing)}, headers=KNOWN)
    deleted = client.delete("/items/a/0.png", headers=KNOWN)
    for answer in (posted, deleted):
        assert answer.status_code == 405
        assert answer.headers["allow"] == "GET, HEAD"
        assert answer.json() == {"detail": "this service only reads: start it with --writable"}
    paths = client.get("/openapi.json").json()["paths"]
    assert set(paths["/items"]) == {"get"} and "/items/{id}" not in paths
    assert client.get("/items/a/0.png", headers=KNOWN).json()["id"] == "a/0.png"


def test_writing_is_behind_the_token(client: TestClient, index: Index, drawing: bytes) -> None:
    for headers in ({"Authorization": ""}, {"Authorization": "Bearer rose-1"}):
        files = {"image": ("x", drawing)}
        assert client.post("/items", files=files, headers=headers).status_code == 401
        assert client.delete("/items/a/0.png", headers=headers).status_code == 401
    foreign = {"Origin": "http://evil.example"}
    assert client.delete("/items/a/0.png", headers=foreign).status_code == 403
    assert client.put("/items").status_code == 405
    assert client.put("/items").headers["allow"] == "GET, HEAD, POST"
    assert client.put("/items/a").headers["allow"] == "DELETE, GET, HEAD"
    assert total(client) == len(index) == 12


def test_settings_of_writing(index: Index, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="writing needs a token that clients must send"):
        Settings(writable=True)
    with pytest.raises(ConfigError, match="add --writable"):
        Settings(uploads=tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is a file: name a folder for uploads"):
        Settings(writable=True, token=TOKEN, uploads=tmp_path / "file")


def test_mistakes_on_the_command_line(
    index: Index, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WHITEN_TOKEN", raising=False)
    port = ("--port", "0")
    assert "writing needs a token" in fails(capsys, "serve", index.place, *port, "--writable")


# --- adding -----------------------------------------------------------------------------


def test_an_upload_is_found_at_once(client: TestClient, index: Index, drawing: bytes) -> None:
    assert best(client, drawing)[1] < 1
    answer = add(client, drawing, id="new/b.png", metadata={"price": 25})
    assert answer.status_code == 201
    made = {"id": "new/b.png", "group": None, "frame_ms": None, "metadata": {"price": 25}}
    assert answer.json() == made
    assert best(client, drawing) == ("new/b.png", 1.0)
    assert best(client, drawing, where="price == 25") == ("new/b.png", 1.0)
    assert client.get("/items/new/b.png").json() == made
    assert client.get("/item", params={"id": "new/b.png"}).json() == made
    assert client.get("/image", params={"id": "new/b.png"}).status_code == 200
    again = Index.open(index.place)
    assert len(again) == 13
    [kept] = again.items(["new/b.png"])
    assert Path(kept.path).read_bytes() == drawing
    assert Path(kept.path).is_relative_to(Path(f"{index.place}-uploads").absolute())


def test_adding_again_changes_nothing(client: TestClient, index: Index, drawing: bytes) -> None:
    first = add(client, drawing)
    assert first.status_code == 201
    manifest = Path(index.place, "manifest.json").read_bytes()
    for fields in ({}, {"id": first.json()["id"]}):
        again = add(client, drawing, **fields)
        assert (again.status_code, again.json()) == (200, first.json())
    assert Path(index.place, "manifest.json").read_bytes() == manifest
    other = add(client, drawing, id="second")
    assert (other.status_code, other.json()["id"]) == (201, "second")
    assert total(client) == 14


def test_what_a_collection_holds_is_not_added_again(client: TestClient, images: Path) -> None:
    known = (images / "a" / "1.png").read_bytes()
    answer = add(client, known)
    assert (answer.status_code, answer.json()["id"]) == (200, "a/1.png")
    assert total(client) == 12


def test_an_id_of_another_image_is_refused(client: TestClient, drawing: bytes) -> None:
    before = client.get("/item", params={"id": "a/0.png"}).json()
    answer = add(client, drawing, id="a/0.png")
    assert answer.status_code == 409
    assert answer.json()["detail"].startswith("'a/0.png' is another image: delete it first")
    assert client.get("/item", params={"id": "a/0.png"}).json() == before


def test_metadata_of_an_image_is_brought_up_to_date(client: TestClient, images: Path) -> None:
    known = (images / "a" / "1.png").read_bytes()
    assert add(client, known, metadata={"shop": "north"}).json() == {
        "id": "a/1.png", "group": "a", "frame_ms": None, "metadata": {"price": 10, "shop": "north"},
    }  # fmt: skip
    answer = add(client, known, metadata={"price": 11.5})
    assert answer.json()["metadata"] == {"price": 11.5, "shop": "north"}
    answer = add(client, known, metadata={"shop": None})
    assert answer.json()["metadata"] == {"price": 11.5}
    found = client.get("/search", params={"id": "a/0.png", "k": 99, "where": "price > 10"}).json()
    assert "a/1.png" in [hit["id"] for hit in found["hits"]]
    assert client.get("/index").json()["columns"] == {"price": "float", "shop": "string"}


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("{", "metadata: not JSON"),
        ("[1]", "metadata: must be an object"),
        ('{"price": [1]}', "'price' must be a text, a number, true, false or null"),
        ('{"price": NaN}', "metadata: not JSON"),
        ('{"price": 99999999999999999999}', "beyond 64 bits"),
        ('{"price": "much"}', "column 'price' of the metadata does not fit the index"),
        ('{"id": "x"}', "'id' is no column"),
        ('{"": 1}', "a column cannot be called ''"),
    ],
)
def test_metadata_that_cannot_be_stored(
    client: TestClient, drawing: bytes, metadata: str, message: str
) -> None:
    answer = client.post(
        "/items", files={"image": ("x", drawing)}, data={"id": "n", "metadata": metadata}
    )
    assert answer.status_code == 422 and message in answer.json()["detail"]
    assert total(client) == 12


def test_a_file_below_a_root(client: TestClient, images: Path, tmp_path: Path) -> None:
    new = write_image(images / "e" / "0.png", 77)
    name = str(new.relative_to(images.parent))
    answer = client.post("/items", data={"path": name})
    assert (answer.status_code, answer.json()["id"]) == (201, name)
    assert client.post("/items", data={"path": str(new)}).status_code == 200
    write_image(images / "e" / "0.png", 78)  # the file is another image now
    answer = client.post("/items", data={"path": name})
    assert (answer.status_code, answer.json()["id"]) == (200, name)
    assert best(client, new.read_bytes()) == (name, 1.0)
    assert client.delete(f"/items/{name}").status_code == 200
    assert new.exists()
    assert client.post("/items", data={"path": "/etc/passwd"}).status_code == 403
    assert client.post("/items", data={"path": "none.png"}).status_code == 404


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({}, 422, "send one image, or the path of one"),
        ({"image": b"no image"}, 415, ""),
        ({"image": b""}, 415, "empty file"),
        ({"ids": "x"}, 422, "unknown field 'ids'; did you mean 'id'"),
        ({"id": "x" * 1001}, 422, "id: "),
    ],
)
def test_what_cannot_be_added(
    client: TestClient, fields: dict[str, Any], status: int, message: str
) -> None:
    image = fields.pop("image", None)
    files = None if image is None else {"image": ("x", image)}
    answer = client.post("/items", files=files, data=fields)
    assert answer.status_code == status and message in answer.json()["detail"]
    assert total(client) == 12


def test_an_image_over_the_limits(index: Index) -> None:
    settings = Settings(writable=True, token=TOKEN, max_pixels=1000)
    with TestClient(create_app(index, settings), base_url="http://localhost", headers=KNOWN) as one:
        answer = add(one, as_bytes(draw(1, 9, 64)))
    assert answer.status_code == 415 and "above the limit of 1,000" in answer.json()["detail"]
    assert not Path(f"{index.place}-uploads").exists()


# --- removing ---------------------------------------------------------------------------


def test_a_removed_image_is_gone_at_once(client: TestClient, index: Index, drawing: bytes) -> None:
    add(client, drawing, id="x y/ü?.png")
    add(client, drawing, id="second")
    [kept] = Index.open(index.place).items(["second"])
    answer = client.delete("/items/x%20y/%C3%BC%3F.png")
    assert (answer.status_code, answer.json()["id"]) == (200, "x y/ü?.png")
    assert best(client, drawing) == ("second", 1.0)
    assert Path(kept.path).read_bytes() == drawing  # which the other image has, too
    assert client.delete("/items/second").status_code == 200
    assert not Path(kept.path).exists()
    assert best(client, drawing)[0].startswith("b/")
    for name in ("second", "none", "a"):
        answer = client.delete(f"/items/{name}")
        assert (answer.status_code, answer.json()) == (
            404, {"detail": f"there is no image {name!r}"},
        )  # fmt: skip
    assert total(client) == 12


def test_all_images_may_be_removed_and_others_added(client: TestClient, drawing: bytes) -> None:
    for item in client.get("/items").json()["items"]:
        assert client.delete(f"/items/{item['id']}").status_code == 200
    assert total(client) == 0
    assert client.get("/healthz").status_code == 200
    assert best(client, drawing) == ("", 0.0)
    assert add(client, drawing, id="first").status_code == 201
    assert best(client, drawing) == ("first", 1.0)


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
    pictures = [as_bytes(draw(100 + n)) for n in range(12)]
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
                        image = as_bytes(draw(1000 + number))
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
        with Service(place, "--writable", code=code, token=TOKEN) as service:
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
        assert not any(path.is_file() for path in (tmp_path / "kept").rglob("*"))
