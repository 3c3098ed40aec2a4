"""Near-duplicates of real videos."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("av")

from clips import cropped, segments, write_video
from command_line import Captured, prints
from helpers import TEACHER


@pytest.fixture
def videos(tmp_path: Path, colour_teachers: None) -> Path:
    """Two scenes with copies of theirs, a third one alone, and a file that is no video."""
    folder = tmp_path / "videos"
    for name in ("bikes", "bigbuckbunny"):
        frames = segments(name)[0]
        write_video(folder / f"{name}.mp4", frames)
        write_video(folder / "copies" / f"{name}.mp4", frames[:15], quality=40)
    shutil.copy(folder / "bikes.mp4", folder / "again.mp4")
    write_video(folder / "alone.mp4", segments("carphone_pristine")[0])
    write_video(folder / "crop.mp4", cropped(segments("carphone_pristine")[1]))
    (folder / "bad.mp4").write_bytes(b"no video")
    return folder


@pytest.mark.parametrize(("whole", "part"), [(4, 3), (90, 65)])
def test_the_whole_video_is_kept(
    whole: int, part: int, tmp_path: Path, colour_teachers: None, capsys: Captured
) -> None:
    """More bytes are no longer video; frames are taken of the first minute alone."""
    scenes = segments("bikes")[0]
    frames = [scenes[second % 2] for second in range(whole)]
    write_video(tmp_path / "videos" / "whole.mp4", frames, rate=1, quality=40)
    write_video(tmp_path / "videos" / "part.mp4", frames[:part], rate=1, quality=1)
    command = ("dedup", tmp_path / "videos", "--model", f"{TEACHER}?dim=32", "--threshold", 0.9)
    found = json.loads(prints(capsys, *command, "--out", tmp_path / "out", "--json")[0])
    ((kept, copy),) = (group["members"] for group in found["groups"])
    assert kept["id"] == "whole" and kept["bytes"] < copy["bytes"]
    assert f", {whole} s" in (tmp_path / "out" / "groups.html").read_text()


def test_copies_of_videos_are_found(videos: Path, capsys: Captured, tmp_path: Path) -> None:
    command = ("dedup", videos, "--student", f"{TEACHER}?dim=32", "--out", "out")
    out, _ = prints(capsys, *command, "--threshold", 0.99, "--json")
    found = json.loads(out)
    assert found["what"] == "video" and found["count"] == 7
    groups = {frozenset(m["id"] for m in group["members"]) for group in found["groups"]}
    assert frozenset(["again", "bikes", "copies/bikes"]) in groups
    assert frozenset(["bigbuckbunny", "copies/bigbuckbunny"]) in groups
    kinds = {m["id"]: m["kind"] for group in found["groups"] for m in group["members"]}
    assert (kinds["again"], kinds["bikes"], kinds["copies/bikes"]) == ("kept", "exact", "near")
    [bikes] = (m for g in found["groups"] for m in g["members"] if m["id"] == "bikes")
    assert bikes["bytes"] == (videos / "bikes.mp4").stat().st_size
    assert bikes["path"] == str(videos / "bikes.mp4") and bikes["width"] == 192
    assert [skip["id"] for skip in found["skipped"]] == ["bad"]
    with (tmp_path / "out" / "groups.csv").open(newline="") as file:
        assert {row["path"].rpartition(".")[2] for row in csv.DictReader(file)} == {"mp4"}
    assert b"copy " in (tmp_path / "out" / "delete.sh").read_bytes()
    # The frames that were taken are a collection of videos, too.
    [frames] = (tmp_path / "out" / "embeddings").glob("frames-*")
    again = prints(
        capsys, "dedup", frames, "--student", f"{TEACHER}?dim=32", "--threshold", 0.99, "--json"
    )[0]
    assert json.loads(again)["groups"] == found["groups"]
