"""Frames on disk: what is written, what is done again, and what a kill leaves."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clips import set_matrix, sound_alone, write_video
from command_line import fails
from helpers import TEACHER, draw, write_factory, write_image
from whiten import cli
from whiten.datasets import frames
from whiten.datasets.collection import Item, Items
from whiten.datasets.finding import find_items, find_videos
from whiten.datasets.frames import extract_frames, find_or_extract
from whiten.embedding.embed import embed
from whiten.errors import ConfigError, NoImagesError, UnreadableError
from whiten.media.decoding import decode
from whiten.media.reading import read_bytes
from whiten.models.registry import open_teacher
from whiten.store.store import Store


def plain(path: Path, level: int, seconds: float = 2.5) -> Path:
    """A video of one grey at 4 frames a second."""
    images = [Image.new("RGB", (32, 32), (level,) * 3)] * round(4 * seconds)
    return write_video(path, images, rate=4)


def levels(items: Items) -> dict[str, int]:
    return {i.id: round(float(np.asarray(decode(read_bytes(i.path))).mean()), -1) for i in items}


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    root = tmp_path / "videos"
    plain(root / "b.mp4", 100)
    plain(root / "trip" / "a.mkv", 200, 1)
    (root / "trip" / "broken.mp4").write_bytes(b"no video" * 99)
    return root


def test_the_layout_the_table_and_the_skipped(tmp_path: Path, videos: Path) -> None:
    out = tmp_path / "frames"
    counts: list[tuple[int, int]] = []
    found = extract_frames(find_videos(videos), out, progress=lambda *done: counts.append(done))
    assert counts == [(1, 3), (2, 3), (3, 3)]
    assert found.videos == 2
    assert [(skip.id, skip.reason[:7]) for skip in found.skipped] == [("trip/broken", "damaged")]
    assert list(found.frames) == list(find_items(out)) == list(find_items(out / "frames.parquet"))
    assert [(i.id, i.group, i.frame_ms) for i in found.frames] == [
        ("b/0000.jpg", None, 0),
        ("b/0001.jpg", None, 1000),
        ("b/0002.jpg", None, 2000),
        ("trip/a/0000.jpg", "trip", 0),
    ]
    assert set(levels(found.frames).values()) == {100, 200}
    table = pq.read_table(out / "frames.parquet").to_pylist()
    assert table[3]["video"] == "trip/a"
    assert table[3]["source"] == str(videos / "trip" / "a.mkv")
    with (out / "skipped.csv").open() as file:
        assert [row["video"] for row in csv.DictReader(file)] == ["trip/broken"]


def test_only_what_changed_is_done_again(
    tmp_path: Path, videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, opened = tmp_path / "frames", []
    sample = frames.sample_frames

    def counting(path: str, **options: object) -> object:
        opened.append(Path(path).name)
        return sample(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(frames, "sample_frames", counting)

    def run(**options: float) -> Items:
        opened.clear()
        return extract_frames(find_videos(videos), out, workers=1, **options).frames  # type: ignore[arg-type]

    run()
    assert opened == ["b.mp4", "a.mkv", "broken.mp4"]
    run()
    assert opened == ["broken.mp4"]
    plain(videos / "b.mp4", 30, 1)
    plain(videos / "trip" / "broken.mp4", 60, 1)
    mended = run()
    assert opened == ["b.mp4", "broken.mp4"]
    assert levels(mended) == {"b/0000.jpg": 30, "trip/a/0000.jpg": 200, "trip/broken/0000.jpg": 60}
    assert not (out / "skipped.csv").exists()
    assert sorted(path.name for path in (out / "b").iterdir()) == [".video.json", "0000.jpg"]
    run(fps=4)
    assert len(opened) == 3
    assert len(run(fps=4, max_frames=2)) == 6
    (videos / "b.mp4").write_bytes(b"broken now")
    assert "b/0000.jpg" not in levels(run(fps=4, max_frames=2))
    assert not (out / "b").exists()


def test_a_second_call_keeps_the_videos_of_the_first(tmp_path: Path) -> None:
    plain(tmp_path / "first" / "a.mp4", 100, 1)
    plain(tmp_path / "first" / "b.mp4", 150, 1)
    plain(tmp_path / "second" / "c.mp4", 200, 1)
    out = tmp_path / "frames"
    extract_frames(find_videos(tmp_path / "first"), out)
    found = extract_frames(find_videos(tmp_path / "second"), out)
    assert (found.videos, levels(found.frames)) == (
        1,
        {"a/0000.jpg": 100, "b/0000.jpg": 150, "c/0000.jpg": 200},
    )
    # One file of a folder keeps the others, and a file that is gone goes.
    extract_frames(find_videos(tmp_path / "first" / "a.mp4"), out)
    assert len(find_items(out)) == 3
    (tmp_path / "first" / "b.mp4").unlink()
    extract_frames(find_videos(tmp_path / "first"), out)
    assert sorted(levels(find_items(out))) == ["a/0000.jpg", "c/0000.jpg"]
    # A collection that is moved away is no reason to lose its frames.
    (tmp_path / "first").rename(tmp_path / "moved")
    extract_frames(find_videos(tmp_path / "second"), out)
    assert len(find_items(out)) == 2


def test_a_video_with_another_name_by_now_is_listed_once(tmp_path: Path) -> None:
    """A second video of its name gives it back its suffix; the folder above it, its folder."""
    videos, out = tmp_path / "videos", tmp_path / "frames"
    plain(videos / "a" / "1.mp4", 100, 1)
    extract_frames(find_videos(videos), out)
    plain(videos / "a" / "1.mkv", 200, 1)
    found = extract_frames(find_videos(videos), out).frames
    assert levels(found) == {"a/1.mkv/0000.jpg": 200, "a/1.mp4/0000.jpg": 100}
    (videos / "a" / "1.mkv").unlink()
    assert levels(extract_frames(find_videos(videos), out).frames) == {"a/1/0000.jpg": 100}
    found = extract_frames(find_videos(videos / "a"), out).frames
    assert levels(found) == {"1/0000.jpg": 100}


def test_a_video_that_cannot_be_read_now_keeps_its_frames(
    tmp_path: Path, videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "frames"
    before = levels(extract_frames(find_videos(videos), out).frames)

    def busy(*_: object, **__: object) -> None:
        raise UnreadableError("too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(frames, "sample_frames", busy)
        os.utime(videos / "b.mp4", (1, 1))
        found = extract_frames(find_videos(videos), out)
    assert "b" in [skip.id for skip in found.skipped]
    assert (out / "b" / "0000.jpg").is_file()
    assert levels(extract_frames(find_videos(videos), out).frames) == before


def test_an_interrupted_run_goes_on(
    tmp_path: Path, videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A video at work leaves a hidden folder, which the next run takes away."""
    out, replace = tmp_path / "frames", frames.os.replace

    def killed(old: Path, new: Path) -> None:
        if Path(new).name == "a":
            raise KeyboardInterrupt
        replace(old, new)

    monkeypatch.setattr(frames.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        extract_frames(find_videos(videos), out, workers=1)
    monkeypatch.undo()
    assert (out / "b" / "0002.jpg").is_file()
    assert len(list(out.glob(".*.partial"))) == 1
    assert not (out / "trip" / "a").exists()
    before = (out / "b" / "0002.jpg").stat().st_mtime_ns
    assert len(extract_frames(find_videos(videos), out).frames) == 4
    assert (out / "b" / "0002.jpg").stat().st_mtime_ns == before
    assert not list(out.glob(".*.partial"))


def test_what_whiten_did_not_write_stays(tmp_path: Path, videos: Path) -> None:
    mine = write_image(tmp_path / "frames" / "b" / "0000.jpg", 1)
    before = mine.read_bytes()
    with pytest.raises(ConfigError, match="no frames of an earlier run: delete it, or name"):
        extract_frames(find_videos(videos), tmp_path / "frames")
    assert mine.read_bytes() == before


def test_no_readable_video_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"")
    with pytest.raises(NoImagesError, match=r"none of 1 videos .* first 'a': empty file"):
        extract_frames(find_videos(tmp_path), tmp_path / "frames")
    with pytest.raises(NoImagesError, match="holds no video file"):
        find_videos(tmp_path / "frames")


