"""The interface: what is found, listed, shown and counted."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from helpers import TEACHER, draw, write_groups, write_image
from pictures import encode
from service import Serve, TestClient
from whiten.errors import NotThereError, StorageError
from whiten.index import Index
from whiten.index.query import SearchOptions, combined, search
from whiten.models.inputs import Rendered, show
from whiten.serve import create_app, live


def ids(answer) -> list[str]:  # type: ignore[no-untyped-def]
    assert answer.status_code == 200, answer.text
    return [hit["id"] for hit in answer.json()["hits"]]


def test_an_upload_finds_what_the_library_finds(serve: Serve, index: Index, drawing: bytes) -> None:
    hits = serve().post("/search", files={"image": ("x", drawing)}, data={"k": 5}).json()["hits"]
    [expected] = index.search(Image.open(io.BytesIO(drawing)), 5)
    assert [hit["id"] for hit in hits] == [match.id for match in expected]
    assert {hit["id"][0] for hit in hits[:3]} == {"b"}
    assert [hit["score"] for hit in hits] == pytest.approx([m.score for m in expected], abs=1e-6)
    assert hits[0]["metadata"] == expected[0].metadata
    assert hits[0]["group"] == "b"
    assert str(index.place) not in json.dumps(hits) and "path" not in hits[0]


def test_a_large_jpeg_finds_itself_exactly(serve: Serve, index: Index, images: Path) -> None:
    """An upload is decoded at a reduced size just as an indexed file is."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((700, 500)).save(images / "a" / "large.jpg", quality=80)
    Index.build(index.encoder, images, index.place)
    client = serve()
    file = (images / "a" / "large.jpg").read_bytes()
    [hit] = client.post("/search", files={"image": ("x", file)}, data={"k": 1}).json()["hits"]
    assert hit["id"] == "a/large.jpg"
    assert hit["score"] == pytest.approx(1, abs=1e-6)


