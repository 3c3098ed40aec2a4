"""Searching as the command line does: by images, ids, videos, boxes and thresholds."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clips import segments, write_video
from command_line import Captured, fails, prints
from helpers import TEACHER, draw, write_groups, write_image
from whiten.datasets.finding import find_items
from whiten.embedding.embed import embed
from whiten.embedding.encoder import Encoder
from whiten.embedding.opening import load
from whiten.errors import ConfigError, StoreError
from whiten.index import Index
from whiten.index.query import Query, SearchOptions, search
from whiten.media.boxes import Box
from whiten.utils.arrays import normalize_rows


@pytest.fixture
def index(encoder: Encoder, images: Path, tmp_path: Path) -> Index:
    return Index.build(encoder, images, tmp_path / "index")


# --- by several images ------------------------------------------------------------------


def test_mean_and_best_of_several(
    capsys: Captured, index: Index, images: Path, encoder: Encoder
) -> None:
    paths = [images / "a" / "0.png", images / "b" / "0.png"]
    vectors = encoder.embed(paths)
    gallery = index.vectors(index.ids())
    command = ("search", *paths, "--index", "index", "--json")
    for combine, scores in (
        ("mean", gallery @ normalize_rows(vectors.mean(axis=0, keepdims=True))[0]),
        ("max", (gallery @ vectors.T).max(axis=1)),
    ):
        hits = json.loads(prints(capsys, *command, "--combine", combine)[0])
        assert [hit["score"] for hit in hits] == pytest.approx(sorted(scores)[::-1], abs=1e-5)
        found = {hit["id"]: hit["score"] for hit in hits}
        assert [found[name] for name in index.ids()] == pytest.approx(scores.tolist(), abs=1e-5)
    assert json.loads(prints(capsys, *command)[0])[0]["score"] < 0.99  # the mean


def test_by_id_needs_no_model(
    capsys: Captured, index: Index, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("whiten.index.model.load", lambda *_: pytest.fail("opened a model"))
    out, _ = prints(capsys, "search", "--id", "b/1.png", "--index", "index", "-k", "2")
    lines = out.splitlines()
    assert lines[0] == f"1.0000  {images / 'b' / '1.png'}" and len(lines) == 2
    assert "has no image 'x'" in fails(capsys, "search", "--id", "x", "--index", "index")


def test_a_threshold_and_a_filter(capsys: Captured, index: Index, images: Path) -> None:
    command = ("search", images / "a" / "0.png", "--index", "index", "--json")
    everything = json.loads(prints(capsys, *command)[0])
    bar = everything[2]["score"]
    hits = json.loads(prints(capsys, *command, "--threshold", str(bar))[0])
    assert hits == everything[:3]
    hits = json.loads(prints(capsys, *command, "--where", "group == 'b'")[0])
    assert hits == [hit for hit in everything if hit["group"] == "b"]


# --- on the query's side ----------------------------------------------------------------


def test_query_expansion(capsys: Captured, index: Index, images: Path, encoder: Encoder) -> None:
    query = images / "a" / "0.png"
    command = ("search", query, "--index", "index", "--json")
    plain = json.loads(prints(capsys, *command)[0])
    assert json.loads(prints(capsys, *command, "--expand", "0")[0]) == plain
    hits = json.loads(prints(capsys, *command, "--expand", "3", "--alpha", "2")[0])
    near = [hit for hit in plain[:4] if hit["id"] != "a/0.png"]
    weights = np.array([hit["score"] for hit in near]) ** 2
    vectors = index.vectors([hit["id"] for hit in near])
    asked = normalize_rows(encoder.embed(query) + weights @ vectors)
    gallery = index.vectors(index.ids())
    scores = dict(zip(index.ids(), (gallery @ asked.T)[:, 0], strict=True))
    assert {hit["id"]: hit["score"] for hit in hits} == pytest.approx(scores, abs=1e-5)
    assert "must be at least 0" in fails(capsys, *command, "--expand=-1")
    by_id = ("search", "--id", "a/0.png", "--index", "index", "--json")
    one = json.loads(prints(capsys, *by_id, "--expand", "1")[0])
    assert one != json.loads(prints(capsys, *by_id)[0])  # by another image than itself


def test_the_length_of_a_query_decides_nothing(index: Index) -> None:
    options = SearchOptions(k=3, expand=2)
    query = index.vectors(["a/0.png"]) + index.vectors(["b/0.png"])
    expected = search(index, normalize_rows(query), options)
    for vectors in (7 * query, query / 7, (7 * query).tolist()):
        found = search(index, vectors, options)
        assert [hit.id for hit in found] == [hit.id for hit in expected]
        scores = [hit.score for hit in expected]
        assert [hit.score for hit in found] == pytest.approx(scores, abs=1e-5)


@pytest.mark.parametrize("storage", ["int8", "binary"])
@pytest.mark.parametrize("is_joined", [False, True])
def test_query_expansion_leaves_out_the_image_itself_in_every_storage(
    encoder: Encoder, images: Path, index: Index, storage: str, is_joined: bool
) -> None:
    query = encoder.embed(images / "a" / "0.png")
    small = Index.build(encoder, images, "small", storage=storage, collection="small")
    opened = Index.open(["small", index.place]) if is_joined else small
    near = opened.search_vectors(query, 5)[0]
    own = {"small/a/0.png", "a/0.png"} & {hit.id for hit in near}
    assert len(own) == 1 + is_joined
    others = [hit for hit in near if hit.id not in own]
    weights = np.array([hit.score for hit in others]) ** 3
    asked = normalize_rows(query + weights @ opened.vectors([hit.id for hit in others]))
    expected = opened.search_vectors(asked, 10)[0]
    hits = search(opened, query, SearchOptions(expand=4))
    assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in expected], abs=1e-5)


def test_scores_against_a_background(
    capsys: Captured, index: Index, images: Path, encoder: Encoder
) -> None:
    other = write_groups(Path("other"), {"x": 4, "y": 8})
    Index.build(encoder, other, "background")
    command = ("search", images / "a" / "0.png", "--index", "index", "--json")
    plain = json.loads(prints(capsys, *command)[0])
    moved = json.loads(prints(capsys, *command, "--background", "background")[0])
    near = encoder.embed([item.path for item in find_items(other)]) @ encoder.embed(command[1])[0]
    down = np.sort(near)[-10:].mean()
    assert [hit["id"] for hit in moved] == [hit["id"] for hit in plain]
    Index.build(load(f"{TEACHER}?seed=1"), other, "foreign")
    assert "foreign was made with another model" in fails(
        capsys, *command, "--background", "foreign"
    )
    for before, after in zip(plain, moved, strict=True):
        assert after["score"] == pytest.approx(before["score"] - down, abs=1e-5)


# --- a part of an image -----------------------------------------------------------------


def test_a_box_is_that_part_alone(capsys: Captured, index: Index, tmp_path: Path) -> None:
    """Two drawings side by side: each half finds its own."""
    both = Image.new("RGB", (64, 32))
    for number in range(2):
        both.paste(draw(number), (32 * number, 0))
    both.save(tmp_path / "both.png")
    for box, name in (
        ("0,0,32,32", "a/0.png"),
        ("32,0,32,32", "b/0.png"),
        ("32,0,99,99", "b/0.png"),
    ):
        command = ("search", tmp_path / "both.png", "--index", "index", "--json", "--box", box)
        hit = json.loads(prints(capsys, *command)[0])[0]
        assert hit["id"] == name and hit["score"] == pytest.approx(1, abs=1e-5)


def test_a_box_of_an_id_is_that_part_of_its_file(
    capsys: Captured, index: Index, images: Path
) -> None:
    """As over HTTP."""
    [expected] = index.search(draw(0).crop((0, 0, 16, 16)), 12)
    command = ("search", "--id", "a/0.png", "--index", "index", "--json", "-k", "12")
    hits = json.loads(prints(capsys, *command, "--box", "0,0,16,16")[0])
    assert [hit["id"] for hit in hits] == [match.id for match in expected]
    assert [hit["score"] for hit in hits] == pytest.approx([m.score for m in expected], abs=1e-6)
    assert "lies outside of" in fails(capsys, *command, "--box", "99,0,9,9")
    (images / "a" / "0.png").unlink()
    assert "cannot read" in fails(capsys, *command, "--box", "0,0,16,16")


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ("1,2,3", "a box is x,y,w,h in pixels"),
        ("1,2,3,x", "a box is x,y,w,h in pixels"),
        ("0,0,0,5", "is empty"),
        ("40,0,5,5", "lies outside of"),
        ("-9,0,9,5", "lies outside of"),
    ],
)
def test_boxes_that_are_none(
    capsys: Captured, index: Index, images: Path, box: str, message: str
) -> None:
    query = images / "a" / "0.png"
    assert message in fails(capsys, "search", query, "--index", "index", f"--box={box}")


def test_a_box_is_of_one_image() -> None:
    for question in (
        {"ids": ["x", "y"]},
        {"images": [Path("a")], "ids": ["x"]},
        {"images": [Path("a"), Path("b")]},
        {"images": [Path("a.mp4")]},
    ):
        with pytest.raises(ConfigError, match="a box is a part of one image"):
            Query(**question, box=Box.parse("0,0,1,1"))  # type: ignore[arg-type]


# --- videos -----------------------------------------------------------------------------


@pytest.fixture
def frames(colour_teachers: None, tmp_path: Path, capsys: Captured) -> Path:
    """An index of the frames of three videos; the second is of the same scene as the first."""
    parts = segments("bikes")[:2] + segments("bigbuckbunny")[:1]
    for name, part in zip(("one", "two", "other"), parts, strict=True):
        write_video(tmp_path / "videos" / f"{name}.mp4", part)
    prints(capsys, "frames", tmp_path / "videos", "--out", tmp_path / "frames")
    prints(capsys, "index", tmp_path / "frames", "--student", TEACHER, "--out", "index")
    return tmp_path / "videos"


def test_a_video_finds_its_frames_and_videos(capsys: Captured, frames: Path) -> None:
    command = ("search", frames / "one.mp4", "--index", "index", "--json")
    hits = json.loads(prints(capsys, *command, "-k", "3")[0])
    assert hits[0]["id"].split("/")[0] == "one" and hits[0]["score"] > 0.99
    assert all(hit["frame_ms"] % 1000 == 0 for hit in hits)
    videos = json.loads(prints(capsys, *command, "--videos")[0])
    assert videos[0]["id"].startswith("one/") and len(videos) == 3
    index = Index.open("index")
    vectors = Query([frames / "one.mp4"]).embed(index.encoder)
    for hit in videos:  # chamfer similarity of the query to the video
        name = hit["id"].split("/")[0]
        own = index.vectors([one for one in index.ids() if one.startswith(f"{name}/")])
        assert hit["score"] == pytest.approx((vectors @ own.T).max(axis=1).mean(), abs=1e-5)


@pytest.mark.parametrize("place", ["folders", "one folder", "top"])
def test_each_video_is_itself(
    capsys: Captured, colour_teachers: None, tmp_path: Path, place: str
) -> None:
    """Videos that share a folder, and so a group, are five hits and not two."""
    folders = {"folders": "aabbb", "one folder": "aaaaa", "top": "....."}[place]
    for number, folder in enumerate(folders):
        for second in range(3):
            path = tmp_path / "frames" / folder / f"v{number}" / f"{second:04d}.jpg"
            write_image(path, 10 * number + second)
    rows = [
        {
            "path": path.relative_to(tmp_path / "frames").as_posix(),
            "group": path.parent.parent.name if place != "top" else None,
            "frame_ms": 1000 * int(path.stem),
        }
        for path in sorted((tmp_path / "frames").rglob("*.jpg"))
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "frames" / "frames.parquet")
    prints(capsys, "index", "frames", "--model", TEACHER, "--out", "index")
    command = ("search", "--id", rows[0]["path"], "--index", "index", "--videos", "--json")
    hits = json.loads(prints(capsys, *command)[0])
    assert len({hit["id"].rpartition("/")[0] for hit in hits}) == len(hits) == 5
    assert hits[0]["id"] == rows[0]["path"]


def test_a_long_video_hides_no_other(index: Index, encoder: Encoder, tmp_path: Path) -> None:
    """Its frames may take all of the first places; the search goes on until k videos are found."""
    for second in range(60):
        write_image(tmp_path / "clips" / "long" / f"{second:04d}.png", 7, second)
    for name in ("b", "c"):
        write_image(tmp_path / "clips" / name / "0000.png", ord(name))
    clips = Index.build(encoder, tmp_path / "clips", tmp_path / "clips.idx")
    hits = search(clips, clips.vectors(["long/0000.png"]), SearchOptions(k=3, videos=True))
    assert hits[0].id.startswith("long/")
    assert {hit.id.split("/")[0] for hit in hits} == {"long", "b", "c"}


def test_images_at_the_top_of_a_named_collection_are_no_video(index: Index, tmp_path: Path) -> None:
    for number in range(3):
        write_image(tmp_path / "more" / f"{number}.png", 9, number)
        write_image(tmp_path / "more" / "clip" / f"{number}.png", 9, 9 + number)
    index.add(tmp_path / "more", collection="more")
    vectors = index.vectors(["more/0.png"])
    hits = search(index, vectors, SearchOptions(k=4, videos=True))
    assert {"more/0.png", "more/1.png", "more/2.png"} < {hit.id for hit in hits}


@pytest.mark.parametrize("video", ["s3://bucket/a.mp4", "videos.tar/a.mp4"])
def test_a_video_that_is_no_file_on_a_disk(capsys: Captured, index: Index, video: str) -> None:
    said = fails(capsys, "search", video, "--index", index.place)
    assert f"cannot read {video}: videos are read from a disk only: get the file first" in said


def test_a_broken_video(capsys: Captured, frames: Path) -> None:
    (frames / "broken.mp4").write_bytes(b"no video")
    line = fails(capsys, "search", frames / "broken.mp4", "--index", "index")
    assert "cannot read" in line and "broken.mp4" in line


def test_videos_that_no_hit_shows_are_bounded(index: Index) -> None:
    """With few hits a video's missing frames count with the least score among the hits."""
    vectors = index.vectors(["a/0.png", "b/0.png"])
    [first, second] = search(index, vectors, SearchOptions(k=2, videos=True))
    assert {first.group, second.group} == {"a", "b"}
    assert search(index, vectors, SearchOptions(k=1))[0].score == pytest.approx(1, abs=1e-5)