def test_names_of_videos(tmp_path: Path) -> None:
    for name in ("a.mp4", "a.mkv", "b.mp4", "b/c.mp4", "d.e.webm", "ü.avi", ".hidden.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"1")
    ids = [video.id for video in find_videos(tmp_path)]
    # Of two that share a stem both keep the suffix, and so does one whose stem is a folder.
    assert ids == ["a.mkv", "a.mp4", "b.mp4", "b/c", "d.e", "ü"]
    table = tmp_path / "near.csv"
    table.write_text("path,group\nb/c.mp4,x\nb.mp4,x\nd.e.webm,\n")
    named = [(video.id, video.group) for video in find_videos(table)]
    assert named == [("b.mp4", "x"), ("b/c", "x"), ("d.e", None)]


def test_images_come_first_and_videos_are_named(tmp_path: Path, videos: Path) -> None:
    with pytest.raises(NoImagesError, match=r"holds videos and no images.*`whiten frames"):
        find_items(videos)
    found, skipped = find_or_extract(videos, tmp_path / "frames")
    assert len(found) == 4 and len(skipped) == 1
    write_image(videos / "picture.png", 1)
    found, skipped = find_or_extract(videos, tmp_path / "other")
    assert [item.id for item in found] == ["picture.png"] and not skipped
    assert not (tmp_path / "other").exists()


def test_stores_hold_frames_per_video(
    tmp_path: Path,
    videos: Path,
    colour_teachers: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By the command line: a folder of videos is all that `embed` needs."""
    out = tmp_path / "store"
    cli.main(["embed", str(videos), "--teacher", TEACHER, "--out", str(out), "--json"])
    summary = json.loads(capsys.readouterr().out)
    assert summary["embeddings"] == 4
    assert [skip["id"] for skip in summary["skipped"]] == ["trip/broken"]
    rows = pq.read_table(out).to_pylist()
    assert [(row["id"], row["frame_ms"], row["group"]) for row in rows] == [
        ("b/0000.jpg", 0, None),
        ("b/0001.jpg", 1000, None),
        ("b/0002.jpg", 2000, None),
        ("trip/a/0000.jpg", 0, "trip"),
    ]
    assert (tmp_path / "store-frames" / "b" / "0000.jpg").is_file()


def test_images_have_no_time(tmp_path: Path, image_folder: Callable[..., Path]) -> None:
    items = find_items(image_folder(tmp_path / "images", groups=1, per_group=2))
    assert items.frame_ms is None
    mixed = Items.of([*items, Item("z", items[0].path, None, 40), Item("zz", items[1].path)])
    assert [item.frame_ms for item in mixed] == [None, None, 40, None]
    assert Items.from_table(mixed.table()).take(np.array([2])).frame_ms.to_pylist() == [40]
    again = [item.frame_ms for item in Items.from_table(items.table())]
    assert again == [None, None]


def test_a_whole_embedding_of_frames_keeps_their_times(tmp_path: Path, videos: Path) -> None:
    write_factory(tmp_path / "code")
    found = extract_frames(find_videos(videos), tmp_path / "frames").frames
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path / "code"))
        embed(found, open_teacher(TEACHER), tmp_path / "store", views=(0, 1))
    assert len(Store.open(tmp_path / "store")) == 8
    times = pq.read_table(tmp_path / "store")["frame_ms"].to_pylist()
    assert times == [0, 0, 1000, 1000, 2000, 2000, 0, 0]


def test_the_verb(tmp_path: Path, videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "frames"
    cli.main(["frames", str(videos), "--out", str(out), "--fps", "2", "--max-frames", "3"])
    printed = capsys.readouterr()
    assert printed.out == f"{out}: 5 frames of 2 videos\n"
    assert "1 video skipped:\n  trip/broken: damaged" in printed.err
    with pytest.raises(SystemExit):
        cli.main(["frames", str(videos), "--out", str(out), "--fps", "0"])
    assert capsys.readouterr().err == "whiten: fps must be a positive number, not 0.0\n"


def test_every_odd_video_is_handled_or_has_a_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One folder of them all, by the command line; the good ones among them are not lost."""
    root = tmp_path / "odd"
    grey = [Image.new("RGB", (64, 48), (90, 90, 90))] * 9
    whole = write_video(root / "good.mkv", [draw(n, side=48) for n in range(60)]).read_bytes()
    set_matrix(write_video(root / "rotated.mp4", grey), (0, 1, -1, 0))
    write_video(root / "varying.mkv", grey, times=[0, 9, 400, 401, 2500, 2600, 9000, 9001, 9500])
    write_video(root / "huge.mp4", [Image.new("RGB", (2600, 2000), "red")])
    write_video(root / "long ü name.webm", grey, codec="libvpx-vp9")
    sound_alone(root / "sound.mp4")
    (root / "tail.mkv").write_bytes(whole[: len(whole) * 3 // 4])
    (root / "empty.mp4").touch()
    (root / "corrupt.mp4").write_bytes(whole[::-1])
    (root / "text.avi").write_text("to be filmed")
    (root / "dangling.mp4").symlink_to(tmp_path / "nowhere")
    os.mkfifo(root / "pipe.mp4")
    out = tmp_path / "frames"
    cli.main(["frames", str(root), "--out", str(out), "--json"])
    told = json.loads(capsys.readouterr().out)
    assert {skip["id"]: skip["reason"].split(":")[0] for skip in told["skipped"]} == {
        "corrupt": "damaged, or no video",
        "dangling": "no such file or directory",
        "empty": "empty file",
        "pipe": "not a file but a folder, a pipe or a device",
        "sound": "no video stream in it, only sound or data",
        "text": "damaged, or no video",
    }
    sizes = {item.id.split("/")[0]: decode(read_bytes(item.path)).size for item in find_items(out)}
    assert sizes == {
        "good": (48, 48),
        "huge": (1024, 788),
        "long ü name": (64, 48),
        "rotated": (48, 64),
        "tail": (48, 48),
        "varying": (64, 48),
    }


def test_without_pyav_one_line_names_the_extra(
    tmp_path: Path,
    videos: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    told = fails(capsys, "frames", videos, "--out", tmp_path / "frames")
    assert told == (
        "whiten: reading videos needs an optional dependency: pip install 'whiten[video]'\n"
    )


def test_videos_of_another_collection_with_the_same_names(tmp_path: Path) -> None:
    out = tmp_path / "frames"
    for number, name in enumerate(("first", "second")):
        plain(tmp_path / name / "clip.mp4", 100 + 50 * number, 1 + number)
    extract_frames(find_videos(tmp_path / "first"), out)
    before = levels(find_items(out))
    with pytest.raises(ConfigError, match=r"clip holds the frames of .*first.*not of .*second"):
        extract_frames(find_videos(tmp_path / "second"), out)
    assert levels(find_items(out)) == before
    moved = (tmp_path / "first").rename(tmp_path / "moved")
    assert extract_frames(find_videos(moved), out).videos == 1
