"""Images are added and removed over HTTP, by those who may, once each, and for good."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from command_line import fails
from helpers import TEACHER, draw, write_image
from pictures import encode
from service import Serve, TestClient
from whiten.errors import ConfigError
from whiten.index import Index
from whiten.serve import Settings, create_app
from writes import KNOWN, TOKEN, add, best, total

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


def test_an_image_whose_file_is_gone_takes_the_one_sent(
    client: TestClient, index: Index, images: Path
) -> None:
    known = images / "a" / "1.png"
    content = known.read_bytes()
    known.unlink()
    shown = {"id": "a/1.png", "size": 16}
    assert client.get("/image", params=shown).status_code == 404
    answer = add(client, content)
    assert (answer.status_code, answer.json()["id"], answer.json()["group"]) == (
        200, "a/1.png", "a",
    )  # fmt: skip
    assert client.get("/image", params=shown).status_code == 200
    [kept] = Index.open(index.place).items(["a/1.png"])
    Path(kept.path).unlink()
    assert add(client, content, id="a/1.png").status_code == 200
    assert Path(kept.path).read_bytes() == content
    assert Index.build(TEACHER, images, index.place).changes.removed == 0
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


def test_a_group_is_changed_and_taken_away(client: TestClient, images: Path) -> None:
    known = (images / "a" / "1.png").read_bytes()
    for group in ("z", "z", None, None):
        answer = add(client, known, metadata={"group": group})
        assert (answer.status_code, answer.json()["group"]) == (200, group)
    assert client.get("/items/a/0.png").json()["group"] == "a"


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
        ('{" ": 1}', "a column cannot be called ' '"),
    ],
)
def test_metadata_that_cannot_be_stored(
    client: TestClient, index: Index, drawing: bytes, metadata: str, message: str
) -> None:
    answer = client.post(
        "/items", files={"image": ("x", drawing)}, data={"id": "n", "metadata": metadata}
    )
    assert answer.status_code == 422 and message in answer.json()["detail"]
    assert total(client) == 12
    assert not [*Path(f"{index.place}-uploads").rglob("*.png")]


def test_a_refused_upload_leaves_those_of_others(
    index: Index, images: Path, drawing: bytes, tmp_path: Path
) -> None:
    """Of images with the same content, also if the folder is called otherwise now."""
    kept, link = tmp_path / "kept", tmp_path / "link"
    kept.mkdir()
    link.symlink_to(kept)
    for uploads in (kept, link):
        settings = Settings(writable=True, token=TOKEN, uploads=uploads)
        app = create_app(Index.open(index.place), settings)
        with TestClient(app, base_url="http://localhost", headers=KNOWN) as one:
            assert add(one, drawing, id="first").status_code in (200, 201)
            assert add(one, drawing, id="n", metadata={"price": "much"}).status_code == 422
            assert add(one, drawing, id="second").status_code == 201
            assert one.delete("/items/second").status_code == 200
            assert one.get("/image?id=first").status_code == 200


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


def test_a_file_that_was_indexed_through_a_link(index: Index, images: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(images)
    index = Index.build(TEACHER, tmp_path / "link", tmp_path / "linked")
    settings = Settings(writable=True, token=TOKEN, roots=(tmp_path / "link",))
    with TestClient(create_app(index, settings), base_url="http://localhost", headers=KNOWN) as one:
        changed = write_image(images / "a" / "0.png", 78)
        answer = one.post("/items", data={"path": "a/0.png"})
        assert (answer.status_code, answer.json()["id"]) == (200, "a/0.png")
        assert best(one, changed.read_bytes()) == ("a/0.png", 1.0)


@pytest.mark.parametrize("name", ["two\nlines", "end\n", "\n", "a/b\r\n/c", "\u2028"])
def test_an_id_with_line_breaks(client: TestClient, drawing: bytes, name: str) -> None:
    assert add(client, drawing, id=name.splitlines()[0] or "x").status_code == 201
    assert add(client, drawing, id=name).json()["id"] == name
    path = f"/items/{quote(name)}"
    assert client.get(path).json()["id"] == name
    assert client.delete(path).json()["id"] == name
    assert client.get(path).status_code == 404
    assert total(client) == 13  # the image whose id lacks the line break stays


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({}, 422, "send one image, or the path of one"),
        ({"image": b"no image"}, 415, ""),
        ({"image": b""}, 415, "empty file"),
        ({"ids": "x"}, 422, "unknown field 'ids'; did you mean 'id'"),
        ({"id": ["x", "y"]}, 422, "id: sent 2 times, of which one would count"),
        ({"id": "x" * 1001}, 422, "id: "),
        ({"image": b"x", "id": "."}, 422, "an id cannot be '.'"),
        ({"image": b"x", "id": ".."}, 422, "an id cannot be '..'"),
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
        answer = add(one, encode(draw(1, 9, 64)))
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


def test_only_uploads_are_deleted_from_their_folder(
    index: Index, images: Path, drawing: bytes
) -> None:
    settings = Settings(writable=True, token=TOKEN, uploads=images)
    with TestClient(create_app(index, settings), base_url="http://localhost", headers=KNOWN) as one:
        assert one.delete("/items/a/0.png").status_code == 200
        assert (images / "a" / "0.png").exists()  # the user's own
        before = set(images.rglob("*.png"))
        add(one, drawing, id="n")
        [upload] = set(images.rglob("*.png")) - before
        assert one.delete("/items/n").status_code == 200
        assert not upload.exists()


def test_each_index_has_a_folder_of_its_own_for_uploads(
    index: Index, images: Path, tmp_path: Path, drawing: bytes
) -> None:
    kept = tmp_path / "kept"
    settings = Settings(writable=True, token=TOKEN, uploads=kept)
    other = Index.build(TEACHER, images, tmp_path / "other")
    with (
        TestClient(create_app(index, settings), base_url="http://localhost", headers=KNOWN) as one,
        TestClient(create_app(other, settings), base_url="http://localhost", headers=KNOWN) as two,
    ):
        assert add(one, drawing, id="n").status_code == 201
        refused = add(two, drawing, id="n")
        assert refused.status_code == 422
        assert f"keeps the uploads of {index.place}" in refused.json()["detail"]
        assert one.get("/image?id=n").status_code == 200
    with pytest.raises(ConfigError, match="name another folder with --uploads"):
        create_app(other, settings)
    create_app(index, settings)
    (tmp_path / "link").symlink_to(index.place)
    create_app(Index.open(tmp_path / "link"), settings)
    moved = tmp_path / "moved"
    Path(index.place).rename(moved)
    with TestClient(
        create_app(Index.open(moved), settings), base_url="http://localhost", headers=KNOWN
    ) as one:
        assert add(one, drawing, id="n").status_code == 200
        assert one.delete("/items/n").status_code == 200
        assert add(one, drawing, id="n").status_code == 201
    with pytest.raises(ConfigError, match=f"keeps the uploads of {moved}"):
        create_app(other, settings)


def test_what_is_added_to_an_emptied_index_stays(
    client: TestClient, index: Index, images: Path, drawing: bytes
) -> None:
    for item in client.get("/items").json()["items"]:
        assert client.delete(f"/items/{item['id']}").status_code == 200
    assert add(client, drawing, id="new", metadata={"price": 5}).status_code == 201
    again = Index.build(TEACHER, images, index.place)
    assert (again.changes.added, again.changes.removed, total(client)) == (12, 0, 13)
    assert client.get("/items/new").json()["metadata"] == {"price": 5}


def test_all_images_may_be_removed_and_others_added(client: TestClient, drawing: bytes) -> None:
    for item in client.get("/items").json()["items"]:
        assert client.delete(f"/items/{item['id']}").status_code == 200
    assert total(client) == 0
    assert client.get("/healthz").status_code == 200
    assert best(client, drawing) == ("", 0.0)
    assert add(client, drawing, id="first").status_code == 201
    assert best(client, drawing) == ("first", 1.0)
