"""Evaluate an encoder on videos: near-duplicates should find each other.

Frames are embedded one by one; the similarity of two videos is that of their sets of frames, see
`whiten.metrics.set_similarity`. Candidates are read once, block by block, for many queries.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from whiten import metrics
from whiten.datasets.collection import Items
from whiten.datasets.patterns import Patterns
from whiten.datasets.svd import Svd, read_svd
from whiten.embedding.encoder import Encoder, Part
from whiten.embedding.opening import load
from whiten.embedding.rows import embed_rows
from whiten.errors import ConfigError, nearest
from whiten.evaluation.evaluate import PER_QUERY, Evaluation
from whiten.evaluation.own_videos import read_videos, videos_task
from whiten.evaluation.svd import svd_task
from whiten.evaluation.video_ranking import VideoSearch
from whiten.evaluation.video_task import VideoTask
from whiten.media.video import MAX_FRAMES
from whiten.models.stored_model import Model
from whiten.models.teacher import Teacher
from whiten.utils.arrays import Vectors
from whiten.utils.files import temporary_folder
from whiten.utils.hashing import fingerprint
from whiten.utils.progress import progress

VideoProtocol: TypeAlias = Literal["svd", "videos"]
VIDEO_PROTOCOLS: tuple[VideoProtocol, ...] = ("svd", "videos")

HITS = 8  # per example

# The published evaluation: shorter side to 256 pixels, then a centre crop of 224.
_CROP_FRACTION = 224 / 256

PerQuery: TypeAlias = Callable[[metrics.Ranks], float]
Scores: TypeAlias = npt.NDArray[np.float64]

SVD_FIGURES: dict[str, PerQuery] = {
    "map_top_100": lambda ranks: metrics.ap_from_ranks(ranks[ranks < 100]),
    "map_top_inf": metrics.ap_from_ranks,
}


@dataclass(frozen=True)
class VideoHit:
    """A video found: one of its frames, its similarity, and whether it is positive."""

    id: str
    path: str
    score: float
    correct: bool


@dataclass(frozen=True)
class VideoExample:
    """A query and its hits, best first.

    Attributes:
        label: best, median or worst, by its average precision.
        ap: its average precision.
        query, match: the query and its best hit.
        query_paths, match_paths: files of their frames.
        query_ms, match_ms: times of these frames in ms; None if unknown.
        alignment: (query frames, match frames) cosines.
        hits: each with its frame that is most similar to a frame of the query.
    """

    label: str
    ap: float
    query: str
    match: str
    query_paths: list[str]
    match_paths: list[str]
    query_ms: list[int] | None
    match_ms: list[int] | None
    alignment: Vectors
    hits: list[VideoHit]


@dataclass(frozen=True)
class VideoEvaluation(Evaluation):
    """Video retrieval metrics of an encoder; `gallery_size` counts videos.

    Attributes:
        similarity: similarity of two sets of frames.
        frames: number of embedded frames.
        examples: queries with the best, the median and the worst average precision.
        page: path of the report, if one was written.
    """

    searched: ClassVar[str] = "video"

    similarity: str = "cf"
    frames: int = 0
    examples: list[VideoExample] = dataclasses.field(default_factory=list)
    page: Path | None = None

    @property
    def remarks(self) -> list[str]:
        """Return notes to show with the metrics."""
        return [*super().remarks, *([] if self.page is None else [f"report   {self.page}"])]

    def to_json(self) -> dict[str, object]:
        """Return plain numbers, without the per-query lists and the examples."""
        return {**super().to_json(), "similarity": self.similarity, "frames": self.frames}


def evaluate_videos(
    encoder: Encoder | str | os.PathLike[str],
    data: str | os.PathLike[str] | Svd,
    *,
    protocol: VideoProtocol = "svd",
    similarity: str = "cf",
    omit_normalisation: bool = False,
    max_frames: int = MAX_FRAMES,
    stride: int = 1,
    examples: bool = False,
    exclude: Patterns = (),
    include: Patterns = (),
    cache: str | os.PathLike[str] | None = None,
    show_progress: bool = False,
) -> VideoEvaluation:
    """Evaluate retrieval of near-duplicate videos.

    Args:
        encoder: an `Encoder`, or anything that `whiten.load` takes.
        data: folder of SVD, see `whiten.evaluation.svd`, or its metadata; or for `videos` a source
            for `whiten.evaluation.own_videos.read_videos`.
        protocol: with `svd`, each test query ranks its labelled candidates and all unlabelled
            videos: `map_top_100` and `map_top_inf`, normalised by the near-duplicates in the list,
            with ties in the order of the lists, labelled first. With `videos`, each video of a
            group should find the others.
        similarity: `cf`, `sme`, `smx`, `fme` or `fmx`, see `whiten.metrics.set_similarity`;
            computed on L2-normalised embeddings of frames.
        omit_normalisation: for `svd`, feed pixels as 0..1 without the model's normalisation, as the
            published evaluation does; its metrics come out lower or higher.
        max_frames, stride: for `svd`, the frames of each video to use.
        examples: look up examples for a report; video frames remain after the call only with a
            cache.
        exclude, include: for `videos`, patterns that choose among them, see
            `whiten.datasets.patterns`.
        cache: folder that keeps embeddings and frames between calls; none by default.

    For `svd`, frames are cropped as in SVD's evaluation (a centred 224/256 of the shorter side) at
    the model's own size; for `videos`, in the model's own way.

    Raises:
        ConfigError: the protocol or similarity is unknown, or the data does not fit the protocol.
    """
    for value, known in ((protocol, VIDEO_PROTOCOLS), (similarity, metrics.SET_SIMILARITIES)):
        if value not in known:
            raise ConfigError(
                f"unknown value {value!r}{nearest(value, known)}: choose one of {', '.join(known)}"
            )
    if omit_normalisation and protocol != "svd":
        raise ConfigError(
            "leaving out the normalisation is what SVD's published evaluation does: "
            "use it with the protocol svd only"
        )
    if max_frames < 1 or stride < 1:
        raise ConfigError(f"max frames {max_frames} and stride {stride} must be at least 1")
    with ExitStack() as stack:
        place = Path(cache or stack.enter_context(temporary_folder()))
        place.mkdir(parents=True, exist_ok=True)
        source = Path(data.root if isinstance(data, Svd) else data).resolve()
        frames = place / f"frames-{source.stem}-{fingerprint(str(source))[:8]}"
        with progress("frames", enabled=show_progress, unit="videos") as update:
            if isinstance(data, Svd) or protocol == "svd":
                svd = data if isinstance(data, Svd) else read_svd(data)
                cut = {"max_frames": max_frames, "stride": stride}
                task = svd_task(svd, frames, **cut, progress=update)
            else:
                task = videos_task(
                    *read_videos(data, frames, exclude=exclude, include=include, progress=update)
                )
        model = encoder if isinstance(encoder, Encoder) else load(encoder)
        if protocol == "svd":
            model = _fitted_as_published(model, omit_normalisation)
        kept, vectors, skipped = embed_rows(
            model, task.frames, cache=cache, show_progress=show_progress
        )
        task = task.with_frames(kept)
        if not len(task.queries):
            raise ConfigError("no query has a frame that could be embedded: see the skipped ones")
        search = VideoSearch(task, vectors, similarity)
        scores = _score(search, SVD_FIGURES if protocol == "svd" else PER_QUERY)
        aps = scores["map_top_inf" if protocol == "svd" else "map"]
        return VideoEvaluation(
            name=model.name,
            dim=model.dim,
            figures=metrics.figures(scores),
            aps=aps,
            query_ids=[task.videos[video] for video in task.queries],
            gallery_size=task.searched,
            without_positives=task.without_positives,
            skipped=[*task.skipped, *skipped],
            similarity=similarity,
            frames=len(kept),
            examples=_examples(search, aps) if examples else [],
        )


def _score(search: VideoSearch, per_query: Mapping[str, PerQuery]) -> dict[str, Scores]:
    """Return each metric's value per query."""
    ranks = list(search.ranks())
    return {name: np.array([metric(own) for own in ranks]) for name, metric in per_query.items()}