def test_uploads_are_decoded_before_they_reach_the_model(
    serve: Serve, index: Index, drawing: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a pool of threads, so that the model does not wait for them."""
    embed, taken = index.encoder.embed, []

    def note(images):  # type: ignore[no-untyped-def]
        taken.extend(images)
        return embed(images)

    monkeypatch.setattr(index.encoder, "embed", note)
    answer = serve().post("/embed", files={"image": ("x", drawing)}).json()
    [given] = taken
    preprocess = index.encoder.parts[0].teacher.preprocess
    assert isinstance(given, Rendered)
    np.testing.assert_array_equal(given.pixels[preprocess], show(drawing, preprocess))
    np.testing.assert_array_equal(answer["embeddings"], embed([drawing]))


def test_by_id_and_by_path(serve: Serve, images: Path) -> None:
    client = serve(roots=(images,))
    by_id = client.get("/search", params={"id": "c/1.png", "k": 3})
    assert ids(by_id)[0] == "c/1.png" and {name[0] for name in ids(by_id)} == {"c"}
    for path in ("c/1.png", str(images / "c" / "1.png")):
        by_path = client.post("/search", data={"path": path, "k": 3})
        assert ids(by_path) == ids(by_id)
        assert by_path.json()["hits"][0]["score"] == pytest.approx(1, abs=1e-6)


def test_threshold_and_filter(serve: Serve) -> None:
    client = serve()
    every = client.get("/search", params={"id": "a/0.png", "k": 12}).json()["hits"]
    assert len(every) == 12
    bar = (every[4]["score"] + every[5]["score"]) / 2
    above = client.get("/search", params={"id": "a/0.png", "k": 12, "threshold": bar})
    assert ids(above) == [hit["id"] for hit in every[:5]]
    some = client.get(
        "/search", params={"id": "a/0.png", "k": 12, "where": "price >= 10 and group != 'a'"}
    )
    expected = [h["id"] for h in every if h["metadata"]["price"] >= 10 and h["group"] != "a"]
    assert ids(some) == expected and len(expected) == 6


def test_a_box_is_searched_alone(serve: Serve) -> None:
    """A picture of two drawings: each half finds its own group."""
    wide = Image.new("RGB", (64, 32))
    wide.paste(draw(0, 7), (0, 0))
    wide.paste(draw(3, 7), (32, 0))
    client = serve()
    files = {"image": ("x", encode(wide))}
    for box, group in {"0,0,32,32": "a", "32,0,32,32": "d", "31.6,-5,900,900": "d"}.items():
        found = ids(client.post("/search", files=files, data={"box": box, "k": 3}))
        assert {name[0] for name in found} == {group}, box


def test_a_box_is_of_the_upright_image(serve: Serve) -> None:
    wide = Image.new("RGB", (64, 32))
    wide.paste(draw(0, 7), (0, 0))
    wide.paste(draw(3, 7), (32, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to see it
    turned = encode(wide.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif)
    data = {"box": "32,0,32,32", "k": 3}
    found = ids(serve().post("/search", files={"image": ("x", turned)}, data=data))
    assert {name[0] for name in found} == {"d"}


def test_a_box_of_an_indexed_image(serve: Serve, index: Index) -> None:
    client = serve()
    quarter = client.get("/search", params={"id": "a/0.png", "box": "0,0,16,16", "k": 12})
    corner = draw(0, 0).crop((0, 0, 16, 16))
    [expected] = index.search(corner, 12)
    assert ids(quarter) == [match.id for match in expected]


def test_several_images_are_one_query(serve: Serve, index: Index, drawing: bytes) -> None:
    """As on the command line: one mean, or the best similarity to any of them."""
    client = serve()
    files = [("image", ("x", drawing)), ("image", ("y", encode(draw(2, 8))))]
    vectors = np.concatenate(
        [
            index.encoder.embed([Image.open(io.BytesIO(file[1])) for _, file in files]),
            index.vectors(["d/2.png"]),
        ]
    )
    for combine in ("mean", "max"):
        form = {"id": "d/2.png", "combine": combine, "k": 12}
        hits = client.post("/search", files=files, data=form).json()["hits"]
        expected = search(index, combined(vectors, combine), SearchOptions(12))  # type: ignore[arg-type]
        assert [hit["id"] for hit in hits] == [hit.id for hit in expected]
        scores = [hit.score for hit in expected]
        assert [hit["score"] for hit in hits] == pytest.approx(scores, abs=1e-6)


def test_every_option_of_a_search(serve: Serve, index: Index, tmp_path: Path) -> None:
    wrong = Index.build(index.encoder, write_groups(tmp_path / "more", {"x": 3}), tmp_path / "w")
    with TestClient(create_app(index, background=wrong), base_url="http://localhost") as client:
        vectors = index.vectors(["b/1.png"])
        for form, options in (
            ({"expand": 2, "alpha": 1}, SearchOptions(10, expand=2, alpha=1)),
            ({"videos": True, "k": 3}, SearchOptions(3, videos=True)),
            ({"background": True}, SearchOptions(10, background=wrong)),
            ({"threshold": 0.5, "expand": 1}, SearchOptions(10, 0.5, expand=1)),
        ):
            hits = client.get("/search", params={"id": "b/1.png", **form}).json()["hits"]
            expected = search(index, vectors, options)
            assert [hit["id"] for hit in hits] == [hit.id for hit in expected]
            scores = [hit.score for hit in expected]
            assert [hit["score"] for hit in hits] == pytest.approx(scores, abs=1e-6)
    answer = serve().get("/search", params={"id": "b/1.png", "background": True})
    assert answer.status_code == 409 and "start it with --background" in answer.json()["detail"]


def test_head_is_get_without_a_body(serve: Serve) -> None:
    client = serve()
    for url in ("/", "/docs", "/index", "/items", "/healthz", "/metrics", "/search?id=a/0.png"):
        head, get = client.head(url), client.get(url)
        assert (head.status_code, head.headers["content-type"], head.content) == (
            200,
            get.headers["content-type"],
            b"",
        )


def test_embed(serve: Serve, index: Index, drawing: bytes) -> None:
    client = serve()
    answer = client.post("/embed", files={"image": ("x", drawing)}).json()
    assert answer["dim"] == 12
    expected = index.encoder.embed(Image.open(io.BytesIO(drawing)))[0]
    assert np.allclose(answer["embeddings"], [expected], atol=1e-6)
    named = client.post("/embed", data={"id": "d/2.png"}).json()
    assert np.allclose(named["embeddings"][0], index.vectors(["d/2.png"])[0], atol=1e-6)


def test_items(serve: Serve, index: Index) -> None:
    client = serve()
    pages = [client.get("/items", params={"offset": o, "limit": 5}).json() for o in (0, 5, 10, 15)]
    assert [len(page["items"]) for page in pages] == [5, 5, 2, 0]
    assert {page["total"] for page in pages} == {12}
    assert [item["id"] for page in pages for item in page["items"]] == index.ids()
    item = client.get("/item", params={"id": "b/2.png"}).json()
    assert item == {"id": "b/2.png", "group": "b", "frame_ms": None, "metadata": {"price": 20}}
    assert client.get("/item", params={"id": "b/3.png"}).status_code == 404


def test_items_over_rows_that_are_gone(serve: Serve, index: Index) -> None:
    index.remove(["a/1.png", "b/0.png"])
    client = serve()
    pages = [client.get("/items", params={"offset": o, "limit": 4}).json() for o in (0, 4, 8)]
    assert [item["id"] for page in pages for item in page["items"]] == index.ids()
    assert pages[0]["total"] == 10


def test_images_are_made_small(serve: Serve, index: Index, images: Path) -> None:
    Image.effect_noise((400, 200), 50).save(images / "a" / "wide.png")
    Index.build(index.encoder, images, index.place)
    client = serve()
    answer = client.get("/image", params={"id": "a/wide.png", "size": 100})
    shown = Image.open(io.BytesIO(answer.content))
    assert (shown.format, shown.size) == ("JPEG", (100, 50))
    assert answer.headers["content-type"] == "image/jpeg"
    assert (answer.headers["x-image-width"], answer.headers["x-image-height"]) == ("400", "200")
    tag = answer.headers["etag"]
    again = {"If-None-Match": tag}
    for known in (tag, f"W/{tag}", f'"other", {tag}'):  # also as a proxy passes it on
        same = client.get(
            "/image", params={"id": "a/wide.png", "size": 100}, headers={"If-None-Match": known}
        )
        assert same.status_code == 304 and same.content == b""
    # Small ones are not enlarged, and a changed file is another picture.
    small = client.get("/image", params={"id": "a/0.png", "size": 1000})
    assert Image.open(io.BytesIO(small.content)).size == (32, 32)
    Image.new("RGB", (20, 20), "red").save(images / "a" / "wide.png")
    changed = client.get("/image", params={"id": "a/wide.png", "size": 100}, headers=again)
    assert changed.status_code == 200 and changed.headers["x-image-width"] == "20"


def test_a_photograph_that_lies_is_shown_upright(serve: Serve, index: Index, images: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to see it
    Image.linear_gradient("L").resize((801, 403)).save(images / "a" / "lying.jpg", exif=exif)
    Index.build(index.encoder, images, index.place)
    answer = serve().get("/image", params={"id": "a/lying.jpg", "size": 100})
    shown = Image.open(io.BytesIO(answer.content))
    assert shown.size == (50, 100)
    assert shown.getpixel((45, 50))[0] < 40 < 200 < shown.getpixel((5, 50))[0]
    assert (answer.headers["x-image-width"], answer.headers["x-image-height"]) == ("403", "801")


def test_a_folder_that_was_indexed_by_a_relative_path(
    colour_teachers: None, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    index = Index.build(TEACHER, "images", "relative")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    index = Index.open(tmp_path / "relative", index.encoder)
    with TestClient(create_app(index), base_url="http://localhost") as client:
        assert client.get("/image", params={"id": "a/0.png"}).status_code == 200
        boxed = client.get("/search", params={"id": "a/0.png", "box": "0,0,32,32", "k": 1})
        assert ids(boxed) == ["a/0.png"]


def test_an_indexed_file_that_is_gone_or_is_no_image_any_more(serve: Serve, images: Path) -> None:
    client = serve()
    (images / "a" / "0.png").unlink()
    (images / "a" / "1.png").write_text("SECRET=1")
    for name in ("a/0.png", "a/1.png"):
        answer = client.get("/image", params={"id": name})
        assert answer.status_code == 404
        assert "cannot be shown" in answer.json()["detail"] and "SECRET" not in answer.text
        boxed = client.get("/search", params={"id": name, "box": "0,0,9,9"})
        assert (boxed.status_code, boxed.json()) == (404, answer.json())
    assert len(ids(client.get("/search", params={"id": "a/0.png"}))) == 10  # its vector is there


@pytest.mark.parametrize(
    ("error", "status"),
    [(StorageError("s3://bucket/a: no answer"), 503), (NotThereError("s3://bucket/a: gone"), 404)],
)
@pytest.mark.parametrize(
    ("route", "module"),
    [
        ("/image?id=a/0.png", "app.stamp_of"),
        ("/search?id=a/0.png&box=0,0,9,9", "embedder.read_bytes"),
    ],
)
def test_a_storage_service_that_fails(
    serve: Serve,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    status: int,
    route: str,
    module: str,
) -> None:
    def fail(path: str) -> None:
        raise error

    client = serve()
    monkeypatch.setattr(f"whiten.serve.{module}", fail)
    answer = client.get(route)
    assert answer.status_code == status and "s3://" not in answer.text
    assert ("Retry-After" in answer.headers) == (status == 503)


def test_changes_of_others_are_seen(
    serve: Serve, index: Index, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "REFRESH_SECONDS", 0.0)
    client = serve()
    write_image(images / "e" / "0.png", 99)
    other = Index.build(index.encoder, images, index.place)
    assert ids(client.get("/search", params={"id": "e/0.png", "k": 1})) == ["e/0.png"]
    other.remove("e/0.png")
    assert client.get("/search", params={"id": "e/0.png"}).status_code == 404
    assert client.get("/index").json()["images"] == 12


def test_an_index_that_is_damaged_and_mended(
    serve: Serve, index: Index, drawing: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "REFRESH_SECONDS", 0.0)
    client = serve()
    manifest = Path(index.place) / "manifest.json"
    whole = manifest.read_bytes()
    manifest.write_bytes(whole[:-30])
    for path in ("/healthz", "/items", "/item?id=a/0.png", "/search?id=a/0.png", "/index"):
        answer = client.get(path)
        assert answer.status_code == 503 and answer.headers["retry-after"] == "1", path
        assert answer.json() == {"detail": "the index cannot be read at present"}
    assert client.post("/search", files={"image": ("x", drawing)}).status_code == 503
    manifest.write_bytes(whole)
    assert client.get("/healthz").status_code == 200
    assert len(ids(client.get("/search?id=a/0.png&k=12"))) == 12


def test_metrics_count_what_was_done(serve: Serve, drawing: bytes) -> None:
    client = serve()
    for _ in range(3):
        client.post("/search", files={"image": ("x", drawing)})
    client.get("/search", params={"id": "nothing"})
    client.get("/made/up")
    client.get("/items", headers={"Host": "evil.example"})
    text = client.get("/metrics").text
    found = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert found["whiten_requests_total", "/search", "200", "POST"] == 3
    assert found["whiten_requests_total", "/search", "404", "GET"] == 1
    assert found["whiten_requests_total", "404", "GET", "other"] == 1
    assert found["whiten_requests_total", "421", "GET", "other"] == 1
    assert found["whiten_request_seconds_count", "/search"] == 4
    assert found["whiten_embedded_images_total",] == 3
    assert found["whiten_index_images",] == 12
    assert found["whiten_waiting",] == 0
    assert found["whiten_embedding_seconds_sum",] > 0


def test_about_health_and_description(serve: Serve) -> None:
    client = serve()
    about = client.get("/index").json()
    assert (about["images"], about["dim"], about["columns"]) == (12, 12, {"price": "int"})
    assert client.get("/healthz").json() == {"status": "ok"}
    paths = client.get("/openapi.json").json()["paths"]
    assert set(paths) == {
        *("/search", "/embed", "/items", "/item", "/image", "/index", "/healthz", "/metrics")
    }
    docs = client.get("/docs").text
    for path in paths:
        assert path in docs
    assert "threshold" in docs and "≥ -2, ≤ 2" in docs and "as multipart/form-data" in docs


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_reach_for_nothing(serve: Serve, path: str) -> None:
    answer = serve().get(path)
    assert "http://" not in answer.text and "https://" not in answer.text
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "unsafe" not in answer.headers["content-security-policy"]
