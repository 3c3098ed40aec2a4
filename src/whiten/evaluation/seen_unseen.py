"""Measure models on images of seen and of unseen sources, side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from whiten import metrics
from whiten.datasets.collection import Items
from whiten.datasets.task import folder_task
from whiten.embedding.encoder import Encoder
from whiten.embedding.rows import embed_rows
from whiten.errors import ConfigError, NoImagesError
from whiten.evaluation.evaluate import evaluate_task
from whiten.report.seen_unseen import Score, SeenUnseen, SeenUnseenRow
from whiten.report.table import Kind
from whiten.retrieval.held_out import FEWEST_GROUPS, FEWEST_IMAGES, HeldOut

MAP = "mAP of groups"
AGREEMENT = "Agreement with the fused teachers' neighbours"
_SAMPLE = 2048  # most images whose neighbours are compared


@dataclass(frozen=True)
class Measured:
    """Images to measure on.

    Attributes:
        items: the images.
        name: what they are, in words.
        cache: folder that keeps their embeddings. Ids are unique only within one collection.
    """

    items: Items
    name: str
    cache: Path

    @property
    def has_groups(self) -> bool:
        """Whether enough groups have two images or more."""
        sizes = Counter(group for group in self.items.groups.to_pylist() if group is not None)
        return sum(size > 1 for size in sizes.values()) >= FEWEST_GROUPS


def measure_seen_unseen(
    encoders: Iterable[tuple[Encoder, Kind, str]],
    fused: Encoder,
    seen: Measured | None,
    unseen: Measured,
    *,
    show_progress: bool = False,
) -> SeenUnseen:
    """Measure models on images of seen and of unseen sources.

    By the mean average precision of their groups, each image querying all others of its set; or,
    if one of the sets has too few groups, by how far they find the fused teachers' neighbours.

    Args:
        encoders: models with the kind and the name of their row.
        fused: the fused teachers, which are left out of the rows if they are the measure.
        seen: images of seen sources that did not train, if there are any.
        unseen: images of held-out sources.
    """
    sets = [test for test in (seen, unseen) if test is not None and len(test.items)]
    by_groups = all(test.has_groups for test in sets)
    judges = {id(test): _judge(test, fused, show_progress) for test in sets if not by_groups}
    rows = []
    for encoder, kind, name in encoders:
        if not by_groups and encoder is fused:
            continue
        scores: list[Score | None] = []
        for test in (seen, unseen):
            if test is None or not len(test.items):
                scores.append(None)
            elif by_groups:
                scores.append(_map(test, encoder, show_progress))
            else:
                scores.append(_agreement(test, encoder, judges[id(test)], show_progress))
        rows.append(SeenUnseenRow(name, kind, *scores))
    return SeenUnseen(
        criterion=MAP if by_groups else AGREEMENT,
        seen="none, name some with --test" if seen is None or not len(seen.items) else seen.name,
        unseen=unseen.name,
        rows=rows,
    )


def _map(test: Measured, encoder: Encoder, show_progress: bool) -> Score | None:
    try:
        kept, vectors, _ = embed_rows(
            encoder, test.items, cache=test.cache, show_progress=show_progress
        )
        task = folder_task(kept)
    except (NoImagesError, ConfigError):  # too few images can be read
        return None
    rows = kept.by_id.rows([item.id for item in task.queries])
    found = evaluate_task(task, vectors, vectors, rows=rows).figures["map"]
    return Score(found.value, found.low, found.high)


def _judge(test: Measured, fused: Encoder, show_progress: bool) -> tuple[Items, HeldOut] | None:
    """Return images that can be measured on, and the measure; None if they are too few."""
    count = min(len(test.items), _SAMPLE)
    drawn = np.sort(np.random.default_rng(0).permutation(len(test.items))[:count])
    try:
        kept, vectors, _ = embed_rows(
            fused, test.items.take(drawn), cache=test.cache, show_progress=show_progress
        )
    except NoImagesError:
        return None
    if len(kept) < FEWEST_IMAGES:
        return None
    return kept, HeldOut.of(np.array(vectors), None)


def _agreement(
    test: Measured, encoder: Encoder, judge: tuple[Items, HeldOut] | None, show_progress: bool
) -> Score | None:
    if judge is None:
        return None
    items, held_out = judge
    kept, vectors, _ = embed_rows(encoder, items, cache=test.cache, show_progress=show_progress)
    if len(kept) < len(items):  # a model that cannot read what the teachers can
        return None
    precisions = held_out.precisions(np.array(vectors))
    return Score(float(precisions.mean()), *metrics.bootstrap_interval(precisions))
