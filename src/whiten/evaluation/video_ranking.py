"""Rank videos by frames in a file, which is read once for many queries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from whiten import metrics
from whiten.evaluation.video_task import VideoTask
from whiten.utils.arrays import Indices, Vectors
from whiten.utils.memory import forget

QUERIES = 128  # per pass over the candidates
CANDIDATES = 256  # videos whose frames are read at once


class VideoSearch:
    """Similarities between the videos of a task.

    Args:
        task: the videos and the ground truth.
        frames: (frames, d) float32, in the order of the task; may be a memory map.
        kind: similarity of two videos, see `whiten.metrics.set_similarity`.
    """

    def __init__(self, task: VideoTask, frames: Vectors, kind: str) -> None:
        self.task, self.kind = task, kind
        self._frames = frames
        self._ends: Indices = np.cumsum(task.lengths)

    def frames_of(self, videos: Sequence[int] | Indices) -> Vectors:
        """Return the frames of some videos, concatenated."""
        stops = self._ends[videos]
        starts = stops - self.task.lengths[videos]
        parts = [self._frames[a:b] for a, b in zip(starts, stops, strict=True)]
        out = np.concatenate(parts) if parts else self._frames[:0]
        forget(self._frames)
        return out

    def ranks(self) -> Iterator[metrics.Ranks]:
        """Yield the ascending ranks of each query's positives, from 0.

        Videos of equal similarity rank by position: the query's own candidates first, in the order
        of their list, then the shared ones.
        """
        for first in range(0, len(self.task.queries), QUERIES):
            yield from self._ranks(range(first, min(first + QUERIES, len(self.task.queries))))

    def search(self, query: int, k: int) -> tuple[Indices, Vectors]:
        """Return the k videos most similar to a query, best first, and their similarities."""
        task = self.task
        shared = np.arange(task.shared.start, task.shared.stop)
        scores = [self._scores(query, task.own[query])]
        frames, lengths = self._query_frames([query])
        scores += [block[0].copy() for _, block in self._blocks(frames, lengths)]
        videos = np.concatenate([task.own[query], shared])
        similarity = np.concatenate(scores)
        is_there = ~np.isin(videos, task.junk[query])
        videos, similarity = videos[is_there], similarity[is_there]
        best = np.argsort(-similarity, kind="stable")[:k]
        return videos[best], similarity[best]

    def alignment(self, one: int, other: int) -> Vectors:
        """Return cosines, (frames of one video, frames of the other)."""
        a, b = self.frames_of([one]), self.frames_of([other])
        a, b = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (a, b))
        cosines: Vectors = a @ b.T
        return cosines

    def _ranks(self, queries: range) -> Iterator[metrics.Ranks]:
        task = self.task
        labelled, scores, positives, before = [], [], [], []
        for query in queries:
            own, right = task.own[query], task.positives[query]
            own_scores = self._scores(query, own)
            is_right = np.isin(own, right)
            order = np.argsort(-own_scores, kind="stable")
            before.append(np.flatnonzero(is_right[order]))
            # Videos that rank before all shared ones have a negative position.
            above = np.flatnonzero(is_right) - len(own)
            shared = right[~np.isin(right, own)]
            junk = task.junk[query]
            apart = np.concatenate([shared, junk])
            labelled.append(np.concatenate([above, apart - task.shared.start]))
            scores.append(np.concatenate([own_scores[is_right], self._scores(query, apart)]))
            positives.append(np.concatenate([above, shared - task.shared.start]))
        counter = metrics.RankCounter(labelled, scores, positives)
        for start, block in self._blocks(*self._query_frames(queries)):
            counter.pin(start, block)
            counter.add(start, block)
        for row, query in enumerate(queries):
            junk = task.junk[query] - task.shared.start
            ranks = counter.ranks(row, positives[row], junk)
            yield ranks + before[row] if len(before[row]) else ranks

    def _query_frames(self, queries: Sequence[int]) -> tuple[Vectors, Indices]:
        videos = self.task.queries[list(queries)]
        return self.frames_of(videos), self.task.lengths[videos]

    def _scores(self, query: int, videos: Indices) -> Vectors:
        """Return similarities of a query to some videos."""
        frames, lengths = self._query_frames([query])
        found = self.frames_of(videos), self.task.lengths[videos]
        scores: Vectors = metrics.set_similarity(frames, lengths, *found, kind=self.kind)[0]
        return scores

    def _blocks(self, frames: Vectors, lengths: Indices) -> Iterator[tuple[int, Vectors]]:
        """Yield (position of the first shared video, (queries, b) similarities)."""
        begin, end = self.task.shared.start, self.task.shared.stop
        for first in range(begin, end, CANDIDATES):
            some = slice(first, min(first + CANDIDATES, end))
            rows = slice(
                int(self._ends[some.start] - self.task.lengths[some.start]),
                int(self._ends[some.stop - 1]),
            )
            part = self._frames[rows]
            found = part, self.task.lengths[some]
            yield first - begin, metrics.set_similarity(frames, lengths, *found, kind=self.kind)
            forget(part)
