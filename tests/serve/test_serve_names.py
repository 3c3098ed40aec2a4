"""Ids, columns and values over all of Unicode, through the index, the search, JSON and HTTP."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers import TEACHER
from service import TestClient
from whiten.embedding.opening import load
from whiten.index import Index
from whiten.index.columns import stored_name
from whiten.index.places import open_place
from whiten.index.rows import Block, Facts
from whiten.serve import Settings, create_app

NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


def named_index(place: Path, names: list[str], column: str) -> Index:
    """Images of these ids, each with its id in a column."""
    encoder = load(TEACHER)
    facts = Facts(encoder.fingerprint(), TEACHER, "x", encoder.dim, columns={column: "string"})
    vectors = np.eye(encoder.dim, dtype=np.float32)[: len(names)]
    rows = {
        "id": names,
        "path": [name.encode() for name in names],
        "content_hash": names,
        "stamp": names,
        "group": [None] * len(names),
        "frame_ms": [None] * len(names),
        stored_name(column): names,
    }
    backend = open_place(place)
    with backend.writing():
        backend.write(facts, (), [Block(pa.table(rows, schema=facts.schema()), vectors)])
    return Index.open(place, encoder)


@settings(deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))
@given(names=st.lists(NAMES, min_size=1, max_size=4, unique=True), column=NAMES)
def test_any_name_passes_unchanged(colour_teachers: None, names: list[str], column: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        index = named_index(Path(folder, "index"), names, column)
        with TestClient(create_app(index, Settings()), base_url="http://localhost") as client:
            listed = client.get("/items").json()
            assert [item["id"] for item in listed["items"]] == names
            for name in names:
                item = client.get("/item", params={"id": name}).json()
                assert (item["id"], item["metadata"]) == (name, {column: name})
                where = f"`{column.replace('`', '``')}` == {name!r}"
                found = client.get("/search", params={"id": name, "where": where}).json()
                assert [hit["id"] for hit in found["hits"]] == [name]
        [hits] = index.search_vectors(np.ones((1, index.facts.dim), np.float32), 9)
        shown = json.loads(json.dumps([hit.to_json() for hit in hits], ensure_ascii=False))
        assert {hit["id"]: hit["metadata"] for hit in shown} == {n: {column: n} for n in names}
