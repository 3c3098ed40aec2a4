"""Embeddings on disk: whole shards or none, one model and one plan, or a refusal by name."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from store_helpers import ORIGIN, content_hashes, make_rows, make_store, rewrite, vectors
from whiten.errors import StoreError
from whiten.media.reading import Skipped
from whiten.store.store import Store, stored_origin


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_round_trip(tmp_path: Path, dtype: str) -> None:
    make_store(tmp_path / "s", dataclasses.replace(ORIGIN, dtype=dtype))
    store = Store.open(tmp_path / "s")
    expected = vectors("abcde").astype(dtype).astype(np.float32)
    assert store.gather(list("abcde")).dtype == np.float32
    assert np.array_equal(store.gather(list("abcde")), expected)
    assert store.origin == dataclasses.replace(ORIGIN, dtype=dtype)
    assert (len(store), store.dim) == (7, 6)
    assert store.skipped == [Skipped("bad", "empty file")]
    assert content_hashes(store) == {name: name * 32 for name in "abcde"}
    origin = stored_origin(tmp_path / "s")
    assert origin is not None and origin.precision == "32"


def test_the_files_are_plain_parquet(tmp_path: Path) -> None:
    make_store(tmp_path / "s")
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == [
        "part-000000.parquet",
        "part-000001.parquet",
    ]
    table = pq.read_table(tmp_path / "s" / "part-000000.parquet")
    assert table.schema.names == [
        "id",
        "path",
        "group",
        "view",
        "frame_ms",
        "content_hash",
        "embedding",
    ]
    assert table["group"].to_pylist() == ["vowel", None, None]
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), 6)
    facts = json.loads(table.schema.metadata[b"whiten"])
    assert facts.items() >= dataclasses.asdict(ORIGIN).items()
    assert facts["skipped"] == [["bad", "empty file"]]


def test_gather_gives_the_order_asked_for(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s")
    assert np.array_equal(store.gather(["e", "a", "c"]), vectors("eac"))
    assert np.array_equal(store.gather(["b", "a"], view=1), vectors("ba", view=1))
    assert store.gather([]).shape == (0, 6)


def test_gather_names_what_is_missing(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s")
    with pytest.raises(StoreError, match=r"lacks 2 of 3 images \(view 0\), first 'x'"):
        store.gather(["a", "x", "y"])
    with pytest.raises(StoreError, match=r"lacks 1 of 2 images \(view 1\), first 'c'"):
        store.gather(["a", "c"], view=1)


def test_blocks_stream_a_shard_at_a_time(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s")
    everything = list(store.blocks())
    assert [(ids, views) for ids, views, _ in everything] == [
        (["a", "b", "c"], [0, 0, 0]),
        (["d", "e", "a", "b"], [0, 0, 1, 1]),
    ]
    ((ids, views, block),) = store.blocks(view=1)
    assert (ids, views) == (["a", "b"], [1, 1])
    assert np.array_equal(block, vectors("ab", view=1))
    assert list(store.blocks(view=2)) == []


def test_a_shard_of_skipped_images_only(tmp_path: Path) -> None:
    store = Store.create_or_resume(tmp_path / "s", ORIGIN)
    store.append([], [Skipped("bad", "empty file")])
    store.append(make_rows("a"))
    opened = Store.open(tmp_path / "s")
    assert np.array_equal(opened.gather(["a"]), vectors("a"))
    assert [s.id for s in opened.skipped] == ["bad"]
    assert [block.shape for _, _, block in opened.blocks()] == [(0, 6), (1, 6)]


def test_equal_rows_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        make_store(tmp_path / name)
    for shard in ("part-000000.parquet", "part-000001.parquet"):
        assert (tmp_path / "one" / shard).read_bytes() == (tmp_path / "two" / shard).read_bytes()


def test_gather_repeats_what_is_asked_for_twice(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s")
    assert np.array_equal(store.gather(list("abaca")), vectors("abaca"))
    with pytest.raises(StoreError, match=r"lacks 1 of 2 images \(view 0\), first 'x'"):
        store.gather(["x", "a", "x", "a"])


def test_appending_goes_on_after_the_last_shard(tmp_path: Path) -> None:
    make_store(tmp_path / "s")
    store = Store.create_or_resume(tmp_path / "s", ORIGIN)
    store.amend(store.shards[0], drop={"a", "b", "c"}, forget={"bad"})
    store.append(make_rows("z"))
    names = sorted(p.name for p in (tmp_path / "s").iterdir())
    assert names == ["part-000001.parquet", "part-000002.parquet"]
    opened = Store.open(tmp_path / "s")
    assert np.array_equal(opened.gather(["z", "d"]), vectors("zd"))
    with pytest.raises(StoreError, match="lacks"):
        opened.gather(["c"])


# --- refusing ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"fingerprint": "e" * 32, "uri": "timm:other"},
            r"another model, timm:resnet18 \(ffffffff\), not timm:other \(eeeeeeee\)",
        ),
        (
            {"plan": "q" * 32, "plan_seed": 4},
            r"another view plan, plan pppppppp \(seed 3\), not qqqqqqqq \(seed 4\)",
        ),
        ({"dtype": "float16"}, "another number type, float32, not float16"),
        ({"precision": "bf16"}, "another precision, 32, not bf16"),
    ],
)
def test_what_something_else_made_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    make_store(tmp_path / "s")
    before = {p: p.read_bytes() for p in (tmp_path / "s").iterdir()}
    with pytest.raises(StoreError, match=message):
        Store.create_or_resume(tmp_path / "s", dataclasses.replace(ORIGIN, **change))
    assert {p: p.read_bytes() for p in (tmp_path / "s").iterdir()} == before
    # Nor may shards of two origins lie in one folder.
    make_store(tmp_path / "t", dataclasses.replace(ORIGIN, **change))
    os.replace(tmp_path / "t" / "part-000000.parquet", tmp_path / "s" / "part-000009.parquet")
    with pytest.raises(StoreError, match=r"part-000009\.parquet holds embeddings of another"):
        Store.open(tmp_path / "s")


def test_another_uri_or_version_of_the_same_weights_is_welcome(tmp_path: Path) -> None:
    make_store(tmp_path / "s")
    same = dataclasses.replace(ORIGIN, uri="hf:resnet18", version="9")
    Store.create_or_resume(tmp_path / "s", same).append(make_rows("z"))
    assert len(Store.open(tmp_path / "s")) == 8


def test_whole_images_go_with_every_plan(tmp_path: Path) -> None:
    whole = dataclasses.replace(ORIGIN, plan="", plan_seed=0)
    Store.create_or_resume(tmp_path / "s", whole).append(make_rows("ab"))
    Store.create_or_resume(tmp_path / "s", ORIGIN).append(make_rows("ab", view=1))
    store = Store.create_or_resume(tmp_path / "s", whole)
    store.append(make_rows("c"))
    assert Store.open(tmp_path / "s").origin.plan == ORIGIN.plan
    with pytest.raises(StoreError, match="another view plan"):
        Store.create_or_resume(tmp_path / "s", dataclasses.replace(ORIGIN, plan="q" * 32))


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_text("mine")
    for opening in (
        lambda: Store.create_or_resume(tmp_path, ORIGIN),
        lambda: Store.open(tmp_path),
    ):
        with pytest.raises(StoreError, match=r"not an embedding store, it holds 'holiday\.jpg'"):
            opening()
    assert [p.name for p in tmp_path.iterdir()] == ["holiday.jpg"]


@pytest.mark.parametrize("name", ["part-.parquet", "part-000000 (copy).parquet", "x.parquet"])
def test_a_file_of_another_name_is_refused(tmp_path: Path, name: str) -> None:
    store = make_store(tmp_path / "s")
    os.link(store.shards[0].path, tmp_path / "s" / name)
    with pytest.raises(StoreError, match="it holds"):
        Store.open(tmp_path / "s")


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is not a store: make one"):
        Store.open(tmp_path / "nowhere")
    with pytest.raises(StoreError, match="holds no embeddings yet"):
        Store.open(tmp_path)
    assert stored_origin(tmp_path / "nowhere") is None
    (tmp_path / ".DS_Store").touch()  # what a file manager leaves is no foreign file
    assert len(Store.create_or_resume(tmp_path, ORIGIN)) == 0


@pytest.mark.parametrize("keep", [0, 3, 100, -200])
def test_a_damaged_shard_is_refused_by_name(tmp_path: Path, keep: int) -> None:
    path = make_store(tmp_path / "s").shards[1].path
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(StoreError, match=r"part-000001\.parquet is damaged.*delete that file"):
        Store.open(tmp_path / "s")
    path.unlink()
    assert len(Store.open(tmp_path / "s")) == 3


def test_other_formats_are_refused(tmp_path: Path) -> None:
    path = make_store(tmp_path / "s").shards[0].path
    rewrite(path, format="2")
    with pytest.raises(StoreError, match="store format 2, this version reads 1"):
        Store.open(tmp_path / "s")
    rewrite(path, format="1", dim=7)
    with pytest.raises(StoreError, match="6 dimensions, its header says 7"):
        Store.open(tmp_path / "s")
    pq.write_table(pa.table({"id": ["a"]}), path)
    with pytest.raises(StoreError, match="not a shard of a store"):
        Store.open(tmp_path / "s")


# --- writing whole shards or none -------------------------------------------------------------


def test_what_a_kill_left_is_removed(tmp_path: Path) -> None:
    make_store(tmp_path / "s")
    (tmp_path / "s" / ".part-000002.parquet.partial").write_bytes(b"PAR1 half a shard")
    assert len(Store.open(tmp_path / "s")) == 7
    Store.create_or_resume(tmp_path / "s", ORIGIN)
    assert len(list((tmp_path / "s").iterdir())) == 2


@pytest.mark.parametrize("failing", ["os.replace", "pyarrow.parquet.write_table"])
def test_a_failed_append_leaves_nothing(
    tmp_path: Path, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(tmp_path / "s")

    def fail(*arguments: Any, **_: Any) -> None:
        if failing != "os.replace":
            arguments[1].write(b"PAR1")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(failing, fail)
        with pytest.raises(KeyboardInterrupt):
            store.append(make_rows("xyz"))
    assert len(list((tmp_path / "s").iterdir())) == 2
    assert len(store) == len(Store.open(tmp_path / "s")) == 7
    store.append(make_rows("xyz"))
    assert np.array_equal(Store.open(tmp_path / "s").gather(["y"]), vectors("y"))


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB; where none may be mounted, the test is skipped."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("mounting a file system needs root on Linux")
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting is not permitted: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_keeps_whole_shards(tiny_disk: Path) -> None:
    folder = tiny_disk / "s"
    origin = dataclasses.replace(ORIGIN, dim=20_000)
    store = Store.create_or_resume(folder, origin)
    written = 0
    with pytest.raises((OSError, StoreError)) as caught:
        for name in "abcdefghijklmnop":
            store.append(make_rows(name, dim=20_000))
            written += 1
    assert "no space left" in str(caught.value)
    assert 5 < written < 16
    assert sorted(p.name for p in folder.iterdir()) == [
        f"part-{number:06d}.parquet" for number in range(written)
    ]
    assert len(Store.open(folder)) == written

    subprocess.run(["mount", "-o", "remount,size=4m", str(tiny_disk)], check=True)
    resumed = Store.create_or_resume(folder, origin)
    for name in "abcdefghijklmnop"[written:]:
        resumed.append(make_rows(name, dim=20_000))
    assert Store.open(folder).gather(list("abcdefghijklmnop")).shape == (16, 20_000)
