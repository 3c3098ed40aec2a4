"""Filters, metadata and hostile names: the same in every place of an index."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from random_rows import backend_of, block_of, passing
from whiten.embedding.encoder import Encoder
from whiten.index import Index
from whiten.index.places import open_place
from whiten.index.rows import Block, Facts

# --- filters


FILTERS = [
    ("price < 2", ["r0"]),
    ("price <= 2.5 and not price == 1", ["r1"]),
    ("not price < 2", ["r1", "r3", "r5"]),
    ("not (price < 2 or count > 7)", ["r1"]),
    ("price > 1e30", ["r5"]),
    ("price in [1, 2.5, 9]", ["r0", "r1", "r3"]),
    ("price not in [1]", ["r1", "r3", "r5"]),
    ("price in []", []),
    ("not price in []", ["r0", "r1", "r3", "r5"]),
    ("count == 16777217", ["r3"]),
    ("count < 7.5", ["r0", "r1"]),
    ("count >= -1e300", ["r0", "r1", "r3", "r4"]),
    ("count == 7.5", []),
    ("count != 7.5", ["r0", "r1", "r3", "r4"]),
    ("count in [-3, 7.0, 8.5]", ["r0", "r1"]),
    ("count == 9223372036854775807", ["r4"]),
    ("count < 9223372036854775808", ["r0", "r1", "r3", "r4"]),
    ("5 < count < 100", ["r1"]),
    ("sold == True", ["r0", "r4"]),
    ("sold != True", ["r1"]),
    ("not sold in [True]", ["r1"]),
    ("not (sold == True and price < 2)", ["r1", "r3", "r5"]),
    ("colour == 'red'", ["r0"]),
    ("colour != 'red'", ["r1", "r2", "r3", "r4"]),
    ("colour > 'red'", ["r1", "r4"]),
    ("colour == ''", ["r2"]),
    ("colour == 'r%' or colour == 'r_d'", []),
    ("""colour == 'it\\'s "so"\\\\\\n{x}'""", ["r3"]),
    ("colour in ['Zürich', 'zürich', '\\'']", ["r4"]),
    ("id == 'r2' or id in ['r4', 'no']", ["r2", "r4"]),
    ("id not in []", ["r0", "r1", "r2", "r3", "r4", "r5"]),
    ("not id > 'r2'", ["r0", "r1", "r2"]),
    ("group == 'x'", []),
    ("not group == 'x'", []),
    ("frame_ms < 10", []),
]  # fmt: skip


def test_filters(place: str) -> None:
    index = backend_of(
        place, 6,
        price=[1.0, 2.5, None, 9.0, None, float("inf")],
        count=[-3, 7, None, 16777217, 2**63 - 1, None],
        sold=[True, False, None, None, True, None],
        colour=["red", "rot", "", 'it\'s "so"\\\n{x}', "zürich", None],
    )  # fmt: skip
    found = {where: passing(index, where) for where, _ in FILTERS}
    assert found == dict(FILTERS)


def test_filters_come_before_the_best(place: str) -> None:
    index = backend_of(place, 2000, dim=24, rare=[n % 400 == 0 for n in range(2000)])
    vectors = index.vectors([f"r{n}" for n in range(2000)])
    query = np.random.default_rng(5).normal(size=(1, 24)).astype(np.float32)
    rare = np.arange(0, 2000, 400)
    order = rare[np.argsort(-(vectors[rare] @ query[0]))]
    [hits] = index.search_vectors(query, 10, where="rare == True")
    assert [hit.id for hit in hits] == [f"r{n}" for n in order]


# --- metadata ---------------------------------------------------------------------------


@pytest.mark.slow
def test_columns_of_the_metadata_change(encoder: Encoder, images: Path, place: str) -> None:
    def build(**columns: list[object]) -> Index:
        table = images.parent / "metadata.parquet"
        pq.write_table(pa.table({"id": ["a/0.png", "b/1.png"], **columns}), table)
        return Index.build(encoder, images, place, metadata=table)

    first = build(price=[1.5, float("nan")], **{"we 'ird\" näme": ["x", "y"]})
    assert first.items(["a/0.png"])[0].metadata == {"price": 1.5, "we 'ird\" näme": "x"}
    assert first.items(["b/1.png"])[0].metadata == {"we 'ird\" näme": "y"}
    again = build(price=[1.5, float("nan")], **{"we 'ird\" näme": ["x", "y"]})
    assert (again.changes.unchanged, again.changes.embedded) == (6, 0)
    del first, again
    second = build(price=["dear", None], select=[True, False])
    assert second.changes.embedded == 0
    assert passing(second, "price == 'dear'") == passing(second, "select == True") == ["a/0.png"]
    assert second.facts.columns == {"price": "string", "select": "bool"}
    del second
    third = Index.build(encoder, images, place)  # as every night
    assert third.facts.columns == {"price": "string", "select": "bool"}
    assert (third.changes.unchanged, third.changes.dropped) == (6, [])
    assert passing(third, "price == 'dear'") == ["a/0.png"]
    del third
    dropped = Index.build(encoder, images, place, drop_columns=["price", "select"])
    assert dropped.changes.dropped == ["price", "select"]
    del dropped
    opened = Index.open(place, encoder)
    assert opened.facts.columns == {}
    assert {str(match.metadata) for match in opened.items(opened.ids())} == {"{}"}
    [[hit]] = opened.search(images / "a" / "0.png", k=1)
    assert (hit.id, hit.score) == ("a/0.png", pytest.approx(1, abs=1e-5))


# --- names that databases stumble over --------------------------------------------------

HOSTILE = [
    "it's", 'say "hi"', "back\\slash", "per%cent", "under_score", "new\nline", "tab\tcr\r", "🦄/é",
    "x'; DROP TABLE photos; --", '" or id != "', "{v}", "%s", "$1", "\x01\x7f", " ", "long" * 1000,
    "[1]", "null", "hex:00",
]  # fmt: skip


def test_hostile_ids(place: str) -> None:
    facts = Facts("model", "", "random", 8, columns={"tag": "string"})
    backend = open_place(place)
    block = block_of(facts, HOSTILE, tag=list(HOSTILE))
    with backend.writing():
        backend.write(facts, (), [block])
    index = Index(open_place(place))
    assert index.ids() == HOSTILE
    assert np.array_equal(index.vectors(HOSTILE), block.vectors)
    for name, vector in zip(HOSTILE, block.vectors, strict=True):
        [[hit]] = index.search_vectors(vector[None], 1)
        assert (hit.id, hit.path, hit.metadata) == (name, f"/images/{name}", {"tag": name})
        assert passing(index, f"id == {name!r} and tag in [{name!r}]") == [name]
        assert name not in passing(index, f"id != {name!r}")
    for name in HOSTILE[::2]:
        index.remove(name)
    assert Index(open_place(place)).ids() == HOSTILE[1::2]


def test_paths_that_are_not_text(place: str) -> None:
    facts = Facts("model", "", "random", 8)
    block = block_of(facts, ["a", "b", "c", "d"])
    paths = [b"/caf\xe9.png", b"hex:2f", "/café.png".encode(), b"\\x2f"]
    at = block.rows.schema.get_field_index("path")
    field = block.rows.schema.field(at)
    rows = block.rows.set_column(at, field, pa.array(paths, field.type))
    backend = open_place(place)
    with backend.writing():
        backend.write(facts, (), [Block(rows, block.vectors)])
    index = Index(open_place(place))
    assert index._backend.known()["path"].to_pylist() == paths
    found = index.items(list("abcd"))
    assert [match.path for match in found] == [os.fsdecode(path) for path in paths]
