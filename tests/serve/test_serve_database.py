"""A service of an index in a database: it answers as that of a folder does."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers import write_image
from service import TestClient
from whiten.index import Index
from whiten.serve import create_app, live

FILTERS = (
    *("price < 20", "price <= 10", "price > 10", "price >= 20", "price == 20", "price != 20"),
    *("group == 'a'", "group != 'a'", "group in ['a', 'd']", "group < 'c'", "id >= 'b/1.png'"),
    *("price in [0, 20]", "price in []", "not price in [0, 20]", "not price < 20"),
    *("price < 20 and group == 'a'", "price < 10 or group == 'd'", "frame_ms == 3"),
    "not (price < 10 or group == 'd') and id != 'b/1.png'",
)


@pytest.fixture(params=["milvus", "pgvector"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "milvus":
        yield f"milvus:{tmp_path / 'photos.db'}"
    else:
        yield f"pgvector:{request.getfixturevalue('postgres').new_schema()}"
    gc.collect()  # a database is let go of with the last index that uses it


@pytest.mark.slow
def test_a_database_answers_as_a_folder_does(
    index: Index, images: Path, place: str, drawing: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "REFRESH_SECONDS", 0.0)
    Index.build(index.encoder, images, place, metadata=images.parent / "prices.csv")
    folder, database = (create_app(one) for one in (index, Index.open(place)))
    questions = (
        *({"id": "a/0.png", "k": 12, "where": text} for text in FILTERS),
        {"id": "a/0.png", "k": 5},
        {"id": "c/2.png", "k": 3, "where": "price >= 10 and group != 'a'"},
        {"id": "b/1.png", "k": 12, "threshold": 0.5, "box": "2,2,20,20"},
    )
    with (
        TestClient(folder, base_url="http://localhost") as expected,
        TestClient(database, base_url="http://localhost") as asked,
    ):
        for question in questions:
            one, other = (client.get("/search", params=question) for client in (expected, asked))
            assert one.status_code == other.status_code == 200
            hits, others = one.json()["hits"], other.json()["hits"]
            assert hits or question.get("where") in ("price in []", "frame_ms == 3")
            assert [hit["id"] for hit in others] == [hit["id"] for hit in hits]
            assert [hit["score"] for hit in others] == pytest.approx(
                [hit["score"] for hit in hits], abs=1e-5
            )
            assert [hit["metadata"] for hit in others] == [hit["metadata"] for hit in hits]
        upload = {"image": ("x", drawing)}
        [best] = asked.post("/search", files=upload, data={"k": 1}).json()["hits"]
        assert best["group"] == "b"
        assert asked.get("/items").json() == expected.get("/items").json()
        assert asked.get("/image", params={"id": "a/0.png"}).status_code == 200
        assert asked.get("/item", params={"id": "none"}).status_code == 404
        for text in ("price < 'x'", "price <", "cost < 3"):
            for client in (expected, asked):
                wrong = client.get("/search", params={"id": "a/0.png", "where": text})
                assert wrong.status_code == 422, (text, wrong.text)

        new = write_image(images / "b" / "new.png", 77)
        Index.open(place, index.encoder).add(images)
        found = asked.post("/search", files={"image": ("x", new.read_bytes())}, data={"k": 1})
        assert found.json()["hits"][0]["id"] == "b/new.png"
        Index.open(place, index.encoder).remove("b/new.png")
        assert asked.get("/items").json()["total"] == 12
