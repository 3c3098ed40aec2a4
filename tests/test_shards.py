"""One shard: how its files were found is noted, it can be amended, and damage is noticed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from store_helpers import ORIGIN, make_rows, make_store, rewrite
from whiten.errors import StoreError
from whiten.media.reading import Skipped
from whiten.storage.blobs import Stamp
from whiten.store.shards import Seen
from whiten.store.store import Store

SEEN = {
    "a": Seen("/photos/a.jpg", Stamp(11, 12, 13), "a" * 32),
    "b": Seen("/photos/b.jpg", None, "b" * 32),
    "gone": Seen("", None, ""),
    "bad": Seen("", Stamp(21, 22, 23), "bad" * 10),
}


def test_how_files_were_found_is_kept(tmp_path: Path) -> None:
    store = Store.create_or_resume(tmp_path / "s", ORIGIN)
    skipped = [Skipped("gone", "no such file"), Skipped("bad", "damaged")]
    store.append(make_rows("ab") + make_rows("a", view=1), skipped, SEEN)
    for opened in (store, Store.open(tmp_path / "s")):
        found = opened.seen(opened.shards[0])
        assert found == {name: seen for name, seen in SEEN.items() if name != "gone"}


def test_of_a_shard_without_such_notes_nothing_is_known(tmp_path: Path) -> None:
    path = make_store(tmp_path / "s").shards[0].path
    rewrite(path)  # as an earlier version wrote it
    store = Store.open(tmp_path / "s")
    assert store.seen(store.shards[0]) == {
        name: Seen(f"/photos/{name}.jpg", None, name * 32) for name in "abc"
    }


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_an_amended_shard_keeps_the_rest(tmp_path: Path, dtype: str) -> None:
    origin = dataclasses.replace(ORIGIN, dtype=dtype)
    store = Store.create_or_resume(tmp_path / "s", origin)
    rows = [*make_rows("abc"), *make_rows("abc", view=1)]
    store.append(rows, [Skipped("bad", "damaged"), Skipped("gone", "no such file")], SEEN)
    before = store.gather(["c", "a"], view=1)
    moved = Seen("/elsewhere/c.jpg", Stamp(1, 2, 3), "c" * 32)
    store.amend(store.shards[0], drop={"b"}, forget={"bad"}, found={"c": moved})
    for opened in (store, Store.open(tmp_path / "s")):
        (shard,) = opened.shards
        assert (shard.ids, shard.views) == (["a", "c", "a", "c"], [0, 0, 1, 1])
        assert np.array_equal(opened.gather(["c", "a"], view=1), before)
        assert opened.skipped == [Skipped("gone", "no such file")]
        assert opened.seen(shard) == {"a": SEEN["a"], "c": moved}
        assert opened.origin == origin
    table = pq.read_table(store.shards[0].path)
    assert table["path"].to_pylist() == ["/photos/a.jpg", "/elsewhere/c.jpg"] * 2
    assert table.schema.field("embedding").type.list_size == 6


@pytest.mark.parametrize("column", ["id", "content_hash", "embedding"])
def test_a_flipped_bit_is_noticed(tmp_path: Path, column: str) -> None:
    path = make_store(tmp_path / "s").shards[0].path
    group = pq.ParquetFile(path).metadata.row_group(0)
    chunks = [group.column(i) for i in range(group.num_columns)]
    (chunk,) = (c for c in chunks if c.path_in_schema.startswith(column))
    content = bytearray(path.read_bytes())
    content[chunk.data_page_offset + chunk.total_compressed_size - 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"part-000000\.parquet is damaged"):
        store = Store.open(tmp_path / "s")
        store.seen(store.shards[0])
        store.gather(["a"])


@pytest.mark.parametrize(
    "facts", [b"{", b"[]", b"{}", b'{"format": "1"}', b'{"format": "1", "skipped": 3}']
)
def test_damaged_metadata_is_refused(tmp_path: Path, facts: bytes) -> None:
    path = make_store(tmp_path / "s").shards[0].path
    pq.write_table(pq.read_table(path).replace_schema_metadata({b"whiten": facts}), path)
    with pytest.raises(StoreError, match="is damaged or not a shard"):
        Store.open(tmp_path / "s")


def test_a_flipped_bit_in_the_metadata_is_noticed(tmp_path: Path) -> None:
    path = make_store(tmp_path / "s").shards[0].path
    table = pq.read_table(path)
    for right, wrong in ((b'"plan_seed": 3', b'"plan_seed": 2'), (b"empty file", b"empty filf")):
        facts = table.schema.metadata[b"whiten"].replace(right, wrong)
        assert facts != table.schema.metadata[b"whiten"]
        metadata = {**table.schema.metadata, b"whiten": facts}
        pq.write_table(table.replace_schema_metadata(metadata), path)
        with pytest.raises(StoreError, match=r"part-000000\.parquet is damaged .*checksum"):
            Store.open(tmp_path / "s")
