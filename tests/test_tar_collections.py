"""Tar shards wherever a folder of images is taken; nothing in them is lost in silence."""

from __future__ import annotations

import io
import json
import logging
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from command_line import fails, prints
from helpers import TEACHER, write_groups
from shard_makers import samples, write_tar, write_tars
from whiten.datasets.finding import find_items
from whiten.datasets.shards import shard_table
from whiten.embedding.embed import embed
from whiten.embedding.opening import open_model
from whiten.errors import ConfigError, ImageError, NoImagesError
from whiten.media.reading import read_bytes, stamp_of

PNG = b"\x89PNG"


@pytest.fixture
def shards(shared_images: Path, tmp_path: Path) -> Path:
    return write_tars(tmp_path / "shards", samples(shared_images))


@pytest.fixture
def shared_contents(shared_images: Path) -> list[bytes]:
    return sorted(data for _, data, _ in samples(shared_images))


def contents(source: object) -> list[bytes]:
    return sorted(read_bytes(item.path) for item in find_items(str(source)))


@pytest.mark.parametrize("name", ["", "/photos-{000..002}.tar", "/*.tar", "/photos-00[0-2].tar"])
def test_a_folder_a_range_and_a_glob_of_tars_are_the_same_images(
    shards: Path, shared_contents: list[bytes], name: str
) -> None:
    assert contents(f"{shards}{name}") == shared_contents
    items = find_items(f"{shards}{name}")
    assert items[0].id == "photos-000.tar/000000000.png"
    assert items[0].group == "a"
    assert set(items.groups.to_pylist()) == set("abcd")


def test_a_shard_alone_has_the_ids_that_it_has_among_others(shards: Path) -> None:
    among = [item.id for item in find_items(shards) if item.id.startswith("photos-001.tar/")]
    assert [item.id for item in find_items(shards / "photos-001.tar")] == among
    assert len(among) == 6


def test_a_member_is_a_collection_of_one(shards: Path) -> None:
    path = shards / "photos-001.tar" / "000000007.png"
    assert [(item.id, item.path) for item in find_items(path)] == [("000000007.png", str(path))]
    with pytest.raises(NoImagesError, match="does not exist"):
        find_items(shards / "photos-001.tar" / "no.png")


def test_a_member_has_size_and_hash_of_its_own(shards: Path, shared_images: Path) -> None:
    item = find_items(shards)[0]
    _, data, _ = samples(shared_images)[0]
    stamp, tar = stamp_of(item.path), stamp_of(str(shards / "photos-000.tar"))
    assert stamp is not None and tar is not None
    assert stamp.size == len(data)
    assert stamp.mtime_ns == tar.mtime_ns
    assert stamp_of(str(shards / "photos-000.tar" / "no.png")) is None


def test_groups_are_of_json_or_cls_or_the_folder_in_the_tar(tmp_path: Path) -> None:
    members = [
        ("./cats/1.png", PNG),
        ("./dogs/2.png", PNG),
        ("./dogs/2.json", b'{"group": 7}'),
        ("3.png", PNG),
        ("3.cls", b"12\n"),
        ("nan.png", PNG),
        ("nan.json", b'{"group": NaN}'),  # as Python writes a missing number
        ("4.png", PNG),
        ("._4.png", b"of another system"),
        ("5.seg.png", PNG),
        ("5.jpg", PNG),
    ]
    items = find_items(write_tar(tmp_path / "a.tar", members))
    assert {item.id: item.group for item in items} == {
        "a.tar/cats/1.png": "cats",
        "a.tar/dogs/2.png": "7",
        "a.tar/3.png": "12",
        "a.tar/nan.png": None,
        "a.tar/4.png": None,
        "a.tar/5.seg.png": None,
        "a.tar/5.jpg": None,
    }


def test_patterns_choose_among_members(shards: Path) -> None:
    assert len(find_items(shards, exclude=["photos-001.tar"])) == 10
    assert [i.id for i in find_items(shards, include=["**/000000003.*"])] == [
        "photos-000.tar/000000003.png"
    ]


