"""What clients send by mistake or on purpose: all of it is refused, with a reason."""

from __future__ import annotations

import gc
import io
import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from helpers import draw
from pictures import encode, png_chunk, png_of
from service import Serve

MAX_UPLOAD, MAX_PIXELS = 300_000, 1_000_000


@pytest.fixture
def client(serve: Serve, images: Path) -> TestClient:
    return serve(roots=(images,), max_upload=MAX_UPLOAD, max_pixels=MAX_PIXELS)


def refused(answer, *statuses: int) -> str:  # type: ignore[no-untyped-def]
    """The reason, one sentence in JSON, whatever was sent."""
    assert 400 <= answer.status_code < 500, (answer.status_code, answer.text)
    assert not statuses or answer.status_code in statuses, (answer.status_code, answer.text)
    body = answer.json()
    assert set(body) == {"detail"} and isinstance(body["detail"], str) and body["detail"]
    assert "Traceback" not in body["detail"] and "\n" not in body["detail"]
    assert len(body["detail"]) < 1000
    return str(body["detail"])


def noisy(kind: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    return encode(Image.fromarray(pixels), kind)


def huge_png(width: int, height: int) -> bytes:
    """A small file that says that it is large."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return png_of(header, zlib.compress(bytes(200_000), 9))


def unreadable() -> Iterator[tuple[str, bytes]]:
    """370 files that are no whole image."""
    rng = np.random.default_rng(7)
    for kind in ("JPEG", "PNG", "WEBP"):
        whole = noisy(kind)
        for end in rng.integers(1, int(len(whole) * 0.97), 80):
            yield f"{kind} cut at {end}", whole[:end]
    for kind in ("PNG", "WEBP"):
        whole = noisy(kind)
        for _ in range(40):  # the sizes and the checksums are where it hurts
            data = bytearray(whole)
            for at in rng.integers(0, 40, 12):
                data[at] = rng.integers(0, 256)
            yield f"{kind} with a damaged head", bytes(data)
    for size in rng.integers(1, 5000, 40):
        yield f"{size} random bytes", rng.bytes(size)
    for name, data in {
        "nothing": b"",
        "a script": b"#!/bin/sh\nrm -rf /\n",
        "HTML": b"<html><script>alert(1)</script></html>",
        "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><rect width="9" height="9"/></svg>',
        "PDF": b"%PDF-1.7\n%\xe2\xe3\n",
        "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "ZIP": b"PK\x03\x04" + bytes(60),
        "pickle": b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94.",
        "zeros": bytes(100_000),
        "JSON": json.dumps({"image": "x" * 5000}).encode(),
    }.items():
        yield name, data


@pytest.mark.slow
def test_unreadable_files(client: TestClient) -> None:
    files = list(unreadable())
    assert len(files) == 370
    for name, data in files:
        for route in ("/search", "/embed"):
            kind = "image/png"  # what a client declares is not asked
            answer = client.post(route, files={"image": ("x.png", data, kind)})
            if answer.status_code == 200 and "damaged head" in name:
                continue  # a byte may have been without meaning
            refused(answer, 415, 422)
    alive(client)


def alive(client: TestClient) -> None:
    assert client.get("/healthz").status_code == 200
    answer = client.post("/search", files={"image": ("x", encode(draw(1, 9)))}, data={"k": 1})
    assert answer.json()["hits"][0]["id"][0] == "b"


def test_a_right_image_under_a_wrong_type(client: TestClient, drawing: bytes) -> None:
    for kind in ("text/html", "application/json", "image/svg+xml", "x" * 500):
        answer = client.post("/search", files={"image": ("run.exe", drawing, kind)})
        assert answer.status_code == 200


@pytest.mark.parametrize(
    ("width", "height"), [(1001, 1000), (30000, 30000), (2**31 - 1, 2**31 - 1), (1_000_001, 1)]
)
def test_bombs(client: TestClient, width: int, height: int) -> None:
    answer = client.post("/search", files={"image": ("x", huge_png(width, height))})
    reason = refused(answer, 415)
    assert f"{width}x{height} pixels, above the limit of 1,000,000" in reason or "damaged" in reason


def test_bombs_of_other_kinds(client: TestClient) -> None:
    texts = b"".join(
        png_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(80 << 20), 9)) for _ in range(2)
    )
    small = noisy("PNG")
    refused(client.post("/search", files={"image": ("x", small[:33] + texts + small[33:])}), 415)
    gif = io.BytesIO()
    frames = [Image.new("P", (900, 900), n % 255) for n in range(60)]
    frames[0].save(gif, "GIF", save_all=True, append_images=frames[1:])
    answer = client.post("/search", files={"image": ("x", gif.getvalue())})
    assert answer.status_code == 200  # of which only the first is looked at
    thin = encode(Image.new("RGB", (60_000, 1), "red"))
    assert client.post("/search", files={"image": ("x", thin)}).status_code == 200
    for box in ("0,0,1,1", "59999,0,1,1"):
        answer = client.post("/search", files={"image": ("x", thin)}, data={"box": box})
        assert answer.status_code == 200


def test_uploads_that_are_too_large(client: TestClient) -> None:
    data = bytes(MAX_UPLOAD + 1)
    assert "above the limit of 300,000 bytes" in refused(
        client.post("/search", files={"image": ("x", data)}), 413
    )

    def pieces() -> Iterator[bytes]:  # whose length is not told beforehand
        head = '--b\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n'
        yield head.encode()
        for _ in range(20):
            yield bytes(MAX_UPLOAD // 10)

    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    refused(client.post("/search", content=pieces(), headers=kind), 413)
    many = [("image", (f"{n}", bytes(20_000))) for n in range(20)]
    refused(client.post("/search", files=many), 413)
    fields = {f"f{n}": "x" for n in range(2000)}
    refused(client.post("/search", files={"image": ("x", b"")}, data=fields), 400, 413)
    refused(client.post("/search", files={"image": ("x", b"")}, data={"where": "x" * 200_000}))
    alive(client)


BAD_FIELDS = [
    *({"k": k} for k in ("0", "-1", "1000000000", "1e3", "ten", "nan", "9" * 5000, "1.5", " ")),
    *({"threshold": t} for t in ("nan", "NaN", "inf", "-inf", "1e999", "2.01", "-2.01", "half")),
    *(
        {"box": box}
        for box in (
            *(
                "1",
                "1,2,3",
                "1,2,3,4,5",
                "a,b,c,d",
                "0,0,0,5",
                "0,0,5,-1",
                "nan,0,5,5",
                "0,0,inf,5",
            ),
            *("1e400,0,5,5", "33,0,5,5", "0,32,1,1", "-9,-9,9,9", ",,,", "0,0,1,1;", "[0,0,1,1]"),
            *("0x1,0,1,1", "9" * 100_000, "\0,0,1,1"),
        )
    ),
    *(
        {"where": where}
        for where in (
            *("price <", "nothing == 1", "price == 'ten'", "__import__('os')", "price.real > 1"),
            *("price == {[]: 1}", "(" * 500, "not " * 600),
            "not " * 400 + "price < 1",
            *(
                "price in 5",
                "id in [1]",
                "lambda: 1",
                "x" * 5000,
                "price == 1\0",
                "1",
                "'a' == 'a'",
            ),
            *("price < " + "-" * 900 + "1", "group == b'a'", "price < 1 if 1 else 2", "id == ..."),
        )
    ),
]


def test_fields_that_mean_nothing(client: TestClient, drawing: bytes) -> None:
    for fields in BAD_FIELDS:
        assert refused(
            client.post("/search", files={"image": ("x", drawing)}, data=fields), 409, 415, 422
        )
        if len(str(fields)) < 20_000:  # as much as fits into a line of HTTP
            assert refused(client.get("/search", params={"id": "a/0.png", **fields}), 409, 415, 422)
    alive(client)


NAMES = [
    *("../../etc/passwd", "/etc/passwd", "..", "....//....//etc/passwd", "a/../../../etc/passwd"),
    *("%2e%2e/%2e%2e/etc/passwd", "..%2f..%2fetc%2fpasswd", "..\\..\\windows\\win.ini", "C:\\"),
    *("file:///etc/passwd", "http://localhost/", "\\\\host\\share", "~/.ssh/id_rsa", "/dev/zero"),
    *("/proc/self/environ", "a/0.png\0.jpg", "\0", "a" * 5000, "a/" * 2000, "a\udcff", "\n", "𝕏"),
    *("a", ".", "link", "link/secret.png", "a/none.png", "/"),
]


def test_a_box_or_an_image_of_another_shape_is_told_what_it_must_be(
    client: TestClient, drawing: bytes
) -> None:
    files = {"image": ("x", drawing)}
    answer = client.post("/search", files=files, data={"box": "1,2,0,5"})
    assert refused(answer, 422) == "box: must be x,y,width,height in pixels, the last two above 0"
    answer = client.post("/search", files={"k": (None, "1"), "image": (None, "a.png")})
    assert refused(answer, 422) == "image: must be a file, not a text"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"k": "many"}, "k: must be a whole number"),
        ({"k": "1.5"}, "k: must be a whole number"),
        ({"k": "9" * 5000}, "k: must be a whole number of fewer digits"),
        ({"k": 0}, "k: must be at least 1"),
        ({"k": 1001}, "k: must be at most 1,000"),
        ({"threshold": "high"}, "threshold: must be a number"),
        ({"threshold": "nan"}, "threshold: must be a finite number"),
        ({"videos": "perhaps"}, "videos: must be true or false"),
        ({"combine": "sum"}, "combine: must be 'mean' or 'max'"),
        ({"id": ["a/0.png"] * 33}, "id: must be given at most 32 times"),
        ({"id": []}, "id: must be given"),
    ],
)
def test_a_wrong_value_is_told_in_plain_words(
    client: TestClient, fields: dict[str, Any], message: str
) -> None:
    answer = client.get("/search", params={"id": "a/0.png", **fields})
    assert refused(answer, 422) == message


def test_names_that_lead_elsewhere(client: TestClient, images: Path) -> None:
    secret = images.parent / "outside"
    secret.mkdir()
    draw(5).save(secret / "secret.png")
    (images / "link").symlink_to(secret)
    for name in NAMES:
        text = name.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
        assert refused(client.post("/search", data={"path": text}), 403, 404, 415, 422)
        assert refused(client.get("/search", params={"path": text}), 403, 404, 415, 422)
        assert refused(client.post("/search", data={"id": text}), 404, 422)
        for route in ("/search", "/item", "/image"):
            assert refused(client.get(route, params={"id": text}), 404, 422)
        quoted = "%" + name.encode("utf-8", "surrogatepass").hex("%")
        for route in ("/search?id=", "/item?id=", "/image?id=", "/search?path=", "/image/"):
            assert refused(client.get(route + quoted), 403, 404, 415, 422)
    alive(client)


def test_a_name_outside_says_nothing_of_what_is_there(client: TestClient, images: Path) -> None:
    there, nowhere = str(images.parent / "index"), str(images.parent / "nothing")
    answers = [client.post("/search", data={"path": path}).text for path in (there, nowhere)]
    assert answers[0] == answers[1]


def test_file_names_are_not_used(client: TestClient, drawing: bytes, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    for name in ("../../x.png", "/etc/passwd", "a\0b", "x" * 3000, 'a"; filename="b', "💥"):
        answer = client.post("/search", files={"image": (name, drawing)}, data={"k": 1})
        assert answer.status_code in (200, 400, 422)
    assert sorted(tmp_path.iterdir()) == before


def test_bodies_that_cannot_be_read(client: TestClient) -> None:
    form = "multipart/form-data"
    bodies = [
        (b"", form),
        (b"{", "application/json"),
        (b'{"id": "a/0.png"}', "application/json"),
        (b"[" * 100_000, "application/json"),
        (b"nothing", f"{form}; boundary=x"),
        (b"--x\r\n", f"{form}; boundary=x"),
        (b"--x\r\n\r\n\r\n--x--", f"{form}; boundary=x"),
        (
            b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\nabc\r\n--x--',
            f"{form}; boundary=x",
        ),
        (
            b'--x\r\nContent-Disposition: form-data; filename="a"\r\n\r\nabc\r\n--x--',
            f"{form}; boundary=x",
        ),
        (b"--x\r\n" + b"A: b\r\n" * 10_000 + b"\r\n", f"{form}; boundary=x"),
        (b"--x\r\nA: " + b"b" * 100_000 + b"\r\n\r\n", f"{form}; boundary=x"),
        (b"--x", f"{form}; boundary=" + "x" * 5000),
        (b"--x", f"{form}; boundary=\xff".encode("latin-1")),
        (b"%%%=%zz&id=%ff%fe", "application/x-www-form-urlencoded"),
        (b"k=1&k=2&k=x", "application/x-www-form-urlencoded"),
        (b"id=" + b"&id=" * 10_000, "application/x-www-form-urlencoded"),
        (bytes(5000), "image/png"),
        (b"\xff" * 100, "text/plain; charset=\xff".encode("latin-1")),
    ]
    for body, kind in bodies:
        for route in ("/search", "/embed"):
            refused(client.post(route, content=body, headers={"Content-Type": kind}))
    refused(client.post("/search"), 422)
    for kind in ("application/json", "Text/Plain; charset=x", "multipart/mixed; boundary=x"):
        answer = client.post("/search", content=b"{}", headers={"Content-Type": kind})
        assert refused(answer, 415).startswith("the body must be a form, multipart/form-data, not")
    both = {"files": {"image": ("x", encode(draw(0)))}, "data": {"id": "a/0.png"}}
    assert client.post("/search", **both).status_code == 200  # type: ignore[arg-type]
    assert refused(client.post("/search", data={"k": 3}), 422) == (
        "no image: send an image, a path or an id"
    )
    alive(client)


def test_unknown_fields_are_refused_by_name(client: TestClient) -> None:
    for send in (
        client.post("/search", data={"id": "a/0.png", "treshold": 1}),
        client.get("/search", params={"id": "a/0.png", "treshold": 1}),
    ):
        assert refused(send, 422) == "unknown field 'treshold'; did you mean 'threshold'?"
    sent = client.post("/embed", data={"id": "a", "k": 1})
    assert refused(sent, 422) == "unknown field 'k'"  # that /search takes


def test_unknown_fields_in_the_address_are_refused_by_name(client: TestClient) -> None:
    for route, message in (
        ("/items?limt=2", "unknown field 'limt'; did you mean 'limit'?"),
        ("/item?id=a/0.png&k=1", "unknown field 'k'"),
        ("/image?id=a/0.png&siz=64", "unknown field 'siz'; did you mean 'size'?"),
    ):
        assert refused(client.get(route), 422) == message
    sent = client.post("/search?k=1", data={"id": "a/0.png"})
    assert refused(sent, 422) == "unknown field 'k' in the address: send it in the form"
    assert client.get("/?id=a/0.png").status_code == 200  # the page, which reads its own address


def test_a_field_of_one_value_that_comes_twice_is_refused_by_name(
    client: TestClient, drawing: bytes
) -> None:
    image = ("image", ("x", drawing))
    for answer, name in (
        (client.get("/search?id=a/0.png&k=3&k=5"), "k"),
        (client.get("/item?id=a/0.png&id=a/1.png"), "id"),
        (client.get("/items?limit=1&limit=1"), "limit"),
        (client.post("/search", data={"id": "a/0.png", "k": ["3", "5"]}), "k"),
        (client.post("/search", files=[image], data={"where": ["", ""]}), "where"),
        (client.post("/embed", files=[image], data={"box": ["0,0,9,9"] * 3}), "box"),
    ):
        count = 3 if name == "box" else 2
        assert refused(answer, 422) == f"{name}: sent {count} times, of which one would count"
    for answer in (  # lists
        client.get("/search?id=a/0.png&id=a/1.png&k=1"),
        client.post("/search", data={"id": ["a/0.png", "a/1.png"]}),
        client.post("/search", files=[image, image]),
    ):
        assert answer.status_code == 200


def test_an_unreadable_image_leaves_the_others_of_its_query_alone(
    client: TestClient, drawing: bytes, recwarn: pytest.WarningsRecorder
) -> None:
    files = [("image", ("x", b"no image")), ("image", ("y", drawing))]
    refused(client.post("/search", files=files), 415)
    gc.collect()
    assert not recwarn.list  # of a coroutine that was never awaited


def test_routes_and_methods_that_are_not_there(client: TestClient) -> None:
    refused(client.get("/nothing"), 404)
    refused(client.get("/docs/"), 404)
    refused(client.post("/search/", data={"id": "a/0.png"}), 404)
    refused(client.get("/../../etc/passwd"), 404)
    refused(client.delete("/item", params={"id": "a/0.png"}), 405)
    refused(client.request("BREW", "/search"), 405)
    assert client.delete("/search").headers["allow"] == "GET, HEAD, POST"
    assert client.post("/item").headers["allow"] == "GET, HEAD"
    assert client.get("/embed").headers["allow"] == "POST"
    refused(client.get("/items", params={"offset": -1}), 422)
    refused(client.get("/items", params={"limit": 10**9}), 422)
    refused(client.get("/items", params={"offset": 10**30}), 422)
    refused(client.get("/image", params={"id": "a/0.png", "size": 10**6}), 422)
