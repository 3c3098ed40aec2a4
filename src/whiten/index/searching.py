"""One search as a person asks for it: a question, and how much is wanted for an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from whiten.embedding.opening import load
from whiten.errors import ConfigError, StoreError
from whiten.index import Index, Match
from whiten.index.questions import Question, combined
from whiten.retrieval.reranking import expand_queries, normalize_scores
from whiten.runs.folder import RunFolder
from whiten.utils.arrays import Vectors
from whiten.utils.hashing import fingerprint

_WIDER = 10  # times k frames are found for k videos
_SAME = 1e-6  # from the highest similarity: the query itself
BACKGROUND = 10  # images of the background that are most alike


@dataclass(frozen=True)
class Answer:
    """How much to answer.

    Attributes:
        k: hits at most.
        threshold: the least score of a hit.
        where: filter on columns, see `whiten.index.where`.
        videos: list videos, each with its best frame.
        expand: first results that a second search asks with too (α-query expansion); 0 is none.
        alpha: weighs them by their similarity to this power.
        background: images none of which is right; how alike the query is to them is taken off its
            scores, so that one threshold serves all queries.
    """

    k: int = 10
    threshold: float | None = None
    where: str | None = None
    videos: bool = False
    expand: int = 0
    alpha: float = 3.0
    background: Index | None = None

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ConfigError(f"k must be at least 1, not {self.k}")
        if self.expand < 0 or self.alpha < 0:
            raise ConfigError("expand and alpha must be at least 0")


def ask(index: Index, vectors: Vectors, answer: Answer) -> list[Match]:
    """The hits of vectors that are one question, best first; ties by place in the index.

    Of several vectors the best similarity to any of them counts.
    """
    found = _found(index, vectors, answer.k, answer)
    hits = found[0] if len(found) == 1 else _best_of(found)[: answer.k]
    if answer.threshold is None:
        return hits
    return [hit for hit in hits if hit.score >= answer.threshold]


def _found(index: Index, vectors: Vectors, k: int, answer: Answer) -> list[list[Match]]:
    """The hits of each vector, as the options on the query's side make them."""
    if answer.expand:
        first = index.search_vectors(vectors, answer.expand, where=answer.where)
        vectors = np.concatenate(
            [_expanded(index, v, hits, answer) for v, hits in zip(vectors, first, strict=True)]
        )
    found = index.search_vectors(vectors, k, where=answer.where)
    if answer.background is None:
        return found
    near = answer.background.search_vectors(vectors, BACKGROUND)
    return [
        _moved(hits, np.array([[hit.score for hit in alike]]))
        for hits, alike in zip(found, near, strict=True)
    ]


def _expanded(index: Index, vector: Vectors, hits: Sequence[Match], answer: Answer) -> Vectors:
    """(1, dim) the query and its first results; its own embedding adds nothing to it."""
    others = [hit for hit in hits if hit.score < 1 - _SAME]
    neighbours = index.vectors([hit.id for hit in others])
    similarities = np.array([[hit.score for hit in others]], np.float32)
    return expand_queries(vector[None], neighbours[None], similarities, alpha=answer.alpha)


def _moved(hits: Sequence[Match], to_background: Vectors) -> list[Match]:
    scores = np.array([[hit.score for hit in hits]], np.float32)
    moved = normalize_scores(scores, to_background, top=BACKGROUND)[0]
    return [replace(hit, score=float(score)) for hit, score in zip(hits, moved, strict=True)]


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
    found = _found(index, vectors, _WIDER * answer.k, answer)
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
        vectors = question.embed(index.encoder) if question.paths else None
    else:
        if encoder is None or student is None:
            raise ConfigError("images need a model that embeds them: name it with --model")
        vectors = question.embed(encoder) if question.paths else None
        where = place or _default_index(student, images)
        index = Index.build(encoder, images, where, show_progress=show_progress)
    if answer.background is not None and answer.background.facts.model != index.facts.model:
        raise StoreError(
            f"the background {answer.background.place} is of another model than {index.place}: "
            "index it with the same one"
        )
    parts = [] if vectors is None else [vectors]
    if question.ids:
        parts.append(index.vectors(list(question.ids)))
    asked = combined(np.concatenate(parts), question)
    return (ask_for_videos if answer.videos else ask)(index, asked, answer), index


def _default_index(student: str, images: Path) -> Path:
    folder = Path(student.removeprefix("whiten:"))
    if not folder.is_dir():
        raise ConfigError(f"{student} has no folder to keep its index in: add --index FOLDER")
    run = folder if RunFolder(folder).config.is_file() else folder.parent
    place = images.resolve()
    return run / "index" / f"{place.name}-{fingerprint(str(place))[:8]}"
