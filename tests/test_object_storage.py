"""Collections and stores in an S3 server, which fails, is cut off, denies, and changes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from command_line import fails, prints
from faulty_s3 import FaultyS3, serving
from helpers import TEACHER, forget_objects
from shard_makers import samples, write_parquets, write_tars
from whiten.datasets.finding import find_items
from whiten.embedding.embed import embed
from whiten.embedding.opening import open_model
from whiten.errors import ChangedError, ImageError, StorageError
from whiten.media.reading import read_bytes
from whiten.storage import objects, retrying, services
from whiten.store.places import is_store, prepare
from whiten.store.store import Store
from whiten.utils.urls import as_path

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

SECRET = "a-secret-that-nobody-may-see"


@pytest.fixture(scope="module")
def server() -> Iterator[FaultyS3]:
    with serving() as found:
        yield found


@pytest.fixture
def s3(server: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyS3]:
    """The server with an empty bucket, found as users' tools find it; nothing is cached."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "anyone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setattr(retrying, "FIRST_PAUSE", 0.001)
    client = server.client()
    client.create_bucket(Bucket="photos")
    services.filesystem.cache_clear()
    forget_objects()
    yield server
    server.plan = lambda method, path: ""
    for found in client.list_objects_v2(Bucket="photos").get("Contents", ()):
        client.delete_object(Bucket="photos", Key=found["Key"])


def put_folder(s3: FaultyS3, folder: Path, prefix: str) -> None:
    for path in folder.rglob("*.*"):
        s3.put("photos", f"{prefix}/{path.relative_to(folder).as_posix()}", path.read_bytes())


@pytest.fixture
def filled(s3: FaultyS3, shared_images: Path, tmp_path: Path) -> FaultyS3:
    put_folder(s3, shared_images, "folder")
    put_folder(s3, write_tars(tmp_path / "shards", samples(shared_images)), "shards")
    put_folder(s3, write_parquets(tmp_path / "tables", samples(shared_images)), "tables")
    return s3


@pytest.mark.parametrize(
    "source",
    [
        "folder",
        "shards",
        "shards/photos-{000..002}.tar",
        "shards/*.tar",
        "tables",
        "tables/*.parquet",
    ],
)
def test_every_layout_is_the_same_images(
    filled: FaultyS3, shared_images: Path, source: str
) -> None:
    wanted = sorted(data for _, data, _ in samples(shared_images))
    # A path has joined the slashes, as the command line does.
    items = find_items(Path(f"s3://photos/{source}"))
    assert sorted(read_bytes(item.path) for item in items) == wanted
    assert set(items.groups.to_pylist()) == set("abcd")
    assert all(item.path.startswith("s3://photos/") for item in items)
    if source != "folder":  # read in ranges, once, and not a request for each image
        names = [path for method, path in filled.requests[-12:] if method == "GET"]
        assert sum("000000" in name for name in names) == 0


def test_a_table_of_urls_and_a_table_under_a_url(
    filled: FaultyS3, shared_images: Path, tmp_path: Path
) -> None:
    rows = "path,group\ns3://photos/folder/a/0.png,x\ns3://photos/shards/photos-000.tar/000000001.png,y\n"
    (tmp_path / "a.csv").write_text(rows)
    data = [content for _, content, _ in samples(shared_images)]
    assert [read_bytes(item.path) for item in find_items(tmp_path / "a.csv")] == data[:2]
    filled.put("photos", "folder/list.csv", b"path,group\na/0.png,x\nb/0.png,y\n")
    items = find_items("s3://photos/folder/list.csv")
    assert [item.path for item in items] == [f"s3://photos/folder/{g}/0.png" for g in "ab"]
    assert read_bytes(items[1].path) == data[4]


@pytest.mark.slow
def test_passing_faults_change_nothing(filled: FaultyS3, shared_images: Path) -> None:
    faults = iter(["500", "cut", "drop", "503", "cut", "slow", "", "", "500", ""] * 20)
    filled.plan = lambda method, path: next(faults)
    before = filled.faults
    items = find_items("s3://photos/folder")
    assert sorted(read_bytes(item.path) for item in items) == sorted(
        data for _, data, _ in samples(shared_images)
    )
    assert filled.faults > before + 10


