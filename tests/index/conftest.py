"""What tests of indexes share: a model that costs nothing, six images, and places of all kinds."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers import TEACHER
from whiten.embedding.encoder import Encoder
from whiten.embedding.opening import load


@pytest.fixture
def encoder(colour_teachers: None) -> Encoder:
    return load(TEACHER)


@pytest.fixture(scope="session")
def groups() -> dict[str, int]:
    return {"a": 3, "b": 3}


@pytest.fixture(params=["folder", pytest.param("milvus", marks=pytest.mark.slow), "pgvector"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "folder":
        yield str(tmp_path / "index")
    elif request.param == "milvus":
        yield f"milvus:{tmp_path / 'index.db'}#photos"
    else:
        yield f"pgvector:{request.getfixturevalue('postgres').new_schema()}#photos"
    gc.collect()  # a database is let go of with the last index that uses it