def test_a_cut_tar_says_so_and_its_whole_members_stay(shards: Path) -> None:
    path = shards / "photos-002.tar"
    data = path.read_bytes()
    with tarfile.open(path) as tar:
        last = [member for member in tar if member.name.endswith(".png")][-1]
    path.write_bytes(data[: last.offset_data + 10])
    items = {item.id: item.path for item in find_items(shards)}
    assert "photos-002.tar/000000014.png" in items
    with pytest.raises(ImageError, match="cut off with its tar file, 10 of"):
        read_bytes(items["photos-002.tar/000000015.png"])
    with pytest.raises(ImageError, match="members: the rest is lost"):
        read_bytes(items["photos-002.tar/"])


def test_a_tar_without_end_mark_and_a_damaged_one_are_told(shards: Path) -> None:
    first, second, third = sorted(shards.iterdir())
    with tarfile.open(first) as tar:
        end = max(m.offset_data + -(-m.size // 512) * 512 for m in tar)
    first.write_bytes(first.read_bytes()[:end])
    second.write_bytes(b"no tar" * 400)
    third.write_bytes(b"")
    items = {item.id: item.path for item in find_items(shards)}
    assert len(items) == 6 + 3
    for name, reason in (("0", "no end mark"), ("1", "not a tar file"), ("2", "empty file")):
        with pytest.raises(ImageError, match=reason):
            read_bytes(items[f"photos-00{name}.tar/"])


@pytest.mark.parametrize("form", ["gnu", "0.0", "0.1", "1.0"])
def test_sparse_members_are_read_whole(tmp_path: Path, form: str) -> None:
    tar = shutil.which("tar")
    if tar is None or "GNU" not in subprocess.check_output([tar, "--version"], text=True):
        pytest.skip("needs GNU tar")
    folder = tmp_path / "images"
    folder.mkdir()
    holes = {
        "1.png": [(0, PNG), (1 << 20, b"x" * 5000), (3 << 20, b"end")],
        "2.png": [(1 << 20, b"a hole first"), ((4 << 20) - 1, b"\0")],
        "3.cls": [(0, b"three"), (70_000, b"holes")],
        "4.png": [(pos << 16, b"many pieces") for pos in range(50)],
    }
    for name, parts in holes.items():
        with (folder / name).open("wb") as file:
            for at, data in parts:
                file.seek(at)
                file.write(data)
    (folder / "3.png").write_bytes(PNG)
    as_form = ["--format=gnu"] if form == "gnu" else ["--format=posix", f"--sparse-version={form}"]
    path, names = tmp_path / "a.tar", [*sorted(holes), "3.png"]
    subprocess.run([tar, "-S", *as_form, "-cf", path, "-C", folder, *names], check=True)
    if path.stat().st_size > 1 << 20:
        pytest.skip("a file system without holes")
    items = find_items(path)
    assert items[2].group == (folder / "3.cls").read_text()
    assert [item.id for item in items] == [f"a.tar/{n}.png" for n in (1, 2, 3, 4)]
    for item in items:
        found = read_bytes(item.path)
        assert found == (folder / item.id.removeprefix("a.tar/")).read_bytes()
        stamp = stamp_of(item.path)
        assert stamp is not None and stamp.size == len(found)
    path.write_bytes(path.read_bytes()[: path.read_bytes().index(b"many pieces") + 100])
    with pytest.raises(ImageError, match="cut off with its tar file"):
        read_bytes(str(path / "4.png"))


@pytest.mark.parametrize("pieces", ["0,5,3,5", "0,99", "-1,1", "x,1"])
def test_a_sparse_member_that_says_nonsense_is_damaged(tmp_path: Path, pieces: str) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, facts in (("1.png", {}), ("2.png", {"map": pieces, "size": "20"})):
            member = tarfile.TarInfo(name)
            member.size = len(PNG)
            member.pax_headers = {f"GNU.sparse.{key}": value for key, value in facts.items()}
            tar.addfile(member, io.BytesIO(PNG))
    items = {item.id: item.path for item in find_items(path)}
    assert "a.tar/1.png" in items
    with pytest.raises(ImageError, match="damaged after 1 members"):
        read_bytes(items["a.tar/"])


def test_tars_that_were_joined_as_files_are_told(tmp_path: Path) -> None:
    parts = [write_tar(tmp_path / f"{n}.tar", [(f"{n}.png", PNG)]) for n in range(2)]
    joined = tmp_path / "both.tar"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    image, rest = find_items(joined)[1], find_items(joined)[0]
    assert (image.id, rest.id) == ("both.tar/0.png", "both.tar/")
    with pytest.raises(ImageError, match="more members follow its end mark: join"):
        read_bytes(rest.path)


def test_what_cannot_be_read_is_refused_in_one_line(shards: Path, tmp_path: Path) -> None:
    twice = write_tar(tmp_path / "twice.tar", [("1.png", PNG), ("./1.png", PNG)])
    with pytest.raises(ConfigError, match=r"holds '1\.png' twice"):
        find_items(twice)
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        tar.add(shards / "photos-000.tar", "x.png")
    with pytest.raises(ConfigError, match="compressed"):
        find_items(tmp_path / "a.tar.gz")
    with pytest.raises(NoImagesError, match=r"1 of the 4 files named are missing, first .*003"):
        find_items(f"{shards}/photos-{{000..003}}.tar")
    with pytest.raises(NoImagesError, match="matches no file"):
        find_items(f"{shards}/*.tarr")
    with pytest.raises(NoImagesError, match="holds no image"):
        find_items(write_tar(tmp_path / "none.tar", []))


def test_other_members_and_tars_beside_images_are_told(
    shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        find_items(write_tar(tmp_path / "b.tar", [("1.png", PNG), ("2.mp4", b"v")]))
        write_groups(tmp_path / "both", {"a": 1})
        (tmp_path / "both" / "c.tar").write_bytes(b"")
        assert len(find_items(tmp_path / "both")) == 1
    assert "not read: 1 video," in caplog.text
    assert "not read: 1 tar file beside the image files" in caplog.text


def test_embeddings_equal_those_of_the_folder(
    colour_teachers: None, shards: Path, shared_images: Path, tmp_path: Path
) -> None:
    model = open_model(TEACHER)
    ours = embed(find_items(shards), model, tmp_path / "ours")
    theirs = embed(find_items(shared_images), model, tmp_path / "theirs")

    def by_hash(store: object) -> dict[str, bytes]:
        found = {}
        for shard in store.shards:  # type: ignore[attr-defined]
            seen = store.seen(shard)  # type: ignore[attr-defined]
            for name, vector in zip(shard.ids, store.vectors(shard), strict=True):  # type: ignore[attr-defined]
                found[seen[name].content_hash] = vector.tobytes()
        return found

    assert by_hash(ours) == by_hash(theirs)
    before = {path.name: path.read_bytes() for path in (tmp_path / "ours").iterdir()}
    embed(find_items(shards), model, tmp_path / "ours")
    assert {path.name: path.read_bytes() for path in (tmp_path / "ours").iterdir()} == before


def test_json_becomes_columns_of_an_index_and_changed_shards_are_read_again(
    colour_teachers: None,
    shards: Path,
    shared_images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "index"
    prints(capsys, "index", shards, "--model", TEACHER, "--out", out, "--kind", "exact")
    query = shared_images / "a" / "0.png"
    found, _ = prints(capsys, "search", query, "--index", out, "--where", "price > 6", "-k", "20")
    assert len(found.splitlines()) == 3  # 13, 14 and 15 halves
    assert all("photos-002.tar/0000000" in line for line in found.splitlines())
    again, _ = prints(capsys, "index", shards, "--out", out)
    assert "0 added" in again and "0 updated" in again
    write_tars(shards, samples(shared_images)[:-1])
    again, _ = prints(capsys, "index", shards, "--out", out)
    assert "15 images" in again and "(0 images embedded)" in again  # others, of known contents


def test_columns_of_several_shards_meet_in_one_type(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [("1.png", PNG), ("1.json", b'{"a": 1, "b": 2, "c": true}')])
    write_tar(tmp_path / "1.tar", [("2.png", PNG), ("2.json", b'{"a": "x", "b": 0.5, "d": [1]}')])
    write_tar(tmp_path / "2.tar", [("3.png", PNG), ("3.json", b"{"), ("3.txt", b"three")])
    table = shard_table(tmp_path, find_items(tmp_path))
    assert table is not None
    assert {name: table.columns[name].to_pylist() for name in "abc"} == {
        "a": ["1", "x", None],
        "b": [2.0, 0.5, None],
        "c": [True, None, None],
    }
    assert table.columns["caption"].to_pylist() == [None, None, "three"]
    assert "d" not in table.names


@pytest.mark.parametrize(
    ("numbers", "values"),
    [
        ((9223372036854775809, 1), ["9223372036854775809", "1"]),
        ((9007199254740993, 0.5), ["9007199254740993", "0.5"]),
        ((10**400, 1), [str(10**400), "1"]),
        ((4, 0.5), [4.0, 0.5]),
        ((2**62 + 1, -1), [2**62 + 1, -1]),
    ],
)
def test_numbers_of_json_lose_no_digit(
    tmp_path: Path, numbers: tuple[float, float], values: list[object]
) -> None:
    members = []
    for name, number in enumerate(numbers):
        members += [(f"{name}.png", PNG), (f"{name}.json", json.dumps({"x": number}).encode())]
    table = shard_table(write_tar(tmp_path / "a.tar", members), find_items(tmp_path / "a.tar"))
    assert table is not None and table.columns["x"].to_pylist() == values


def test_half_a_character_in_json_costs_no_image(tmp_path: Path) -> None:
    cut = b'{"group": "a\\ud83d", "x": "\\ud83d\\ude00 \\ude00\\n", "\\ud800": NaN}'
    items = find_items(write_tar(tmp_path / "a.tar", [("1.png", PNG), ("1.json", cut)]))
    assert items[0].group == "a?"
    table = shard_table(tmp_path / "a.tar", items)
    assert table is not None
    assert table.columns["x"].to_pylist() == ["\U0001f600 ?\n"] and "?" in table.names


def test_numbers_of_several_shards_lose_no_digit(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [("1.png", PNG), ("1.json", b'{"x": 9007199254740993}')])
    write_tar(tmp_path / "1.tar", [("2.png", PNG), ("2.json", b'{"x": 0.5}')])
    table = shard_table(tmp_path, find_items(tmp_path))
    assert table is not None
    assert table.columns["x"].to_pylist() == ["9007199254740993", "0.5"]


def test_verbs_take_shards(
    colour_teachers: None, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prints(capsys, "evaluate", shards, "--model", TEACHER)
    found, _ = prints(
        capsys,
        "search",
        shards / "photos-000.tar" / "000000000.png",
        "--in",
        f"{shards}/*.tar",
        "--model",
        TEACHER,
        "--index",
        tmp_path / "i",
    )
    assert found.splitlines()[0].endswith("photos-000.tar/000000000.png")
    first = shards / "photos-000.tar"
    with tarfile.open(first) as tar:
        data = tar.extractfile("000000000.png").read()  # type: ignore[union-attr]
    write_tar(shards / "copies.tar", [("copy.png", data)])
    prints(
        capsys,
        "dedup",
        shards,
        "--model",
        TEACHER,
        "--threshold",
        "0.99999",
        "--out",
        tmp_path / "dedup",
    )
    script = next((tmp_path / "dedup").glob("*.sh")).read_text()
    assert "rm -- " not in script.partition("# group")[2]
    assert "stays, it is inside a shard or under a URL" in script
    err = fails(
        capsys, "embed", shards / "no-{0..1}.tar", "--model", TEACHER, "--out", tmp_path / "s"
    )
    assert "2 of the 2 files named are missing" in err