# --- what cannot be asked ---------------------------------------------------------------


def test_mistakes(capsys: Captured, index: Index, images: Path) -> None:
    query = images / "a" / "0.png"
    for message, arguments in (
        ("nothing to search for", ("--index", "index")),
        ("nothing to search: add --in IMAGES, or --index FOLDER", (query,)),
        ("name it with --model", (query, "--in", images, "--index", "index")),
        ("no is not an index: make one with `whiten index", (query, "--index", "no")),
        ("k must be at least 1", (query, "--index", "index", "-k", "0")),
        ("threshold must be a number", (query, "--index", "index", "--threshold", "nan")),
        ("at least 0, and finite", (query, "--index", "index", "--alpha", "nan")),
        ("at least 0, and finite", (query, "--index", "index", "--alpha", "inf")),
        ("set expand, or no alpha", (query, "--index", "index", "--alpha", "1")),
        ("leave one out", (query, "--index", "index", "--json", "--paths-only")),
        ("the filter is empty", (query, "--index", "index", "--where", " ")),
        ("there is no column 'x'", (query, "--index", "index", "--where", "x < 3")),
        ("name the place of the index", (query, "--index", "index", "--store", "milvus:x")),
        ("milvus: names no database: write milvus:ADDRESS", (query, "--store", "milvus:")),
    ):
        assert message in fails(capsys, "search", *arguments)


