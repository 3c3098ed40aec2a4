"""What is looked for: images, videos, ids or a part of an image; and its vectors."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from PIL import Image

from whiten.embedding.encoder import Encoder
from whiten.errors import ConfigError, ImageError
from whiten.media.decoding import decode
from whiten.media.reading import read_bytes
from whiten.media.video import VIDEO_SUFFIXES, sample_frames
from whiten.utils.arrays import Vectors, normalize_rows

Box: TypeAlias = tuple[int, int, int, int]
Combine = Literal["mean", "max"]

_FRAMES = 60  # of a video that is searched by, a second apart


@dataclass(frozen=True)
class Question:
    """What to look for; all that is given is one question.

    Attributes:
        paths: images, or videos, of which a frame a second is taken.
        ids: images of the index.
        box: left, top, width and height of the part that counts, in pixels of the only image.
        combine: several images are one mean vector, or an image's best similarity to any of them
            counts. By default the mean, with a video the best.
    """

    paths: Sequence[Path] = ()
    ids: Sequence[str] = ()
    box: Box | None = None
    combine: Combine | None = None

    def __post_init__(self) -> None:
        if not self.paths and not self.ids:
            raise ConfigError("nothing to look for: name an image, or --id of one in the index")
        if self.box is not None and (self.ids or len(self.paths) != 1 or self.is_of_video):
            raise ConfigError("a box is a part of one image: name just that one")

    @property
    def is_of_video(self) -> bool:
        return any(_is_video(path) for path in self.paths)

    def embed(self, encoder: Encoder) -> Vectors:
        """Of its paths: (n, dim).

        Raises:
            ImageError: one cannot be read.
        """
        return embed_paths(encoder, self.paths, self.box)


def parse_box(text: str) -> Box:
    """`x,y,w,h` as numbers.

    Raises:
        ConfigError: it is something else, or empty.
    """
    try:
        left, top, width, height = (int(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(
            f"a box is x,y,w,h in pixels, like 40,20,200,150, not {text!r}"
        ) from error
    if width < 1 or height < 1:
        raise ConfigError(f"the box {text} is empty: width and height must be at least 1")
    return left, top, width, height


def embed_paths(encoder: Encoder, paths: Sequence[Path], box: Box | None = None) -> Vectors:
    """Embed images, or a part of an image, and the frames of videos: (n, dim)."""
    if box is not None:
        return encoder.embed(cut(paths[0], box))
    if not any(_is_video(path) for path in paths):
        return encoder.embed(list(paths))
    parts = [_embed_video(encoder, p) if _is_video(p) else encoder.embed(p) for p in paths]
    return np.concatenate(parts)


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES


def _embed_video(encoder: Encoder, path: Path) -> Vectors:
    try:
        frames = [frame for _, frame in islice(sample_frames(path), _FRAMES)]
    except ImageError as error:
        raise ImageError(f"cannot read {path}: {error}") from error
    return encoder.embed(frames)


def cut(path: Path, box: Box) -> Image.Image:
    """The part of an upright image that a box shows, as far as it lies inside.

    Raises:
        ImageError: the image cannot be read, or the box lies outside of it.
    """
    try:
        image = decode(read_bytes(os.fspath(path)))
    except ImageError as error:
        raise ImageError(f"cannot read {path}: {error}") from error
    left, top, width, height = box
    inside = (
        max(left, 0),
        max(top, 0),
        min(left + width, image.width),
        min(top + height, image.height),
    )
    if inside[0] >= inside[2] or inside[1] >= inside[3]:
        raise ImageError(
            f"the box {','.join(map(str, box))} lies outside of {path}, which has {image.width} × "
            f"{image.height} pixels"
        )
    return image.crop(inside)


def combined(vectors: Vectors, question: Question) -> Vectors:
    """The vectors of a question as it wants them: one mean, or each on its own."""
    combine = question.combine or ("max" if question.is_of_video else "mean")
    if combine == "max":
        return vectors
    return normalize_rows(vectors.mean(axis=0, keepdims=True))
