"""A service of twelve small drawings, by a model that costs nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from chromium import Browser
from helpers import TEACHER, draw, write_factory
from pictures import encode
from service import EVIL, Serve, Service, TestClient
from whiten.index import Index
from whiten.serve import Settings, create_app
from writes import KNOWN, TOKEN


@pytest.fixture(scope="session")
def groups() -> dict[str, int]:
    return dict.fromkeys("abcd", 3)


@pytest.fixture
def index(colour_teachers: None, groups: dict[str, int], images: Path, tmp_path: Path) -> Index:
    table = tmp_path / "prices.csv"
    rows = [f"{group}/{n}.png,{10 * n}" for group, size in groups.items() for n in range(size)]
    table.write_text("\n".join(["id,price", *rows]))
    return Index.build(TEACHER, images, tmp_path / "index", metadata=table)


@pytest.fixture
def serve(index: Index) -> Iterator[Serve]:
    """`serve(max_upload=…)`: a client of a service with these settings."""
    clients: list[TestClient] = []

    def start(*, base_url: str = "http://localhost", **settings: object) -> TestClient:
        client = TestClient(
            create_app(index, Settings(**settings)),  # type: ignore[arg-type]
            base_url=base_url,
            raise_server_exceptions=False,
        )
        clients.append(client.__enter__())
        return client

    yield start
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture
def drawing() -> bytes:
    """A drawing that looks like those of group b, and is none of them."""
    return encode(draw(1, 9))


# --- in a browser -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawings large enough to draw on, two of them side by side in one, and their index."""
    root = tmp_path_factory.mktemp("browser")
    write_factory(root / "code")
    for seed, group in enumerate("abcdefgh"):
        for n in range(4):
            path = root / "images" / group / f"{n}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            draw(seed, n, 240).save(path)
    wide = Image.new("RGB", (480, 240))
    wide.paste(draw(0, 9, 240), (0, 0))
    wide.paste(draw(3, 9, 240), (240, 0))
    wide.save(root / "images" / "wide.png")
    wide.save(root / "query.png")
    draw(1, 9, 240).save(root / "b.png")
    draw(2, 8, 240).save(root / "images" / f"{EVIL}.png")
    rows = [f"{group}/{n}.png,{n}" for group in "abcdefgh" for n in range(4)]
    (root / "prices.csv").write_text("\n".join(["id,price", *rows]))
    sys.path.insert(0, str(root / "code"))
    try:
        Index.build(TEACHER, root / "images", root / "index", metadata=root / "prices.csv")
    finally:
        sys.path.remove(str(root / "code"))
        sys.modules.pop("colour_teachers", None)
    return root


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[Service]:
    with Service(folder / "index", "--max-upload", 2, code=folder / "code") as started:
        yield started


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture
def page(chromium: Browser, service: Service) -> Browser:
    chromium.open(service.url)
    return chromium


@pytest.fixture
def client(index: Index, images: Path) -> Iterator[TestClient]:
    settings = Settings(writable=True, token=TOKEN, roots=(images.parent,))
    with TestClient(
        create_app(index, settings), base_url="http://localhost", headers=KNOWN,
        raise_server_exceptions=False,
    ) as started:  # fmt: skip
        yield started
