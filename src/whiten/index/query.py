"""One search: a query, the options of the search, and its hits.

The command line, Python and the service all search this way.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from whiten.datasets.collection import video_of
from whiten.embedding.encoder import Encoder
from whiten.errors import ConfigError, ImageError, StoreError
from whiten.index.index import Index
from whiten.index.rows import Match
from whiten.index.where import Where
from whiten.media.boxes import Box, crop
from whiten.media.decoding import decode
from whiten.media.reading import read_bytes
from whiten.media.video import VIDEO_SUFFIXES, sample_frames
from whiten.retrieval.reranking import expand_queries, normalize_scores
from whiten.utils.arrays import Vectors, normalize_rows

Combine = Literal["mean", "max"]

BACKGROUND = 10  # nearest images of the background that normalise a score
_FRAMES = 60  # of a video in a query, one per second
_WIDER = 10  # frames that are searched at first for each video wanted
_MOST = 16_384  # rows that every place of an index can return
_SAME = 1e-6  # below the highest similarity: the query itself


@dataclass(frozen=True)
class Query:
    """What to search for; everything in it is one query.

    Attributes:
        images: files of images, or of videos, of which one frame per second is used.
        ids: images of the index.
        box: the part of the single image to use.
        combine: `mean` searches with the mean of all embeddings, `max` scores an image by its best
            similarity to any of them. By default the mean, or with a video the best.

    Raises:
        ConfigError: there is nothing to search for, or the box has not exactly one image.
    """

    images: Sequence[Path] = ()
    ids: Sequence[str] = ()
    box: Box | None = None
    combine: Combine | None = None

    def __post_init__(self) -> None:
        if not self.images and not self.ids:
            raise ConfigError("nothing to search for: name an image, or the id of one in the index")
        if self.box is not None and (self.ids or len(self.images) != 1 or self.has_video):
            raise ConfigError("a box is a part of one image: name exactly one image")

    @property
    def has_video(self) -> bool:
        return any(_is_video(path) for path in self.images)

    def embed(self, encoder: Encoder) -> Vectors:
        """Embed the images: (n, dim) float32, one row per image or frame.

        Raises:
            ImageError: an image cannot be read, or the box is outside of it.
        """
        if self.box is not None:
            return encoder.embed(_cropped(self.images[0], self.box))
        if not self.has_video:
            return encoder.embed(list(self.images))
        return np.concatenate(
            [
                _embed_video(encoder, path) if _is_video(path) else encoder.embed(path)
                for path in self.images
            ]
        )

    def combined(self, vectors: Vectors) -> Vectors:
        """(1, dim) the mean, or all (n, dim) vectors for the best similarity to any of them."""
        combine = self.combine or ("max" if self.has_video else "mean")
        return combined(vectors, combine)


def combined(vectors: Vectors, combine: Combine) -> Vectors:
    return vectors if combine == "max" else normalize_rows(vectors.mean(axis=0, keepdims=True))


@dataclass(frozen=True)
class SearchOptions:
    """What to return for a query.

    Attributes:
        k: most hits.
        threshold: lowest score of a hit.
        where: filter on columns, see `whiten.index.where`.
        videos: return videos instead of frames, each with its best frame.
        expand: number of first hits that a second search adds to the query (α-query expansion,
            Radenović et al., TPAMI 2019); 0 is off.
        alpha: power of their similarities that weighs these hits.
        background: index of images that are all wrong; the query's similarity to them is subtracted
            from its scores, so that one threshold serves all queries.

    Raises:
        ConfigError: a number is out of range.
    """

    k: int = 10
    threshold: float | None = None
    where: str | Where | None = None
    videos: bool = False
    expand: int = 0
    alpha: float = 3.0
    background: Index | None = None

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ConfigError(f"k must be at least 1, not {self.k}")
        if self.expand < 0 or self.alpha < 0:
            raise ConfigError("expand and alpha must be at least 0")

    def is_enough(self, hit: Match) -> bool:
        """Whether a hit reaches the threshold."""
        return self.threshold is None or hit.score >= self.threshold


def search(index: Index, vectors: Vectors, options: SearchOptions) -> list[Match]:
    """Search with (n, dim) vectors that are one query; hits best first, ties in the index's order.

    An image is scored by its best similarity to any of the vectors.

    Raises:
        StoreError: the background was made with another model.
        ConfigError: the filter cannot be read.
    """
    background = options.background
    if background is not None and background.facts.model != index.facts.model:
        raise StoreError(
            f"the background {background.place} was made with another model than {index.place}: "
            "index it with the same model"
        )
    hits = (_videos if options.videos else _images)(index, vectors, options)
    return [hit for hit in hits if options.is_enough(hit)]


def _images(index: Index, vectors: Vectors, options: SearchOptions) -> list[Match]:
    found = _found(index, vectors, options.k, options)
    if len(found) == 1:
        return found[0]
    best: dict[str, Match] = {}
    for hit in (hit for hits in found for hit in hits):
        if hit.id not in best or hit.score > best[hit.id].score:
            best[hit.id] = hit
    return sorted(best.values(), key=lambda hit: -hit.score)[: options.k]


def _videos(index: Index, vectors: Vectors, options: SearchOptions) -> list[Match]:
    """The best frame of each video, scored by the chamfer similarity of the query to the video.

    That is the mean over the query's frames of the best similarity to any frame of the video. If a
    query frame's hits hold none of a video, their lowest similarity bounds the true one from above.
    """
    width = min(_WIDER * options.k, _MOST)
    while True:
        found = _found(index, vectors, width, options)
        videos = {_video(hit) for hits in found for hit in hits}
        is_all = all(len(hits) < width for hits in found)
        if len(videos) >= options.k or is_all or width == _MOST:
            break
        width = min(4 * width, _MOST)  # the frames of few videos took all places
    floors = np.array([hits[-1].score if hits else 0.0 for hits in found])
    scores: dict[str, Vectors] = {}
    best: dict[str, Match] = {}
    for number, hits in enumerate(found):
        for hit in hits:
            video = _video(hit)
            row = scores.setdefault(video, floors.copy())
            row[number] = max(row[number], hit.score)
            if video not in best or hit.score > best[video].score:
                best[video] = hit
    ranked = sorted(best, key=lambda video: -scores[video].mean())[: options.k]
    return [replace(best[video], score=float(scores[video].mean())) for video in ranked]


def _video(hit: Match) -> str:
    """The video of a frame; an image outside of any folder is its own."""
    return video_of(hit.id) or hit.id


def _found(index: Index, vectors: Vectors, k: int, options: SearchOptions) -> list[list[Match]]:
    """The hits of each vector, with expansion and background applied."""
    if options.expand:
        first = index.search_vectors(vectors, options.expand, where=options.where)
        vectors = np.concatenate(
            [_expanded(index, v, hits, options) for v, hits in zip(vectors, first, strict=True)]
        )
    found = index.search_vectors(vectors, k, where=options.where)
    if options.background is None:
        return found
    near = options.background.search_vectors(vectors, BACKGROUND)
    return [
        _normalised(hits, np.array([[hit.score for hit in wrong]]))
        for hits, wrong in zip(found, near, strict=True)
    ]


def _expanded(
    index: Index, vector: Vectors, hits: Sequence[Match], options: SearchOptions
) -> Vectors:
    """(1, dim) the query with its first hits added; its own embedding would add nothing."""
    others = [hit for hit in hits if hit.score < 1 - _SAME]
    neighbours = index.vectors([hit.id for hit in others])
    similarities = np.array([[hit.score for hit in others]], np.float32)
    return expand_queries(vector[None], neighbours[None], similarities, alpha=options.alpha)


def _normalised(hits: Sequence[Match], to_background: Vectors) -> list[Match]:
    scores = np.array([[hit.score for hit in hits]], np.float32)
    moved = normalize_scores(scores, to_background, top=BACKGROUND)[0]
    return [replace(hit, score=float(score)) for hit, score in zip(hits, moved, strict=True)]


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES


def _embed_video(encoder: Encoder, path: Path) -> Vectors:
    try:
        frames = [frame for _, frame in islice(sample_frames(path), _FRAMES)]
    except ImageError as error:
        raise ImageError(f"cannot read {path}: {error}") from error
    return encoder.embed(frames)


def _cropped(path: Path, box: Box) -> Image.Image:
    try:
        return crop(decode(read_bytes(os.fspath(path))), box)
    except ImageError as error:
        raise ImageError(f"cannot read {path}: {error}") from error
