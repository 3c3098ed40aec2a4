"""A user's own videos: groups from folders, from a table, and from folders of frames."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import whiten
from clips import write_video
from command_line import fails
from helpers import TEACHER, draw, write_image
from whiten import cli
from whiten.datasets.collection import Item, Items
from whiten.datasets.finding import find_items
from whiten.embedding.opening import load
from whiten.errors import ConfigError
from whiten.evaluation.evaluate import PER_QUERY, evaluate
from whiten.evaluation.own_videos import videos_task
from whiten.evaluation.video_ranking import VideoSearch
from whiten.evaluation.videos import VideoEvaluation, evaluate_videos
from whiten.report import grids

# Videos that look alike have the same colours.
VIDEOS = {"x/1": 5, "x/2": 5, "x/3": 5, "y/1": 9, "y/2": 9, "z/alone": 17}


def test_the_public_name() -> None:
    assert whiten.evaluate_videos is evaluate_videos


@pytest.fixture
def teacher(colour_teachers: None) -> str:
    return TEACHER


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    for number, (name, seed) in enumerate(VIDEOS.items()):
        images = [draw(seed, variant=i // 4) for i in range(4 * (1 + number % 3))]
        write_video(tmp_path / "videos" / f"{name}.mp4", images, rate=4)
    return tmp_path / "videos"


def check(result: VideoEvaluation) -> None:
    assert result.query_ids == ["x/1", "x/2", "x/3", "y/1", "y/2"]
    assert result.figures["map"].value == 1
    assert result.figures["recall@1"].value == 1
    assert result.gallery_size == 6
    assert result.without_positives == 1


def test_videos_that_are_lost_are_not_queries_without_positives() -> None:
    names = [f"{video}/000{n}.jpg" for video in ("x/1", "x/2", "y/1", "y/2") for n in range(2)]
    frames = Items.of(Item(name, name, name[:3]) for name in names)
    task = videos_task(frames, [])
    for lost, queries, without in (
        ({"x/1"}, ["y/1", "y/2"], 1),
        ({"x/1", "x/2"}, ["y/1", "y/2"], 0),
        (set[str](), ["x/1", "x/2", "y/1", "y/2"], 0),
    ):
        left = task.with_frames(frames.take(np.array([name[:3] not in lost for name in names])))
        assert [left.videos[query] for query in left.queries] == queries
        assert left.without_positives == without
        assert {skip.id for skip in left.skipped} == lost


def test_a_folder_a_table_and_folders_of_frames_say_the_same(
    videos: Path, teacher: str, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    from_folder = evaluate_videos(teacher, videos, protocol="videos", cache=cache)
    check(from_folder)
    (frames,) = cache.glob("frames-videos-*")
    assert from_folder.frames == len(find_items(frames)) == 1 + 2 + 3 + 1 + 2 + 3
    check(evaluate_videos(teacher, frames, protocol="videos"))

    table = videos / "near.csv"
    rows = [f"{name}.mp4,{name.split('/')[0]}" for name in VIDEOS]
    table.write_text("path,group\n" + "\n".join(rows) + "\n")
    check(evaluate_videos(teacher, table, protocol="videos"))

    folders = frames / "near.csv"
    rows = [f"{name},{name.split('/')[0]}" for name in VIDEOS]
    folders.write_text("path,group\n" + "\n".join(rows) + "\n")
    check(evaluate_videos(teacher, folders, protocol="videos"))
    folders.unlink()
    (frames / "frames.parquet").unlink()  # GROUP/VIDEO/0000.jpg
    check(evaluate_videos(teacher, frames, protocol="videos"))


def test_videos_of_one_frame_rank_as_images_do(
    tmp_path: Path, teacher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every similarity of sets is then the cosine, and every figure that of `evaluate`."""
    monkeypatch.setattr("whiten.evaluation.video_ranking.CANDIDATES", 3)
    monkeypatch.setattr("whiten.evaluation.video_ranking.QUERIES", 4)
    for number in range(18):
        group, video = f"g{number % 5}", f"v{number:02d}"
        write_image(tmp_path / "frames" / group / video / "0000.jpg", number % 7, number)
        write_image(tmp_path / "images" / group / f"{video}.jpg", number % 7, number)
    model = load(teacher)
    images = evaluate(model, tmp_path / "images")
    for kind in ("cf", "smx", "fme"):
        found = evaluate_videos(model, tmp_path / "frames", protocol="videos", similarity=kind)
        np.testing.assert_allclose(found.aps, images.aps, atol=1e-12)
        for name in PER_QUERY:
            assert found.figures[name] == images.figures[name]


def test_examples_are_the_best_the_median_and_the_worst(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("x/1", "x/2", "y/1", "y/2"):
        for frame in range(2):
            write_image(tmp_path / name / f"{frame:04d}.jpg", 1, frame)
    task = videos_task(find_items(tmp_path), [])
    frames = np.repeat(np.eye(4, dtype=np.float32)[[0, 1, 2, 3]], 2, axis=0)
    frames[0:2] += 0.5 * frames[2:4]  # x/1 looks like x/2
    search = VideoSearch(task, frames, "cf")
    videos, scores = search.search(0, 2)
    assert videos.tolist() == [1, 2]
    assert scores[0] == pytest.approx(0.5 / np.sqrt(1.25))
    np.testing.assert_allclose(search.alignment(0, 1), np.full((2, 2), scores[0]), rtol=1e-6)


def test_without_groups_there_is_nothing_to_find(tmp_path: Path, teacher: str) -> None:
    for name in ("1", "2"):
        write_video(tmp_path / "videos" / f"{name}.mp4", [draw(1)] * 3)
    with pytest.raises(ConfigError, match="no two of the 2 videos share a group"):
        evaluate_videos(teacher, tmp_path / "videos", protocol="videos")


def test_the_command_and_its_page(
    videos: Path,
    teacher: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown: list[bool] = []
    show = grids.read_bytes
    monkeypatch.setattr(
        grids, "read_bytes", lambda p: (shown.append(Path(p).is_file()), show(p))[1]
    )
    page = tmp_path / "pages" / "videos.html"
    command = ["evaluate", str(videos), "--model", teacher, "--protocol", "videos"]
    cli.main([*command, "--report", str(page), "--similarity", "smx"])
    printed = capsys.readouterr()
    assert "5 queries, 6 videos" in printed.out
    assert "map        1.0000  [1.0000, 1.0000]" in printed.out
    assert f"report   {page}" in printed.err
    text = page.read_text()
    assert "smx, best of all pairs of frames" in text
    assert "best: x/1 and x/" in text
    assert text.count("data:image/png;base64,") == 1 + 3  # what was found, and three alignments
    assert len(shown) > 20 and all(shown)  # the frames are still there when the page is drawn
    cli.main([*command, "--json"])
    assert json.loads(capsys.readouterr().out)["map"]["value"] == 1
    images = ["evaluate", videos, "--model", teacher]
    told = fails(capsys, *images, "--report", page, "--similarity", "fme")
    assert "--similarity, --report: only with --protocol svd or videos" in told
    assert "--multi-scale: only with --protocol rox" in fails(capsys, *command, "--multi-scale")
    assert "leave out --queries" in fails(capsys, *command, "--queries", videos)