def test_ids_that_are_no_text(capsys: Captured, index: Index) -> None:
    name = "a\udcff.png"
    for verb, place, option in (("search", "--index", "--id"), ("index", "--out", "--remove")):
        message = fails(capsys, verb, place, "index", option, name)
        assert "index has no image 'a\\udcff.png'" in message
    for read in (index.items, index.vectors, index.remove):
        with pytest.raises(StoreError, match="has no image"):
            read(["a/0.png", "a\udcff.png"])


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are text elsewhere")
def test_names_of_places_that_are_no_text(encoder: Encoder, images: Path, tmp_path: Path) -> None:
    place, store = tmp_path / "made\udcff", tmp_path / "store\udcff"
    Index.build(encoder, images, place)
    assert Index.build(encoder, images, place).changes.unchanged == len(Index.open(place)) == 6
    assert Index.open(place).items(["a/0.png"])[0].id == "a/0.png"
    embed(list(find_items(images)), load(TEACHER).parts[0].teacher, store)
    assert len(Index.build(None, store, tmp_path / "of store")) == 6
    with pytest.raises(ConfigError, match="which is not text"):
        Index.build(encoder, images, place, collection="\udcff")


def test_an_unreadable_query_costs_no_indexing(encoder: Encoder, capsys: Captured) -> None:
    write_groups(Path("more"), {"a": 2})
    options = ("--student", TEACHER, "--in", "more", "--index", "new")
    assert "cannot read gone.png: no such file" in fails(capsys, "search", "gone.png", *options)
    assert not Path("new").exists()


