"""What databases have of their own: addresses, passwords, servers that are away, foreign tables."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest

from postgres import PASSWORD, Server
from random_rows import backend_of, block_of, passing
from whiten.errors import ConfigError, MissingExtraError, StoreError
from whiten.index import Index
from whiten.index.databases import milvus
from whiten.index.databases.addresses import hide_password, read_address
from whiten.index.databases.milvus_filters import to_milvus, without_patterns
from whiten.index.databases.milvus_rows import Layout
from whiten.index.places import open_place
from whiten.index.rows import Block, Facts
from whiten.index.where import parse_where

# --- addresses --------------------------------------------------------------------------


def test_addresses() -> None:
    address = read_address("postgresql://u:p%40@h/db?sslmode=require#photos?index=hnsw", "pgvector")
    assert address.server == "postgresql://u:p%40@h/db?sslmode=require"
    assert (address.name, address.index) == ("photos", "hnsw")
    assert address.place == "pgvector:postgresql://u:***@h/db?sslmode=require#photos?index=hnsw"
    plain = read_address("/data/photos.db", "milvus")
    assert (plain.server, plain.name, plain.index) == ("/data/photos.db", "whiten", "flat")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("milvus:", "names no database"),
        ("milvus:#photos", "names no database"),
        ("milvus:photos", "a file whose name ends in .db"),
        ("milvus:x.db#a b", "after # comes the name"),
        ("milvus:x.db#" + "a" * 41, "at most 40 letters"),
        ("milvus:x.db#a?index=ivf", "only"),
        ("milvus:x.db#a?colour=red", "only"),
        ("pgvector:photos", "write it as pgvector:postgresql://"),
        ("pgvector:host=h password=hidden", "write it as pgvector:postgresql://"),
        ("pgvector:postgresql://u:hidden@h:port/db", "cannot be read"),
        ("pgvector:postgresql://u:hid#den@h/db", "write a # .* as %23"),
        ("pgvector:postgresql://h/db?password=hidden&bogus=1", "cannot be read"),
    ],
)
def test_malformed_addresses(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        open_place(text)
    assert "hid" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_passwords_are_hidden() -> None:
    assert hide_password("postgresql://me:a@b:c@h/db") == "postgresql://me:***@h/db"
    assert hide_password("postgresql://me@h/db?password=x&a=b") == (
        "postgresql://me@h/db?password=***&a=b"
    )
    assert hide_password("http://host:19530/db#photos") == "http://host:19530/db#photos"


@pytest.mark.parametrize(
    ("place", "module", "extra"),
    [
        ("milvus:http://localhost:1", "pymilvus", "milvus"),
        ("milvus:photos.db", "milvus_lite", "milvus"),
        ("pgvector:postgresql://localhost/db", "psycopg", "pgvector"),
    ],
)
def test_a_missing_client(
    monkeypatch: pytest.MonkeyPatch, place: str, module: str, extra: str
) -> None:
    monkeypatch.delitem(sys.modules, "whiten.index.databases.pgvector", raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"pip install 'whiten\[{extra}\]'"):
        open_place(place)


@pytest.mark.parametrize("scheme", ["milvus:http", "pgvector:postgresql"])
def test_no_server(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"{scheme}://me:hidden@127.0.0.1:{port}/db#photos"
    with pytest.raises(
        StoreError, match=r"server answers there .*: start it, or correct"
    ) as caught:
        open_place(address)
    assert "hidden" not in str(caught.value)
    assert "\n" not in str(caught.value)


def facts_of(dim: int = 8, **columns: str) -> Facts:
    return Facts("model", "", "random", dim, ["here"], columns)


# --- filters ----------------------------------------------------------------------------


def test_filters_for_milvus() -> None:
    columns = {"price": "float", "colour": "string"}
    layout = Layout.of(facts_of(**columns), nullable=True)

    def written(text: str) -> str:
        return to_milvus(parse_where(text, columns | {"id": "string"}), layout)

    assert written("price < 2") == "meta_price is not null and meta_price < 2.0"
    assert written("not (price < 2 or id == 'a')") == (
        '(meta_price is not null and meta_price >= 2.0) and (id != "a")'
    )
    assert written("""colour in ['a"b', 'c\\\\']""") == (
        r'meta_colour is not null and meta_colour in ["a\"b", "c\\"]'
    )


def test_filters_for_milvus_without_null_and_patterns() -> None:
    columns = {"price": "float", "colour": "string", "count": "int"}
    layout = Layout.of(facts_of(**columns), nullable=False)
    colours = ["red", "dark red", "blue", ""]

    def written(text: str) -> str:
        plain = without_patterns(parse_where(text, columns), lambda column: colours)
        return to_milvus(plain, layout)

    assert written("price is None") == "has_meta_price == false"
    assert written("not price < 2") == "has_meta_price == true and meta_price >= 2.0"
    assert written("price in [1e999]") == "has_meta_price == true and meta_price in [1e308*10]"
    assert written(f"count == {-(2**63)}") == (
        "has_meta_count == true and meta_count == -9223372036854775807-1"
    )
    assert written("colour.startswith('re')") == (
        '(has_meta_colour == true and meta_colour >= "re") and '
        '(has_meta_colour == true and meta_colour < "rf")'
    )
    assert written("not colour.endswith('red')") == (
        'has_meta_colour == true and meta_colour not in ["dark red", "red"]'
    )
    assert written("'x' in colour") == "id in []"
    for prefix, after in [("\ud7ff", "\ue000"), ("a\U0010ffff", "b")]:
        assert f'meta_colour < "{after}"' in written(f"colour.startswith({prefix!r})")


@pytest.mark.slow
def test_missing_values_without_null(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = f"milvus:{tmp_path / 'index.db'}"
    with monkeypatch.context() as older:
        older.setattr(milvus, "keeps_nulls", lambda *_: False)
        index = backend_of(place, 4, price=[1.5, None, 0.0, None], tag=["", None, "b", "ab"])
        del index
    index = Index.open(place)  # as after an update of the server
    assert [item.metadata for item in index.items(["r0", "r1", "r2", "r3"])] == [
        {"price": 1.5, "tag": ""}, {}, {"price": 0.0, "tag": "b"}, {"tag": "ab"},
    ]  # fmt: skip
    assert passing(index, "price is None") == ["r1", "r3"]
    assert passing(index, "not tag.endswith('b')") == ["r0"]
    backend = index._backend
    facts = Facts("model", "", "random", 8, ["here"], {"price": "float"})
    with backend.writing():
        backend.write(facts, (), [])  # copies the rows
    assert [item.metadata for item in index.items(["r0", "r1", "r2"])] == [
        {"price": 1.5}, {}, {"price": 0.0},
    ]  # fmt: skip
    assert passing(index, "price is not None") == ["r0", "r2"]


# --- PostgreSQL -------------------------------------------------------------------------


def write(place: str, facts: Facts, ids: list[str]) -> None:
    backend = open_place(place)
    with backend.writing():
        columns: dict[str, list[object]] = {name: [None] * len(ids) for name in facts.columns}
        backend.write(facts, (), [block_of(facts, ids, **columns)])


def test_who_may_not(postgres: Server) -> None:
    postgres.run("CREATE ROLE guest LOGIN PASSWORD 'guest'")
    postgres.run("CREATE DATABASE bare OWNER guest")
    for address, reason in [
        (postgres.dsn("postgres", password="wrong"), "password .*: correct the user, or set the"),
        (postgres.dsn("nowhere"), 'database "nowhere" does not exist: create it with `createdb`'),
        (postgres.dsn("bare", "nobody_here"), "failed .*: correct the user"),
    ]:
        with pytest.raises(StoreError, match=reason) as caught:
            open_place(f"pgvector:{address}")
        assert "\n" not in str(caught.value)
        assert PASSWORD not in str(caught.value)
        assert "wrong" not in str(caught.value)
    bare = f"pgvector:{postgres.dsn('bare', 'guest', 'guest')}"
    with pytest.raises(StoreError, match="let an administrator run CREATE EXTENSION vector"):
        write(bare, facts_of(), ["a"])
    assert open_place(bare).facts is None
    postgres.run("CREATE EXTENSION vector", "bare")
    write(bare, facts_of(), ["a"])
    assert Index(open_place(bare)).ids() == ["a"]


def test_a_table_of_something_else(postgres: Server) -> None:
    address = postgres.new_schema()
    schema = address.partition("%3D")[2].partition(",")[0]
    postgres.run(f"CREATE TABLE {schema}.photos (id text)")
    with pytest.raises(StoreError, match="is a table of something else: name another one"):
        open_place(f"pgvector:{address}#photos")
    postgres.run(f"CREATE TABLE {schema}.photos_facts (note text)")
    with pytest.raises(StoreError, match="is a table of something else"):
        open_place(f"pgvector:{address}#photos")
    place = f"pgvector:{address}#mine"
    write(place, facts_of(), ["a"])
    postgres.run(f"UPDATE {schema}.mine_facts SET format = 9")
    with pytest.raises(StoreError, match=r"has index format 9, this version reads 1: .*: upgrade"):
        open_place(place)
    postgres.run(f"UPDATE {schema}.mine_facts SET format = 1, facts = '{{}}'")
    with pytest.raises(StoreError, match=r"is damaged .*: drop its tables and index again"):
        open_place(place)


def test_what_postgres_cannot_keep(postgres: Server) -> None:
    place = f"pgvector:{postgres.new_schema()}#photos"
    with pytest.raises(StoreError, match="at most 16000 dimensions, not 16001"):
        write(place, facts_of(16001), ["a"])
    with pytest.raises(ConfigError, match="HNSW takes at most 2000 dimensions"):
        write(f"{place}?index=hnsw", facts_of(2001), ["a"])
    for name in ("ctid", "ä" * 32):
        with pytest.raises(StoreError, match=r"cannot be called .*: rename it"):
            write(place, facts_of(**{name: "int"}), ["a"])
    assert open_place(place).facts is None
    write(place, facts_of(2001), ["a"])
    with pytest.raises(StoreError, match="NUL"):
        write(place, facts_of(2001), ["a\0b"])
    assert Index(open_place(place)).ids() == ["a"]


def test_a_lost_connection_is_opened_again(postgres: Server) -> None:
    index = backend_of(f"pgvector:{postgres.new_schema()}#photos", 3)
    postgres.run(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'whiten'"
    )
    with pytest.raises(StoreError, match="terminating connection"):
        index.ids()
    assert index.ids() == ["r0", "r1", "r2"]


def test_columns_have_types_of_their_own(postgres: Server) -> None:
    address = postgres.new_schema()
    backend_of(f"pgvector:{address}#photos", 2, price=[1.5, 2.5], count=[1, 2], sold=[True, None])
    import psycopg

    with psycopg.connect(address) as connection:
        found = connection.execute(
            "SELECT column_name, data_type FROM information_schema.columns "
            "WHERE table_schema = current_schema() AND table_name = 'photos'"
        ).fetchall()
    types = dict(found)
    assert (types["price"], types["count"], types["sold"]) == (
        "double precision", "bigint", "boolean",
    )  # fmt: skip


def recall(index: Index, vectors: np.ndarray, queries: np.ndarray) -> float:
    best = np.argsort(-(queries @ vectors.T), axis=1)[:, :10]
    found = index.search_vectors(queries, 10)
    return float(
        np.mean([
            len({hit.id for hit in hits} & {f"r{n}" for n in order}) / 10
            for hits, order in zip(found, best, strict=True)
        ])
    )  # fmt: skip


@pytest.mark.slow
def test_a_graph_answers_nearly_all(postgres: Server) -> None:
    place = f"pgvector:{postgres.new_schema()}#photos"
    index = backend_of(f"{place}?index=hnsw", 2000, dim=16, rare=[n % 50 == 0 for n in range(2000)])
    vectors = index.vectors([f"r{n}" for n in range(2000)])
    queries = np.random.default_rng(5).normal(size=(40, 16)).astype(np.float32)
    assert recall(index, vectors, queries) >= 0.95
    assert recall(Index(open_place(place)), vectors, queries) == 1.0  # the same table, exactly
    assert len(passing(index, "rare == True")) == 40  # it goes on until there are enough


@pytest.mark.slow
def test_a_graph_whose_nearest_do_not_pass_the_filter(postgres: Server) -> None:
    # What a large table makes PostgreSQL do: use the graph, and give up early.
    early = quote(" -c enable_seqscan=off -c enable_sort=off -c hnsw.max_scan_tuples=100")
    place = f"pgvector:{postgres.new_schema()}{early}#photos?index=hnsw"
    ones = np.ones(16, np.float32) / 4
    vectors = np.random.default_rng(3).normal(size=(3000, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    farthest = np.argsort(vectors @ ones)[:12]
    is_far = np.isin(np.arange(3000), farthest)
    facts = Facts("model", "", "random", 16, ["here"], {"far": "bool"})
    rows = block_of(facts, [f"r{n}" for n in range(3000)], far=is_far.tolist()).rows
    backend = open_place(place)
    with backend.writing():
        backend.write(facts, (), [Block(rows, vectors)])
    [hits] = Index(backend).search_vectors(ones[None], 10, where="far == True")
    assert [hit.id for hit in hits] == [f"r{n}" for n in farthest[::-1][:10]]


# --- Milvus -----------------------------------------------------------------------------


def test_a_file_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "file.db").write_text("SQLite format 3")
    (tmp_path / "folder.db").mkdir()
    (tmp_path / "folder.db" / "notes.txt").write_text("mine")
    for name in ("file.db", "folder.db"):
        with pytest.raises(StoreError, match="is no database of Milvus Lite 3"):
            open_place(f"milvus:{tmp_path / name}")
    assert [path.name for path in (tmp_path / "folder.db").iterdir()] == ["notes.txt"]


@pytest.mark.slow
def test_collections_of_something_else(tmp_path: Path) -> None:
    place = f"milvus:{tmp_path / 'index.db'}#photos"
    write(place, facts_of(), ["a"])
    backend = open_place(place)
    client = backend._client  # type: ignore[attr-defined]
    for name in ("photos_mine", "other_facts"):
        client.create_collection(name, dimension=4)
    write(place, facts_of(price="float"), ["b"])  # into a new collection
    names = client.list_collections()
    assert len(names) == 4 and {"photos_mine", "photos_facts", "other_facts"} < set(names)
    assert Index(open_place(place)).ids() == ["a", "b"]
    with pytest.raises(StoreError, match="the collection other_facts is of something else"):
        open_place(place.replace("photos", "other"))
    head = json.dumps({"format": 9})
    client.upsert("photos_facts", data=[{"key": "head", "text": head, "unused": [0.0, 0.0]}])
    with pytest.raises(StoreError, match=r"has index format 9, this version reads 1: .*: upgrade"):
        open_place(place)
    client.upsert("photos_facts", data=[{"key": "head", "text": "[]", "unused": [0.0, 0.0]}])
    with pytest.raises(StoreError, match=r"is damaged .*: drop its collections and index again"):
        open_place(place)


def test_facts_are_as_long_as_they_have_to_be(tmp_path: Path) -> None:
    place = f"milvus:{tmp_path / 'index.db'}#photos"
    facts = facts_of()
    facts.skipped.extend((f"näme {n}", "no image" * 20, "1:2:3") for n in range(1000))
    write(place, facts, ["a"])
    assert open_place(place).facts == facts
    del facts.skipped[1:]
    write(place, facts, ["a"])
    assert open_place(place).facts == facts


def test_a_text_that_milvus_cannot_keep(tmp_path: Path) -> None:
    place = f"milvus:{tmp_path / 'index.db'}#photos"
    with pytest.raises(StoreError, match=r"id of 'äää.*' has more than 65535 bytes"):
        write(place, facts_of(), ["ä" * 40_000])


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A Milvus server in another process: its address and its file."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    path = tmp_path / "served.db"
    command = [sys.executable, "-m", "milvus_lite", "server", "--data-dir", path]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    log = subprocess.DEVNULL
    with subprocess.Popen(command, stdout=log, stderr=log) as server:
        try:
            while server.poll() is None:
                with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port}", path
        finally:
            server.kill()


def test_a_server_is_used_as_a_file_is(served: tuple[str, Path]) -> None:
    address, path = served
    place = f"milvus:{address}#photos"
    index = backend_of(place, 20, price=[float(n) for n in range(20)])
    other = Index(open_place(place))
    assert other.ids() == index.ids() == [f"r{n}" for n in range(20)]
    assert passing(other, "price < 2") == ["r0", "r1"]
    index.remove(["r0"])
    other.refresh()
    assert len(other) == 19
    assert index._backend.known().equals(other._backend.known())
    with pytest.raises(StoreError, match="another process has it open, and Milvus Lite is for one"):
        open_place(f"milvus:{path}#photos")
