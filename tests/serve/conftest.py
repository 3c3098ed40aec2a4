"""A service of twelve small drawings, by a model that costs nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers import TEACHER, draw, write_groups
from service import Serve, TestClient, as_bytes
from whiten.index import Index
from whiten.serve import Settings, create_app

GROUPS = {"a": 3, "b": 3, "c": 3, "d": 3}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_groups(tmp_path / "images", GROUPS)


@pytest.fixture
def index(colour_teachers: None, images: Path, tmp_path: Path) -> Index:
    table = tmp_path / "prices.csv"
    rows = [f"{group}/{n}.png,{10 * n}" for group, size in GROUPS.items() for n in range(size)]
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
    return as_bytes(draw(1, 9))