def test_index_on_the_command_line(capsys: Captured, encoder: Encoder, images: Path) -> None:
    command = ("index", images, "--student", TEACHER, "--out", "idx")
    out, _ = prints(capsys, *command)
    assert out == "idx: 6 images; 6 added (6 images embedded), 0 updated, 0 removed\n"
    (images / "a" / "0.png").unlink()
    (images / "a" / "broken.png").write_bytes(b"no image")
    out, err = prints(capsys, "index", images, "--out", "idx")  # it knows its model
    assert "5 images; 0 added (0 images embedded), 0 updated, 1 removed" in out
    assert "broken.png" in err
    facts = json.loads(prints(capsys, "index", "--out", "idx", "--remove", "b/0.png", "--json")[0])
    assert (facts["images"], facts["removed"]) == (4, 1)
    for message, arguments in (
        ("name the place of the index", (images, "--student", TEACHER)),
        ("say what to do", ("--out", "idx")),
        ("do one after the other", (images, "--out", "idx", "--remove", "x")),
        ("is not an index", (images, "--out", "new")),
        ("has no image 'b/0.png'", ("--out", "idx", "--remove", "b/0.png")),
        (
            "--metadata, --add: only for",
            ("--out", "idx", "--remove", "b/1.png", "--add", "--metadata", "m.csv"),
        ),
        ("--remove-missing: only for", ("--out", "idx", "--remove", "b/1.png", "--remove-missing")),
        ("made with another model", (images, "--student", f"{TEACHER}?seed=1", "--out", "idx")),
        ("is of", (images / "b", "--out", "idx")),
    ):
        assert message in fails(capsys, "index", *arguments)
