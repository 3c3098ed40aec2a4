"""Search an index: a query, the search options, and the hits.

Shared by the command line, the Python API and the service.
"""

from __future__ import annotations

import math
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
from whiten.index.conditions import Where
from whiten.index.index import Index
from whiten.index.rows import Match, as_queries
from whiten.media.boxes import Box, crop
from whiten.media.decoding import decode
from whiten.media.reading import naming, read_bytes
from whiten.media.video import VIDEO_SUFFIXES, sample_frames
from whiten.retrieval.reranking import expand_queries, normalize_scores
from whiten.storage.places import is_plain
from whiten.utils.arrays import Vectors, normalize_rows
from whiten.utils.names import several
from whiten.utils.validation import as_number, as_whole

Combine = Literal["mean", "max"]

BACKGROUND = 10  # nearest background images that normalise a score
_FRAMES = 60  # per video of a query, one per second
_WIDER = 10  # frames to search at first per requested video
_MOST = 16_384  # rows that every backend can return
_SAME = 1e-6  # below the highest similarity: still the query itself


@dataclass(frozen=True)
class Query:
    """Images, videos and ids that together form one query.

    Attributes:
        images: image files, or videos, sampled at one frame per second.
        ids: ids of images in the index.
        box: region to use of the single image; that of an id is read from its file.
        combine: `mean` searches with the mean of all embeddings, `max` scores an image by its
            highest similarity to any of them. By default `mean`, or `max` if there is a video.

    Raises:
        ConfigError: the query is empty, combine is unknown, or a box is given with other than
            exactly one image.
    """

    images: Sequence[Path] = ()
    ids: Sequence[str] = ()
    box: Box | None = None
    combine: Combine | None = None

    def __post_init__(self) -> None:
        for name in ("images", "ids"):
            object.__setattr__(self, name, tuple(several(getattr(self, name))))
        if not self.images and not self.ids:
            raise ConfigError("nothing to search for: name an image, or the id of one in the index")
        if self.box is not None and (len(self.ids) + len(self.images) != 1 or self.has_video):
            raise ConfigError("a box is a part of one image: name exactly one image")
        if self.combine not in (None, "mean", "max"):
            raise ConfigError(f"combine must be mean or max, not {self.combine!r}")

    @property
    def has_video(self) -> bool:
        return any(_is_video(path) for path in self.images)

    def require_files(self) -> None:
        """Refuse a missing image, before a model is opened.

        Raises:
            ImageError: see `embed`.
        """
        for path in self.images:
            if is_plain(os.fspath(path)) and not os.path.lexists(path):
                with naming(path):
                    read_bytes(os.fspath(path))

    def embed(self, encoder: Encoder) -> Vectors:
        """Embed the images, not the ids: (n, dim) float32, one row per image or frame.

        Raises:
            ImageError: an image cannot be read, or the box is outside it.
        """
        if self.box is not None and self.images:
            return encoder.embed(_cropped(self.images[0], self.box))
        if not self.has_video:
            return encoder.embed(list(self.images))
        return np.concatenate(
            [
                _embed_video(encoder, path) if _is_video(path) else encoder.embed(path)
                for path in self.images
            ]
        )

    def indexed(self, index: Index) -> Vectors:
        """Return the vectors of the ids, (n, dim); with a box, that of the part of its image.

        Raises:
            StoreError: an id is not in the index.
            ImageError: the file of an id with a box cannot be read, or the box is outside it.
        """
        if self.box is None:
            return index.vectors(self.ids)
        [item] = index.items(self.ids)
        return replace(self, images=[Path(item.path)], ids=()).embed(index.encoder)

    def combined(self, vectors: Vectors) -> Vectors:
        """Return the (1, dim) mean for `mean`, or all (n, dim) vectors for `max`."""
        combine = self.combine or ("max" if self.has_video else "mean")
        return combined(vectors, combine)


def combined(vectors: Vectors, combine: Combine) -> Vectors:
    if combine == "max" or len(vectors) == 1:
        return vectors
    return normalize_rows(vectors.mean(axis=0, keepdims=True))


