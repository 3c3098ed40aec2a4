"""Frames and ground truth of a video benchmark."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from whiten.datasets.collection import Item, Items, video_of
from whiten.media.reading import Skipped
from whiten.utils.arrays import Indices, indices


@dataclass(frozen=True)
class VideoTask:
    """Videos as sets of frames, the queries among them, and the ground truth.

    Attributes:
        frames: frames, grouped by video in the order of `videos`.
        videos: (v,) names of the videos.
        lengths: (v,) frames per video, at least 1.
        queries: (q,) indices of the videos that are queries.
        shared: videos that every query searches.
        own: per query, videos that only it searches, ranked before the shared ones.
        positives: per query, the positive videos: all of them in `own`, or all in `shared`.
        junk: per query, videos of `shared` that count as absent.
        without_positives: queries left out because they have no positives.
        skipped: videos without frames, with the reason.
    """

    frames: Items
    videos: list[str]
    lengths: Indices
    queries: Indices
    shared: slice
    own: list[Indices]
    positives: list[Indices]
    junk: list[Indices]
    without_positives: int
    skipped: list[Skipped]

    @property
    def searched(self) -> int:
        """Number of videos that some query searches."""
        apart = np.unique(np.concatenate([indices([]), *self.own]))
        return int(self.shared.stop - self.shared.start + (apart < self.shared.start).sum())

    def with_frames(self, kept: Items) -> VideoTask:
        """Return the task restricted to the frames that could be embedded, in the same order."""
        if len(kept) == len(self.frames):
            return self
        rows = self.frames.by_id.rows(kept.ids.to_pylist())
        of_video = np.repeat(np.arange(len(self.videos)), self.lengths)
        lengths = np.bincount(of_video[rows], minlength=len(self.videos))
        is_left = lengths > 0
        number = np.where(is_left, np.cumsum(is_left) - 1, -1)

        def renumber(videos: Indices) -> Indices:
            return number[videos][is_left[videos]]

        has_left = np.array([is_left[right].any() or not len(right) for right in self.positives])
        is_there = is_left[self.queries]
        answerable = np.flatnonzero(is_there & has_left)
        own, positives, junk = (
            [renumber(lists[query]) for query in answerable]
            for lists in (self.own, self.positives, self.junk)
        )
        lost = [self.videos[i] for i in np.flatnonzero(~is_left)]
        before = np.concatenate([[0], np.cumsum(is_left)])
        return replace(
            self,
            frames=kept,
            videos=[self.videos[i] for i in np.flatnonzero(is_left)],
            lengths=lengths[is_left],
            queries=renumber(self.queries[answerable]),
            shared=slice(int(before[self.shared.start]), int(before[self.shared.stop])),
            own=own,
            positives=positives,
            junk=junk,
            without_positives=self.without_positives + int((is_there & ~has_left).sum()),
            skipped=[
                *self.skipped,
                *(Skipped(name, "none of its frames is left") for name in lost),
            ],
        )


def count_frames(frames: Iterable[Item]) -> dict[str, int]:
    """Count the frames of each video, in order of appearance."""
    counts: dict[str, int] = {}
    for frame in frames:
        name = video_of(frame.id)
        counts[name] = counts.get(name, 0) + 1
    return counts
