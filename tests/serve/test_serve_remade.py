"""An index that is made again while it is served or open: its model is checked as on opening."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from helpers import FACTORY, TEACHER, draw, write_groups
from pictures import encode
from service import TestClient
from whiten.embedding.encoder import Encoder, Part
from whiten.embedding.opening import load
from whiten.errors import ConfigError, StoreError
from whiten.index import Index
from whiten.index.places import open_place
from whiten.index.query import SearchOptions
from whiten.serve import create_app, live
from whiten.whitening.whitener import Whitener

OTHER = f"{TEACHER}?seed=1"


def delete(place: str) -> None:
    """As people do it: remove the folder, drop the collections, drop the tables."""
    if ":" not in place:
        shutil.rmtree(place)
        return
    backend = open_place(place)
    with backend.writing():
        backend.discard()


def remake(place: str, images: Path, model: str | Encoder, **options: object) -> None:
    delete(place)
    Index.build(model, images, place, **options)  # type: ignore[arg-type]


@pytest.fixture
def client(
    encoder: Encoder, images: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[TestClient]:
    monkeypatch.setattr(live, "REFRESH_SECONDS", 0.0)
    Index.build(encoder, images, place)
    with TestClient(create_app(Index.open(place)), base_url="http://localhost") as started:
        yield started


def best(client: TestClient, path: Path) -> tuple[str, float]:
    answer = client.post("/search", files={"image": ("x", path.read_bytes())}, data={"k": 1})
    assert answer.status_code == 200, answer.text
    [hit] = answer.json()["hits"]
    return hit["id"], hit["score"]


@pytest.mark.slow
def test_made_again_with_another_model(client: TestClient, images: Path, place: str) -> None:
    for model in (OTHER, f"{TEACHER}?dim=5", TEACHER):  # of equal and of another dimension
        remake(place, images, model)
        assert client.get("/healthz").json() == {"status": "ok"}
        assert best(client, images / "b" / "1.png") == ("b/1.png", pytest.approx(1, abs=1e-5))
        answer = client.post("/embed", files={"image": ("x", encode(draw(1)))})
        assert answer.json()["dim"] == client.get("/index").json()["dim"] == load(model).dim


@pytest.mark.slow
def test_made_again_with_a_model_that_nothing_opens(
    client: TestClient, encoder: Encoder, images: Path, place: str
) -> None:
    vectors = np.random.default_rng(0).normal(size=(200, encoder.dim))
    fitted = Whitener(dim=encoder.dim).fit(vectors)
    remake(place, images, Encoder("whitened", [Part(encoder.parts[0].teacher, fitted)]))
    upload = {"image": ("x", encode(draw(1)))}
    for answer in (client.get("/healthz"), client.post("/search", files=upload)):
        assert answer.status_code == 503
        detail = answer.json()["detail"]
        assert "made again with another model, whitened, which cannot be opened" in detail
        assert place not in answer.text
    remake(place, images, TEACHER)
    assert client.get("/healthz").status_code == 200
    assert best(client, images / "a" / "0.png")[0] == "a/0.png"


@pytest.mark.slow
def test_a_model_that_was_named_is_kept(
    encoder: Encoder, images: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "REFRESH_SECONDS", 0.0)
    Index.build(encoder, images, place)
    app = create_app(Index.open(place, encoder))
    with TestClient(app, base_url="http://localhost") as client:
        remake(place, images, OTHER)
        for path in ("/healthz", "/items", "/search?id=a/0.png"):
            answer = client.get(path)
            assert answer.status_code == 503
            assert "made again with another model" in answer.json()["detail"]
        remake(place, images, encoder)
        assert best(client, images / "b" / "0.png") == ("b/0.png", pytest.approx(1, abs=1e-5))


def test_a_background_of_another_model(
    encoder: Encoder, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused at the start; made later, it fails the searches that use it, and no others."""
    monkeypatch.setattr(live, "REFRESH_SECONDS", 0.0)
    index = Index.build(encoder, images, tmp_path / "made")
    wrong = str(tmp_path / "wrong")
    Index.build(encoder, images, wrong)
    app = create_app(index, background=Index.open(wrong))
    with TestClient(app, base_url="http://localhost") as client:
        remake(wrong, images, OTHER)
        answer = client.get("/search?id=a/0.png&background=1")
        assert answer.status_code == 503 and "background was made again" in answer.json()["detail"]
        assert client.get("/search?id=a/0.png").status_code == 200
    with pytest.raises(StoreError, match="was made with another model"):
        create_app(index, background=Index.open(wrong))