@dataclass(frozen=True)
class SearchOptions:
    """Options of a search.

    Attributes:
        k: maximum number of hits.
        threshold: minimum score of a hit.
        where: filter on columns, see `whiten.index.where`.
        videos: return videos instead of frames, each with its best frame.
        expand: number of top hits added to the query for a second search (α-query expansion,
            Radenović et al., TPAMI 2019); 0 is off.
        alpha: exponent of the similarities that weight these hits; only with `expand`.
        background: index of images that match no query; the query's similarity to them is
            subtracted from its scores, so that one threshold serves all queries.

    Raises:
        ConfigError: a number is none or out of range, or alpha is given without expand.
    """

    k: int = 10
    threshold: float | None = None
    where: str | Where | None = None
    videos: bool = False
    expand: int = 0
    alpha: float = 3.0
    background: Index | None = None

    def __post_init__(self) -> None:
        if as_whole("k", self.k) < 1:
            raise ConfigError(f"k must be at least 1, not {self.k}")
        if self.threshold is not None and math.isnan(as_number("threshold", self.threshold)):
            raise ConfigError("threshold must be a number, not nan, which no score reaches")
        expand, alpha = as_whole("expand", self.expand), as_number("alpha", self.alpha)
        if expand < 0 or not 0 <= alpha < math.inf:
            raise ConfigError("expand and alpha must be at least 0, and finite")
        if alpha != SearchOptions.alpha and not expand:
            raise ConfigError("alpha weights the hits that expand adds: set expand, or no alpha")

    def is_enough(self, hit: Match) -> bool:
        """Return whether a hit reaches the threshold."""
        return self.threshold is None or hit.score >= self.threshold


def search(index: Index, vectors: Vectors, options: SearchOptions) -> list[Match]:
    """Search with the (n, dim) vectors of one query; hits best first, ties in index order.

    An image is scored by its highest similarity to any of the vectors.

    Raises:
        StoreError: the background was made with another model.
        ConfigError: the filter cannot be read, or the vectors do not fit the index.
    """
    require_same_model(index, options.background)
    vectors = as_queries(vectors, index.facts.dim)  # the length would weigh in the expansion
    hits = (_videos if options.videos else _images)(index, vectors, options)
    return [hit for hit in hits if options.is_enough(hit)]


def require_same_model(index: Index, background: Index | None) -> None:
    """Refuse a background of another model than the index.

    Raises:
        StoreError: see there.
    """
    if background is not None and background.facts.model != index.facts.model:
        raise StoreError(
            f"the background {background.place} was made with another model than {index.place}: "
            "index it with the same model"
        )


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
    """Return the best frame of each video, scored by chamfer similarity of query and video.

    This is the mean over the query's frames of the highest similarity to any frame of the video.
    If a query frame has no hit in a video, the lowest similarity of its hits serves as upper bound.
    """
    width = min(_WIDER * options.k, _MOST)
    tops = {"", *index.facts.prefixes.values()}
    while True:
        found = _found(index, vectors, width, options)
        videos = {_video(hit, tops) for hits in found for hit in hits}
        is_all = all(len(hits) < width for hits in found)
        if len(videos) >= options.k or is_all or width == _MOST:
            break
        width = min(4 * width, _MOST)  # frames of a few videos filled all hits
    floors = np.array([hits[-1].score if hits else 0.0 for hits in found])
    scores: dict[str, Vectors] = {}
    best: dict[str, Match] = {}
    for number, hits in enumerate(found):
        for hit in hits:
            video = _video(hit, tops)
            row = scores.setdefault(video, floors.copy())
            row[number] = max(row[number], hit.score)
            if video not in best or hit.score > best[video].score:
                best[video] = hit
    ranked = sorted(best, key=lambda video: -scores[video].mean())[: options.k]
    return [replace(best[video], score=float(scores[video].mean())) for video in ranked]


def _video(hit: Match, tops: set[str]) -> str:
    """Return the video of a frame; an image outside any folder counts as its own video.

    Args:
        tops: the folders in ids that are none, but the names of collections.
    """
    folder = video_of(hit.id)
    return hit.id if folder in tops else folder


def _found(index: Index, vectors: Vectors, k: int, options: SearchOptions) -> list[list[Match]]:
    """Return the hits of each vector, with expansion and background applied."""
    if options.expand:
        # One more: the query's own image may be among them.
        first = index.search_vectors(vectors, options.expand + 1, where=options.where)
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
    """Return the query with its top hits added, (1, dim), leaving out the query's own image."""
    # What the storage loses takes from the similarity of an image to itself.
    highest = index.as_stored(vector[None], [hit.id for hit in hits]) @ vector
    others = [hit for hit, bar in zip(hits, highest, strict=True) if hit.score < bar - _SAME]
    others = others[: options.expand]
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
    with naming(path):
        if not is_plain(os.fspath(path)):
            raise ImageError("videos are read from a disk only: get the file first")
        frames = [frame for _, frame in islice(sample_frames(path), _FRAMES)]
    return encoder.embed(frames)


def _cropped(path: Path, box: Box) -> Image.Image:
    with naming(path):
        return crop(decode(read_bytes(os.fspath(path))), box)
