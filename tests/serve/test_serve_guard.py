"""Who is answered: hosts, pages of sites, tokens and roots, also behind a proxy."""

from __future__ import annotations

from pathlib import Path

import pytest

from service import Serve
from whiten.errors import ConfigError
from whiten.serve import Settings
from whiten.serve.settings import allowed_names, read_token


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "LOCALHOST:8000", "localhost.", "127.0.0.1", "127.0.0.1:8000", "[::1]"),
        *("[::1]:8000", "192.168.1.5:80", "images.example", "Images.Example:443"),
    ],
)
def test_hosts_that_are_this_service(serve: Serve, host: str) -> None:
    client = serve(hosts=("localhost", "images.example"))
    assert client.get("/items", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "localhost.evil.example", "evil.example:8000", "127.0.0.1.evil.example"),
        *("", "2130706433", "0x7f.1", "a:b:c", "[evil.example]", "images.example.evil"),
    ],
)
def test_hosts_that_are_not(serve: Serve, host: str) -> None:
    """A name that somebody points at this address (DNS rebinding) is not answered."""
    client = serve(hosts=("localhost", "images.example"))
    answer = client.get("/items", headers={"Host": host})
    assert answer.status_code == 421
    assert "--allow-host" in answer.json()["detail"]
    assert client.get("/", headers={"Host": host}).status_code == 421


def test_pages_of_other_sites_are_not_answered(serve: Serve, drawing: bytes) -> None:
    client = serve()
    files = {"image": ("x", drawing)}
    for origin in ("http://evil.example", "null", "http://localhost:9999", "http://localhost.evil"):
        answer = client.post("/search", files=files, headers={"Origin": origin})
        assert answer.status_code == 403
        assert not [name for name in answer.headers if name.startswith("access-control")]
    own = client.post("/search", files=files, headers={"Origin": "http://localhost"})
    assert own.status_code == 200
    assert not [name for name in own.headers if name.startswith("access-control")]
    embedded = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
    assert client.get("/image?id=a/0.png", headers=embedded).status_code == 403
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert client.get("/", headers=link).status_code == 200


@pytest.mark.parametrize("path", ["/", "/docs", "/items", "/image?id=a/0.png", "/nothing"])
def test_every_answer_has_safe_headers(serve: Serve, path: str) -> None:
    headers = serve().get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["x-frame-options"] == "DENY"
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["cache-control"] in ("no-store", "private, max-age=60")


def test_a_token(serve: Serve) -> None:
    client = serve(token="rose-17")
    for path in ("/items", "/search?id=a/0.png", "/image?id=a/0.png", "/metrics", "/index", "/x"):
        for header in (None, "Bearer", "Bearer rose-1", "Bearer rose-177", "Basic rose-17", "\xff"):
            headers = {} if header is None else {"Authorization": header.encode("latin-1")}
            answer = client.get(path, headers=headers)
            assert answer.status_code == 401, (path, header)
            assert answer.headers["www-authenticate"] == "Bearer"
            assert "rose" not in answer.text
    assert client.post("/search", data={"id": "a/0.png"}).status_code == 401
    known = {"Authorization": "Bearer rose-17"}
    assert client.get("/items", headers=known).json()["total"] == 12
    assert client.get("/items", headers={"Authorization": "bearer  rose-17"}).status_code == 200
    for path in ("/", "/docs", "/healthz", "/openapi.json"):
        assert client.get(path).status_code == 200


def test_the_description_says_which_routes_need_the_token(serve: Serve) -> None:
    client = serve(token="rose-17", writable=True)
    description = client.get("/openapi.json").json()
    assert description["components"]["securitySchemes"] == {
        "token": {"type": "http", "scheme": "bearer"}
    }
    for path, operations in description["paths"].items():
        for method, operation in operations.items():
            is_refused = client.request(method, path).status_code == 401
            assert operation.get("security", []) == [{"token": []}] * is_refused
    assert "securitySchemes" not in serve().get("/openapi.json").json()["components"]


