"""One search as a person asks for it: by images, videos, ids or a part of an image."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from PIL import Image

from whiten.encoder import Encoder, load
from whiten.errors import ConfigError, ImageError
from whiten.index import Index, Match
from whiten.index.collections import is_store
from whiten.media import decode, read_bytes, sample_frames
from whiten.media.video import VIDEO_SUFFIXES
from whiten.run_folder import RunFolder
from whiten.spec import fingerprint
from whiten.store import Vectors
from whiten.whitening import normalize_rows

Box: TypeAlias = tuple[int, int, int, int]
Combine = Literal["mean", "max"]

_FRAMES = 60  # of a video that is searched by, a second apart
_WIDER = 10  # times k frames are found for k videos


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


@dataclass(frozen=True)
class Answer:
    """How much to answer.

    Attributes:
        k: hits at most.
        threshold: the least score of a hit.
        where: filter on columns, see `whiten.index.where`.
        videos: list videos, each with its best frame.
    """

    k: int = 10
    threshold: float | None = None
    where: str | None = None
    videos: bool = False

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ConfigError(f"k must be at least 1, not {self.k}")


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


def ask(index: Index, vectors: Vectors, answer: Answer) -> list[Match]:
    """The hits of vectors that are one question, best first; ties by place in the index.

    Of several vectors the best similarity to any of them counts.
    """
    found = index.search_vectors(vectors, answer.k, where=answer.where)
    hits = found[0] if len(found) == 1 else _best_of(found)[: answer.k]
    if answer.threshold is None:
        return hits
    return [hit for hit in hits if hit.score >= answer.threshold]


def _best_of(found: Sequence[Sequence[Match]]) -> list[Match]:
    best: dict[str, Match] = {}
    for hit in (hit for hits in found for hit in hits):
        if hit.id not in best or hit.score > best[hit.id].score:
            best[hit.id] = hit
    return sorted(best.values(), key=lambda hit: -hit.score)


def ask_for_videos(index: Index, vectors: Vectors, answer: Answer) -> list[Match]:
    """The hits of a video in an index of frames, one a video: that which is most alike.

    The score is the mean over the query's frames of the best similarity to any frame of the video
    (chamfer similarity of query to video). A frame whose best hits have none of a video counts with
    the least similarity among them, which is no less than the true one.
    """
    found = index.search_vectors(vectors, _WIDER * answer.k, where=answer.where)
    floors = np.array([hits[-1].score if hits else 0.0 for hits in found])
    scores: dict[str, Vectors] = {}
    best: dict[str, Match] = {}
    for number, hits in enumerate(found):
        for hit in hits:
            video = hit.group or hit.id.rpartition("/")[0] or hit.id
            row = scores.setdefault(video, floors.copy())
            row[number] = max(row[number], hit.score)
            if video not in best or hit.score > best[video].score:
                best[video] = hit
    ranked = sorted(best, key=lambda video: -scores[video].mean())[: answer.k]
    hits = [replace(best[video], score=float(scores[video].mean())) for video in ranked]
    least = -np.inf if answer.threshold is None else answer.threshold
    return [hit for hit in hits if hit.score >= least]


# --- as the command line asks ----------------------------------------------------------


def run_search(
    question: Question,
    answer: Answer,
    *,
    student: str | None = None,
    images: Path | None = None,
    place: Path | str | None = None,
    show_progress: bool = False,
) -> tuple[list[Match], Index]:
    """Open an index, or bring that of a collection up to date, and search it.

    Args:
        student: that queries are embedded with; by default what the index was made with.
        images: a collection that is indexed first; needs a student.
        place: of the index; with images by default `RUN/index/…` beside the student, one for each
            collection.

    Returns:
        The hits, best first, and the index.

    Raises:
        ConfigError: neither images nor a place, or no place for the index is known.
        ImageError: a query cannot be read; nothing is indexed then.
        StoreError: an id is not in the index.
    """
    encoder = None if student is None else load(student)
    if images is None:
        if place is None:
            raise ConfigError("nothing to search: add --in IMAGES, or --index FOLDER")
        index = Index.open(place, encoder)
        vectors = _embed(index.encoder, question) if question.paths else None
    else:
        if encoder is None or student is None:
            raise ConfigError("images need a model that embeds them: name it with --student")
        vectors = _embed(encoder, question) if question.paths else None
        where = place or _default_index(student, images)
        index = Index.build(encoder, images, where, show_progress=show_progress)
    parts = [] if vectors is None else [vectors]
    if question.ids:
        parts.append(index.vectors(list(question.ids)))
    asked = _combined(np.concatenate(parts), question)
    return (ask_for_videos if answer.videos else ask)(index, asked, answer), index


def _embed(encoder: Encoder, question: Question) -> Vectors:
    return embed_paths(encoder, question.paths, question.box)


def _combined(vectors: Vectors, question: Question) -> Vectors:
    combine = question.combine or ("max" if question.is_of_video else "mean")
    if combine == "max":
        return vectors
    return normalize_rows(vectors.mean(axis=0, keepdims=True))


def change_index(
    place: Path | str,
    *,
    images: Path | None,
    student: str | None,
    metadata: Path | None,
    add: bool,
    remove: Sequence[str],
    kind: str | None = None,
    recall: float | None = None,
    show_progress: bool = True,
) -> Index:
    """Make an index, bring it up to date, or take images out; see `Index.build`.

    Raises:
        ConfigError: nothing, or both at once, is asked for.
    """
    if (images is None) == (not remove):
        raise ConfigError("say what to do: name images to index, or --remove ids")
    if remove and (kind or recall):
        raise ConfigError(
            "--kind and --recall are chosen while images are indexed, not with --remove"
        )
    if images is None:
        index = Index.open(place)
        index.remove(list(remove))
        return index
    if student is None and not is_store(images):
        opened = Index.open(place)  # which says how to begin where there is none
        student = opened.facts.uri or None
    return Index.build(
        student,
        images,
        place,
        metadata=metadata,
        keep=add,
        kind=kind,
        recall=recall,
        show_progress=show_progress,
    )


def _default_index(student: str, images: Path) -> Path:
    folder = Path(student.removeprefix("whiten:"))
    if not folder.is_dir():
        raise ConfigError(f"{student} has no folder to keep its index in: add --index FOLDER")
    run = folder if RunFolder(folder).config.is_file() else folder.parent
    place = images.resolve()
    return run / "index" / f"{place.name}-{fingerprint(str(place))[:8]}"