def _examples(search: VideoSearch, aps: Scores) -> list[VideoExample]:
    order = np.argsort(-aps, kind="stable")
    picked = {int(order[0]): "best", int(order[len(order) // 2]): "median"}
    picked.setdefault(int(order[-1]), "worst")
    return [_example(search, query, label, float(aps[query])) for query, label in picked.items()]


def _example(search: VideoSearch, query: int, label: str, ap: float) -> VideoExample:
    task = search.task
    video = int(task.queries[query])
    found, scores = search.search(query, HITS)
    alignments = [search.alignment(video, int(hit)) for hit in found]
    right = set(task.positives[query].tolist())
    hits = [
        VideoHit(
            id=task.videos[hit],
            path=_frames(task, hit)[int(alignment.max(axis=0).argmax())].path,
            score=float(score),
            correct=hit in right,
        )
        for hit, score, alignment in zip(found.tolist(), scores, alignments, strict=True)
    ]
    shown, match = _frames(task, video), _frames(task, int(found[0]))
    return VideoExample(
        label=label,
        ap=ap,
        query=task.videos[video],
        match=task.videos[int(found[0])],
        query_paths=[frame.path for frame in shown],
        match_paths=[frame.path for frame in match],
        query_ms=_times(shown),
        match_ms=_times(match),
        alignment=alignments[0],
        hits=hits,
    )


def _frames(task: VideoTask, video: int) -> Items:
    stop = int(task.lengths[: video + 1].sum())
    return task.frames[stop - int(task.lengths[video]) : stop]


def _times(frames: Items) -> list[int] | None:
    times = [frame.frame_ms for frame in frames if frame.frame_ms is not None]
    return times if len(times) == len(frames) else None


def _fitted_as_published(encoder: Encoder, omit_normalisation: bool) -> Encoder:
    def refit(teacher: Model) -> Model:
        own = teacher.preprocess
        fitted = dataclasses.replace(
            own, fit="crop", crop_fraction=_CROP_FRACTION, interpolation="bilinear"
        )
        if omit_normalisation:
            if isinstance(teacher, Teacher) and teacher.takes_pixels:
                raise ConfigError(
                    f"{teacher.uri} normalises its pixels itself: leave out --omit-normalisation"
                )
            fitted = dataclasses.replace(fitted, mean=(0.0,) * 3, std=(1.0,) * 3, white=1.0)
        return dataclasses.replace(teacher, preprocess=fitted)

    parts = [Part(refit(part.teacher), part.whitener) for part in encoder.parts]
    return Encoder(encoder.name, parts, rotation=encoder.rotation, weights=encoder.weights)