def test_where_the_token_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WHITEN_TOKEN", raising=False)
    assert read_token(None) is None
    monkeypatch.setenv("WHITEN_TOKEN", "from-outside")
    assert read_token(None) == "from-outside"
    (tmp_path / "token").write_text("from-a-file\n")
    assert read_token(tmp_path / "token") == "from-a-file"
    with pytest.raises(ConfigError, match="cannot read the token"):
        read_token(tmp_path / "none")
    assert "rose" not in repr(Settings(token="rose-17"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"token": ""}, "the token must be"),
        ({"token": "two words"}, "the token must be"),
        ({"token": "grün"}, "the token must be"),
        ({"max_upload": 0}, "max_upload must be above 0, not 0"),
        ({"timeout": float("nan")}, "timeout must be above 0, not nan"),
        ({"max_pixels": 10**9}, "max_pixels must be at most 200,000,000"),
        ({"roots": (Path("/none"),)}, "/none is not a folder"),
    ],
)
def test_settings_that_cannot_be_meant(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Settings(**wrong)  # type: ignore[arg-type]


def test_the_host_that_is_listened_on_is_a_name() -> None:
    assert {"here.example", "there.example"} <= set(
        allowed_names("here.example", ("there.example",))
    )


def test_localhost_is_a_name_whatever_others_are_allowed(serve: Serve) -> None:
    client = serve(hosts=("search.example",))
    for host, status in (("localhost", 200), ("search.example", 200), ("other.example", 421)):
        assert client.get("/index", headers={"Host": host}).status_code == status


def test_roots_that_are_links(serve: Serve, images: Path, tmp_path: Path) -> None:
    """A root may be a link itself, and links inside of it may lead to another root."""
    (tmp_path / "root").symlink_to(images / "a")
    (images / "a" / "over").symlink_to(images / "b")
    alone = serve(roots=(tmp_path / "root",))
    assert alone.post("/search", data={"path": "0.png"}).status_code == 200
    assert alone.post("/search", data={"path": "over/0.png"}).status_code == 403
    both = serve(roots=(tmp_path / "root", images / "b"))
    hits = both.post("/search", data={"path": "over/0.png", "k": 1}).json()["hits"]
    assert hits[0]["id"] == "b/0.png"


def test_without_roots_there_are_no_paths(serve: Serve, images: Path) -> None:
    answer = serve().post("/search", data={"path": str(images / "a" / "0.png")})
    assert answer.status_code == 403
    assert "reads no files by path" in answer.json()["detail"]


# --- behind a proxy ---------------------------------------------------------------------

NAME = "photos.example"


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": f"{NAME}:8443", "Origin": f"https://{NAME}:8443"},  # nginx: $http_host
        {"Host": NAME, "Origin": f"https://{NAME}:8443"},  # nginx: $host
        {"Host": NAME, "Origin": f"https://{NAME}:8443", "Sec-Fetch-Site": "same-origin"},
        {"Host": NAME, "Origin": f"https://{NAME}"},
        {"Host": f"{NAME}:443", "Origin": f"https://{NAME}"},
        {"Host": "127.0.0.1:8000", "Origin": f"https://{NAME}:8443", "X-Forwarded-Host": NAME},
        {
            "Host": "127.0.0.1:8000",
            "Origin": f"https://{NAME}:8443",
            "X-Forwarded-Host": f"{NAME}:8443, inner.example",
        },
        {
            "Host": "127.0.0.1:8000",
            "Origin": f"https://{NAME}:8443",
            "X-Forwarded-Host": NAME,
            "X-Forwarded-Port": "8443",
        },
    ],
)
def test_uploads_behind_a_proxy(serve: Serve, drawing: bytes, headers: dict[str, str]) -> None:
    client = serve(base_url="http://127.0.0.1:8000", hosts=("localhost", NAME))
    answer = client.post("/search", files={"image": ("x", drawing)}, headers=headers)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (403, {"Host": NAME, "Origin": "https://evil.example"}),
        (403, {"Host": NAME, "Origin": f"https://{NAME}.evil.example:8443"}),
        (403, {"Host": NAME, "Origin": f"https://{NAME}:8443", "Sec-Fetch-Site": "same-site"}),
        (403, {"Host": f"{NAME}:8000", "Origin": f"https://{NAME}:8443"}),
        (403, {"Host": "localhost:8000", "Origin": "http://localhost:9999"}),
        (403, {"Host": "localhost:8000", "Origin": "null", "X-Forwarded-Host": NAME}),
        # A rebound name, through a proxy that replaces Host or passes it on.
        (403, {"Host": "127.0.0.1:8000", "Origin": "http://evil.example"}),
        (
            403,
            {
                "Host": "127.0.0.1:8000",
                "Origin": "http://evil.example",
                "X-Forwarded-Host": "evil.example",
                "Sec-Fetch-Site": "same-origin",
            },
        ),
        (421, {"Host": "evil.example", "Origin": "http://evil.example"}),
        (421, {"Host": "evil.example", "X-Forwarded-Host": NAME}),
        (
            403,
            {
                "Host": "127.0.0.1:8000",
                "Origin": f"https://{NAME}:9999",
                "X-Forwarded-Host": f"{NAME}:8443",
            },
        ),
    ],
)
def test_other_sites_behind_a_proxy(
    serve: Serve, drawing: bytes, status: int, headers: dict[str, str]
) -> None:
    client = serve(base_url="http://127.0.0.1:8000", hosts=("localhost", NAME))
    answer = client.post("/search", files={"image": ("x", drawing)}, headers=headers)
    assert answer.status_code == status


def test_a_service_on_the_default_port_is_not_behind_a_proxy(serve: Serve, drawing: bytes) -> None:
    client = serve(hosts=("localhost", NAME))
    headers = {"Host": NAME, "Origin": f"http://{NAME}:9999"}
    answer = client.post("/search", files={"image": ("x", drawing)}, headers=headers)
    assert answer.status_code == 403