@pytest.mark.parametrize("name", ["q?x.png", "br{1}.png", "st*r.png", "50%20.png", "ha#sh.png"])
def test_names_with_signs_of_patterns_are_names(
    s3: FaultyS3, shared_images: Path, name: str
) -> None:
    _, data, _ = samples(shared_images)[0]
    s3.put("photos", f"folder/a/{name}", data)
    [item] = find_items("s3://photos/folder")
    assert (item.id, read_bytes(item.path)) == (f"a/{name}", data)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("500", "error 500, 6 times"),
        ("drop", "no answer"),
        ("slow", "no answer"),
        ("cut", "cut off|no answer"),
        ("403", "access denied"),
    ],
)
def test_lasting_faults_are_one_line(
    filled: FaultyS3, fault: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = find_items("s3://photos/folder")[0]
    monkeypatch.setenv("WHITEN_STORAGE_TIMEOUT", "0.1" if fault == "slow" else "9")
    services.filesystem.cache_clear()
    filled.plan = lambda method, path: fault
    with pytest.raises(StorageError, match=reason) as caught:
        read_bytes(item.path)
    assert SECRET not in str(caught.value)


def test_errors_name_the_place_that_the_user_named(filled: FaultyS3) -> None:
    filled.plan = lambda method, path: "403"
    for call in (is_store, prepare):
        with pytest.raises(StorageError, match=r"^s3://photos/folder: access denied"):
            call(as_path("s3://photos/folder"))


def test_an_object_that_changes_after_listing_is_refused(
    filled: FaultyS3, shared_images: Path
) -> None:
    image, member = find_items("s3://photos/folder")[0], find_items("s3://photos/shards")[0]
    _, data, _ = samples(shared_images)[7]
    filled.put("photos", "folder/a/0.png", data)
    with pytest.raises(ChangedError, match=r"a/0\.png has changed since it was listed"):
        read_bytes(image.path)
    assert read_bytes(image.path) == data  # as it is from now on
    tar = filled.client().get_object(Bucket="photos", Key="shards/photos-000.tar")["Body"].read()
    filled.put("photos", "shards/photos-000.tar", tar[:512] + b"x" + tar[513:])
    objects._blocks.forget(lambda key: True)
    with pytest.raises(ChangedError, match=r"photos-000\.tar has changed"):
        read_bytes(member.path)


def test_a_missing_object_is_one_image_and_a_missing_bucket_is_all(
    filled: FaultyS3, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "a.csv").write_text("path\ns3://photos/folder/a/0.png\ns3://photos/folder/no.png\n")
    missing = find_items(tmp_path / "a.csv")[1]
    with pytest.raises(ImageError, match="no such object"):
        read_bytes(missing.path)
    for source in ("s3://photos-of-nobody/a", "s3://photos/no", "s3://photos/no.tar"):
        line = fails(
            capsys, "embed", source, "--model", "demo:mobilenetv2", "--out", tmp_path / "s"
        )
        assert source in line and "check its name" in line


def test_queries_may_be_urls_and_members_wherever_they_stand(
    colour_teachers: None, filled: FaultyS3, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    prints(capsys, "index", "s3://photos/folder", "--model", TEACHER, "--out", tmp_path / "idx")
    for query in ("s3://photos/folder/a/0.png", tmp_path / "shards/photos-000.tar/000000000.png"):
        expected, _ = prints(capsys, "search", query, "--index", tmp_path / "idx")
        for option in ("--index", "--store"):
            found, _ = prints(capsys, "search", option, tmp_path / "idx", query)
            assert found == expected
    missing = fails(capsys, "search", "s3://photos/folder/no.png", "--index", tmp_path / "idx")
    assert "cannot read s3://photos/folder/no.png: no such object" in missing
    place = fails(capsys, "search", "x.png", "--index", "s3://photos/idx")
    assert "an index is read from a disk or a database, not from s3://: copy it" in place


@pytest.mark.slow
def test_a_store_is_written_resumed_and_read_there(
    colour_teachers: None,
    filled: FaultyS3,
    shared_images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("whiten.embedding.embed.SHARD_ROWS", 4)
    model, out = open_model(TEACHER), "s3://photos/embeddings/ours"
    items = find_items("s3://photos/shards")
    whole = embed(items, model, tmp_path / "whole")
    puts = iter(range(100))

    def plan(method: str, path: str) -> str:
        return "403" if method == "PUT" and "part-" in path and next(puts) == 2 else ""

    filled.plan = plan
    with pytest.raises(StorageError, match="access denied"):
        embed(items, model, out)
    assert len(Store.open(out)) == 8
    faults = iter(["cut", "500", "", "drop", ""] * 100)
    filled.plan = lambda method, path: next(faults)
    resumed = embed(items, model, out)
    filled.plan = lambda method, path: ""
    forget_objects()
    again = Store.open(out)
    assert [shard.path.name for shard in again.shards] == [s.path.name for s in whole.shards]
    for ours, theirs in zip(again.shards, whole.shards, strict=True):
        key = f"embeddings/ours/{ours.path.name}"
        body = filled.client().get_object(Bucket="photos", Key=key)["Body"].read()
        assert body == theirs.path.read_bytes()
        assert SECRET.encode() not in body
    assert np.array_equal(resumed.vectors(resumed.shards[0]), whole.vectors(whole.shards[0]))


def test_two_writers_do_not_replace_each_other(colour_teachers: None, filled: FaultyS3) -> None:
    model, out = open_model(TEACHER), "s3://photos/both"
    store = embed(find_items("s3://photos/shards/photos-000.tar"), model, out)
    late = Store(store.folder, store.origin, [])
    from whiten.errors import LockedError

    with pytest.raises(LockedError, match="another process writes"):
        late.append([])


def test_what_needs_a_disk_is_refused(
    colour_teachers: None, filled: FaultyS3, capsys: pytest.CaptureFixture[str]
) -> None:
    out, images = "s3://photos/out", "s3://photos/folder"
    for line in (
        ["index", images, "--model", TEACHER, "--out", out],
        ["distill", images, "--teachers", TEACHER, "--out", out],
        ["dedup", images, "--model", TEACHER, "--out", out],
        ["embed", images, "--model", TEACHER, "--out", "http://127.0.0.1/out"],
    ):
        assert "name a folder" in fails(capsys, *line)
    assert not os.path.lexists("s3:")


@pytest.mark.slow
def test_the_whole_way_equals_that_of_the_folder(
    colour_teachers: None,
    filled: FaultyS3,
    shared_images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    small = [
        "--student",
        "timm:test_efficientnet?pretrained=0&size=64",
        "--dim",
        "4",
        "--whiten-dim",
        "3",
        "--epochs",
        "0",
        "--quiet",
    ]
    contents = {}
    for name, source in (
        ("disk", shared_images),
        ("tar", "s3://photos/shards"),
        ("parquet", "s3://photos/tables"),
    ):
        run, index = tmp_path / name, tmp_path / f"{name}-index"
        prints(capsys, "distill", source, "--teachers", TEACHER, "--out", run, *small)
        prints(
            capsys,
            "embed",
            source,
            "--model",
            TEACHER,
            "--out",
            "s3://photos/out" if name == "tar" else tmp_path / f"{name}-store",
        )
        prints(capsys, "index", source, "--model", run / "student", "--out", index)
        hits, _ = prints(capsys, "search", shared_images / "a" / "0.png", "--index", index)
        contents[name] = (
            (run / "student" / "model.safetensors").read_bytes(),
            [line.split()[0] for line in hits.splitlines()],
        )
    assert contents["tar"] == contents["disk"] == contents["parquet"]
    prints(capsys, "index", "s3://photos/out", "--out", tmp_path / "of-store")
    hits, _ = prints(
        capsys, "search", "s3://photos/folder/a/0.png", "--index", tmp_path / "of-store"
    )
    assert hits.startswith("1.0000  s3://photos/shards/photos-000.tar/000000000.png")
