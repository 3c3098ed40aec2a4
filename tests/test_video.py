"""Frames of a video: which ones, when, how they lie; and videos that are broken in every way."""

from __future__ import annotations

import errno
import io
import itertools
import os
import sys
import threading
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from clips import clip, set_matrix, sound_alone, write_video
from whiten.datasets.finding import find_videos
from whiten.errors import ConfigError, ImageError, MissingExtraError, UnreadableError
from whiten.media import video
from whiten.media.video import sample_frames


def grey(level: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    return Image.new("RGB", size, (level,) * 3)


def ramp(n: int, size: tuple[int, int] = (64, 48)) -> list[Image.Image]:
    """Frame i has the grey level 4 i, so that a sampled one says which it is."""
    return [grey(4 * i, size) for i in range(n)]


def numbers(found: list[tuple[int, Image.Image]]) -> list[int]:
    return [round(float(np.asarray(image).mean()) / 4) for _, image in found]


def corner(image: Image.Image, which: str) -> int:
    x = 4 if "left" in which else image.width - 5
    y = 4 if "top" in which else image.height - 5
    pixel = image.getpixel((x, y))
    assert isinstance(pixel, tuple)
    return int(pixel[0])


@pytest.mark.parametrize(
    ("fps", "expected"), [(1, [0, 10, 20, 30]), (2, [0, 5, 10, 15, 20, 25, 30, 35]), (0.5, [0, 20])]
)
def test_the_frames_that_are_shown_at_the_times_asked_for(
    tmp_path: Path, fps: float, expected: list[int]
) -> None:
    path = write_video(tmp_path / "a.mp4", ramp(40), rate=10)
    found = list(sample_frames(path, fps=fps))
    assert [time for time, _ in found] == [100 * number for number in expected]
    assert numbers(found) == expected


def test_a_maximum_from_the_beginning(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", ramp(40), rate=10)
    assert numbers(list(sample_frames(path, fps=10, max_frames=3))) == [0, 1, 2]
    assert numbers(list(sample_frames(path, fps=1000))) == list(range(40))


def test_timestamps_decide_where_the_rate_varies(tmp_path: Path) -> None:
    times = [0, 100, 200, 900, 1000, 1100, 1900, 5200, 5300, 6050]
    path = write_video(tmp_path / "a.mkv", ramp(10), times=times)
    found = list(sample_frames(path))
    # The frame of 1.9 s is shown at 2, 3, 4 and 5 s, and comes once; 5.3 s is shown at 6 s.
    assert [time for time, _ in found] == [0, 1000, 1900, 5300]
    assert numbers(found) == [0, 4, 6, 8]


def test_times_count_from_the_first_frame(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", ramp(3), times=[7000, 7500, 8100])
    assert [time for time, _ in sample_frames(path)] == [0, 500]


_MATRICES = [
    (a, b, c, d)
    for a, b, c, d in itertools.product((-1, 0, 1), repeat=4)
    if abs(a) == abs(d) != abs(b) == abs(c)
]


@pytest.mark.parametrize("matrix", _MATRICES)
def test_mirrored_and_turned_videos_are_shown_as_players_show_them(
    tmp_path: Path, matrix: tuple[int, int, int, int]
) -> None:
    image = grey(0)
    image.paste((255,) * 3, (0, 0, 32, 24))
    image.paste((128,) * 3, (32, 0, 64, 24))
    path = write_video(tmp_path / "a.mp4", [image] * 3)
    set_matrix(path, matrix)
    ((_, shown),) = sample_frames(path)
    assert shown.size == ((64, 48) if matrix[0] else (48, 64))
    # Corners of the picture, from its middle, and where the matrix puts them.
    for (x, y), level in {(-1, -1): 255, (1, -1): 128, (-1, 1): 0, (1, 1): 0}.items():
        right, down = matrix[0] * x + matrix[2] * y, matrix[1] * x + matrix[3] * y
        which = f"{'bottom' if down > 0 else 'top'} {'right' if right > 0 else 'left'}"
        assert abs(corner(shown, which) - level) < 12


@pytest.mark.parametrize("suffix", ["asf", "mxf", "vob", "wmv", "3g2", "f4v", "m2ts", "ts", "nut"])
def test_containers_that_are_looked_at(tmp_path: Path, suffix: str) -> None:
    kinds = {"wmv": "asf", "f4v": "mp4", "3g2": "mp4", "m2ts": "mpegts", "ts": "mpegts"}
    kind = kinds.get(suffix, suffix)
    path = tmp_path / f"a.{suffix}"
    with av.open(str(path), "w", format=kind) as container:
        stream = container.add_stream("libx264" if kind == "mp4" else "mpeg2video", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for image in ramp(30):
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode(None))
    assert [item.id for item in find_videos(tmp_path)] == ["a"]
    assert numbers(list(sample_frames(path, fps=25)))[:3] == [0, 1, 2]


def test_what_passes_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4", ramp(30))
    whole = [number for number, _ in sample_frames(path)]

    class Failing(io.BufferedReader):
        def read(self, count: int | None = -1) -> bytes:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", lambda *_: Failing(io.FileIO(path)))
        with pytest.raises(UnreadableError, match="input/output error"):
            list(sample_frames(path))
    assert [number for number, _ in sample_frames(path)] == whole


def test_oblong_pixels_are_shown_as_players_show_them() -> None:
    """176 × 144 pixels that are 12/11 as wide as high."""
    with av.open(str(clip("carphone_pristine"))) as container:
        assert container.streams.video[0].sample_aspect_ratio == pytest.approx(128 / 117)
    _, image = next(iter(sample_frames(clip("carphone_pristine"))))
    assert image.size == (193, 144)


def test_large_frames_are_made_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, image = next(iter(sample_frames(clip("bigbuckbunny"))))
    assert image.size == (1024, 576)
    monkeypatch.setattr(video, "MAX_PIXELS", 1280 * 720 - 1)
    with pytest.raises(ImageError, match="1280x720 pixels, above the limit"):
        list(sample_frames(clip("bigbuckbunny")))


def test_a_corrupt_tail_keeps_what_came_before(tmp_path: Path) -> None:
    """In a container that can be read as it comes; an MP4 without its end cannot."""
    whole = write_video(tmp_path / "a.mkv", ramp(60), rate=10).read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) * 2 // 3])
    cut = numbers(list(sample_frames(tmp_path / "cut.mkv", fps=10)))
    assert cut == list(range(len(cut)))
    assert 20 < len(cut) < 60
    (tmp_path / "junk.mkv").write_bytes(whole[: len(whole) // 2] + os.urandom(len(whole) // 2))
    junk = numbers(list(sample_frames(tmp_path / "junk.mkv", fps=10)))
    assert junk[:15] == list(range(15))


def test_flipped_bytes_end_in_frames_or_in_a_reason(tmp_path: Path) -> None:
    whole = clip("carphone_pristine").read_bytes()
    rng = np.random.default_rng(0)
    ends = set()
    for _ in range(12):
        broken = np.frombuffer(whole, np.uint8).copy()
        broken[rng.integers(0, len(whole), 400)] ^= 255
        path = tmp_path / "a.mp4"
        path.write_bytes(broken.tobytes())
        try:
            found = list(sample_frames(path, fps=5))
            ends.add("frames")
            times = [time for time, _ in found]
            assert times == sorted(set(times))
            assert len(found) <= 60
        except ImageError as error:
            ends.add("reason")
            assert "\n" not in str(error)
    assert ends


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("missing.mp4", None, "no such file"),
        ("empty.mp4", b"", "empty file"),
        ("text.mp4", b"not a video at all" * 100, "damaged, or no video"),
        ("random.mkv", bytes(range(256)) * 40, "damaged, or no video"),
        ("header.mp4", b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", "damaged, or no video"),
        # A playlist names other files, which are none of our business.
        ("list.mp4", b"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nother.ts\n", "no video"),
        ("concat.mp4", b"ffconcat version 1.0\nfile other.mp4\n", "no video"),
    ],
)
def test_what_is_no_video_has_a_reason(
    tmp_path: Path, name: str, content: bytes | None, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    for other in ("other.ts", "other.mp4"):
        write_video(tmp_path / other, ramp(5))
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageError, match=reason):
        list(sample_frames(tmp_path / name))
    assert capfd.readouterr() == ("", "")


def test_sound_alone_a_pipe_and_a_folder_have_a_reason(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="only sound or data"):
        list(sample_frames(sound_alone(tmp_path / "sound.mp4")))
    with pytest.raises(ImageError, match="not a file"):
        list(sample_frames(tmp_path))
    os.mkfifo(tmp_path / "pipe.mp4")
    ends: list[str] = []

    def read() -> None:
        try:
            list(sample_frames(tmp_path / "pipe.mp4"))
        except ImageError as error:
            ends.append(str(error))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(10)
    assert ends == ["not a file but a folder, a pipe or a device"]


@pytest.mark.parametrize("name", ["weird:name.mp4", "with space ü.mp4", "concat:a.mp4"])
def test_a_name_is_never_a_protocol(tmp_path: Path, name: str) -> None:
    path = write_video(tmp_path / "a.mp4", ramp(2)).rename(tmp_path / name)
    assert len(list(sample_frames(path))) == 1


@pytest.mark.parametrize("codec", ["mpeg4", "libvpx-vp9", "ffv1"])
def test_other_codecs(tmp_path: Path, codec: str) -> None:
    suffix = {"mpeg4": ".avi", "libvpx-vp9": ".webm", "ffv1": ".mkv"}[codec]
    path = write_video(tmp_path / f"a{suffix}", ramp(20), rate=10, codec=codec)
    found = list(sample_frames(path, fps=2))
    assert [time for time, _ in found] == [0, 500, 1000, 1500]
    np.testing.assert_allclose(numbers(found), [0, 5, 10, 15], atol=1)


def test_a_rate_or_number_that_makes_no_sense_is_refused(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", ramp(2))
    for fps in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="fps must be a positive number"):
            list(sample_frames(path, fps=fps))
    with pytest.raises(ConfigError, match="at least 1"):
        list(sample_frames(path, max_frames=0))


def test_without_pyav_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4", ramp(2))
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'whiten\[video\]'"):
        list(sample_frames(path))