def test_only_errors_of_a_filter_are_said_to_be_its(
    encoder: Encoder, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def beyond(*_: object) -> None:
        raise OverflowError("too large")

    index = live.LiveIndex(Index.build(encoder, images, tmp_path / "made"))
    wrong = np.ones((1, encoder.dim + 1), np.float32)
    [found] = index.search([live.Search(wrong, SearchOptions())])
    assert isinstance(found, ConfigError) and str(found).startswith("queries must be (n, ")
    monkeypatch.setattr(live, "_together", beyond)
    for text, message in (("id == 'a'", "the filter cannot be used: too large"), ("", "too large")):
        options = SearchOptions(where=index.read_where(text))
        [found] = index.search([live.Search(wrong, options)])
        assert str(found) == message


def test_a_background_that_is_deleted(
    encoder: Encoder, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fails the searches that use it, and no others; the index is not said to be gone."""
    monkeypatch.setattr(live, "REFRESH_SECONDS", 0.0)
    index = Index.build(encoder, images, tmp_path / "made")
    background = Index.build(encoder, images, tmp_path / "background")
    app = create_app(index, background=background)
    with TestClient(app, base_url="http://localhost") as client:
        delete(background.place)
        answer = client.get("/search?id=a/0.png&background=1")
        assert answer.status_code == 503
        assert answer.json()["detail"] == "the background is gone, or is being made again"
        for path in ("/search?id=a/0.png", "/healthz", "/items"):
            assert client.get(path).status_code == 200
        Index.build(encoder, images, background.place)
        assert client.get("/search?id=a/0.png&background=1").status_code == 200
        delete(index.place)
        answer = client.get("/search?id=a/0.png&background=1")
        assert answer.json()["detail"] == "the index is gone, or is being made again"


def test_deleted_and_made_again(client: TestClient, images: Path, place: str) -> None:
    delete(place)
    for path in ("/healthz", "/items", "/item?id=a/0.png", "/search?id=a/0.png"):
        answer = client.get(path)
        assert answer.status_code == 503
        assert answer.json()["detail"] == "the index is gone, or is being made again"
    assert "whiten_index_images NaN\n" in client.get("/metrics").text
    draw(40).save(images / "a" / "0.png")  # as many images as before, of the same names
    Index.build(TEACHER, images, place)
    assert best(client, images / "a" / "0.png") == ("a/0.png", pytest.approx(1, abs=1e-5))


def test_made_again_with_another_storage(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "REFRESH_SECONDS", 0.0)
    images = write_groups(tmp_path / "many", {f"g{n}": 4 for n in range(10)})
    place = str(tmp_path / "made")
    Index.build(encoder, images, place)
    with TestClient(create_app(Index.open(place)), base_url="http://localhost") as client:
        for storage in ("int8", "float16", "int8+float32", "float32"):
            remake(place, images, encoder, storage=storage)
            assert best(client, images / "g3" / "1.png") == ("g3/1.png", pytest.approx(1, abs=1e-2))


def test_a_student_replaced_at_its_path(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The URI stays, and what it opens is another model."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(live, "REFRESH_SECONDS", 0.0)
    (tmp_path / "replaced.py").write_text(FACTORY)
    place = str(tmp_path / "made")
    Index.build("python:replaced:make", images, place)
    with TestClient(create_app(Index.open(place)), base_url="http://localhost") as client:
        import replaced  # type: ignore[import-not-found]

        before = replaced.make
        monkeypatch.setattr(replaced, "make", lambda: before(seed="7"))
        remake(place, images, "python:replaced:make")
        assert best(client, images / "b" / "1.png") == ("b/1.png", pytest.approx(1, abs=1e-5))


@pytest.mark.slow
def test_an_index_that_stays_open(encoder: Encoder, images: Path, place: str) -> None:
    Index.build(encoder, images, place)
    reader, given = Index.open(place), Index.open(place, encoder)
    picture = images / "b" / "2.png"
    for index in (reader, given):
        assert index.search(picture, k=1)[0][0].id == "b/2.png"
    remake(place, images, OTHER)
    if ":" in place:  # the rows are others now, refreshed or not
        with pytest.raises(StoreError):
            reader.search(picture, k=1)
        with pytest.raises(StoreError):
            reader.vectors(["a/0.png"])
    reader.refresh()
    [[hit]] = reader.search(picture, k=1)
    assert (hit.id, hit.score) == ("b/2.png", pytest.approx(1, abs=1e-5))
    with pytest.raises(StoreError, match="was made with another model"):
        given.refresh()
    with pytest.raises(StoreError, match="was made with another model"):
        given.search(picture, k=1)
    delete(place)
    with pytest.raises(StoreError, match="is no longer an index"):
        reader.refresh()
    for use in (reader.ids, lambda: reader.search(picture), lambda: reader.items(["a/0.png"])):
        with pytest.raises(StoreError, match="is no longer an index"):
            use()


def test_several_that_no_longer_fit(
    encoder: Encoder, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are refused until they fit again, and no place on the server is named."""
    monkeypatch.setattr(live, "REFRESH_SECONDS", 0.0)
    others = write_groups(tmp_path / "others", {"z": 2})
    table = tmp_path / "table.csv"
    places = [str(tmp_path / name) for name in "AB"]

    def remake_both(first: str, second: str, group: str = "z") -> None:
        for folder, place, value in ((images, places[0], first), (others, places[1], second)):
            table.write_text(f"id,price\n{'a' if folder == images else group}/0.png,{value}\n")
            Index.build(encoder, folder, place, metadata=table, remove_missing=True)

    remake_both("1", "2")
    app = create_app(Index.open(places))
    with TestClient(app, base_url="http://localhost") as client:
        remake_both("1", "dear")
        refused(client, tmp_path)
        (others / "z").rename(others / "a")
        remake_both("1", "2", group="a")
        refused(client, tmp_path)
        (others / "a").rename(others / "z")
        remake_both("1", "2")
        assert client.get("/items").json()["total"] == len(Index.open(places))


def refused(client: TestClient, folder: Path) -> None:
    for path in ("/healthz", "/items", "/search?id=a/0.png") * 2:
        answer = client.get(path)
        assert answer.status_code == 503
        assert str(folder) not in answer.text
