"""The contract of indexes on a Milvus server, of a version without nullable fields."""

from __future__ import annotations

import gc
import secrets
from collections.abc import Iterator

import pytest

import milvus_server
from command_line import fails
from milvus_server import TOKEN, MilvusServer
from random_rows import backend_of
from test_filters import assert_as_python
from test_places import *  # noqa: F403 - the contract, with the place of this file
from test_places_collections import (  # noqa: F401
    cards,
    test_each_collection_is_brought_up_to_date_alone,
)
from test_places_metadata import *  # noqa: F403
from whiten.errors import StoreError
from whiten.index import Index
from whiten.index.databases import milvus_server as connecting
from whiten.index.databases.milvus_server import TOKEN as VARIABLE
from whiten.index.places import open_place

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server() -> Iterator[MilvusServer]:
    if reason := milvus_server.why_not():
        pytest.skip(reason)
    running = MilvusServer()
    yield running
    gc.collect()  # clients are let go of with the last index that uses them
    running.stop()


@pytest.fixture
def place(server: MilvusServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv(VARIABLE, TOKEN)
    yield f"milvus:{server.address}#t{secrets.token_hex(4)}"
    gc.collect()


def test_filters_are_as_python_evaluates_them(place: str) -> None:
    assert_as_python(place, 60)


def test_wrong_token(
    place: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    backend_of(place, 3)
    monkeypatch.setenv(VARIABLE, "root:hidden")
    for arguments in (["search", "--id", "r0"], ["index", "--remove", "r0"]):
        error = fails(capsys, *arguments, "--store", place)
        assert f"set {VARIABLE} to the server's token" in error and "hidden" not in error
    monkeypatch.setenv(VARIABLE, TOKEN)
    assert len(Index.open(place)) == 3


def test_too_old_a_server(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connecting, "_OLDEST", (2, 4))
    with pytest.raises(StoreError, match=r"is Milvus v2\.3\.5.*: 2\.4 or later is needed"):
        backend_of(place, 3)
    assert open_place(place).facts is None
