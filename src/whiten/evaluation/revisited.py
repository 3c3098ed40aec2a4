"""Evaluate on revisited Oxford or Paris, with and without a million distractors.

Images are embedded at their own size, scaled down to at most 1024 pixels on the longest side, at
one scale or three. Queries are embedded twice: cropped to the landmark's box, as the protocol
demands, and uncropped, since publications differ in this; both are reported.

Ties are exact: items of equal similarity rank by their index in the gallery, first the database in
the order of its list, then the distractors, so a tie with a distractor favours the database. Ranks
are counted, so that they do not depend on a sorting algorithm.

Embeddings are kept in stores, whose fingerprints cover scales, longest side, whitening and crop: an
interrupted evaluation resumes. Distractors are read in blocks. An unreadable database image or
query ends the evaluation, because the ground truth refers to it; unreadable distractors are left
out and counted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from whiten import metrics
from whiten.datasets.collection import Item, Items
from whiten.datasets.ground_truth import GroundTruth
from whiten.datasets.revisited import (
    DISTRACTORS,
    RevisitedSet,
    distractor_list,
    read_distractors,
    read_set,
)
from whiten.embedding.embed import embed, store_folder
from whiten.embedding.encoder import Encoder
from whiten.errors import ConfigError, NoImagesError, StoreError
from whiten.evaluation.revisited_report import RevisitedReport, Setting
from whiten.media.boxes import Box
from whiten.media.reading import Skipped
from whiten.metrics import Figure
from whiten.models.multiscale import MULTI, SINGLE, see_own_size
from whiten.models.stored_model import require_network
from whiten.models.teacher import Teacher
from whiten.retrieval.blocks import BLOCK_ROWS
from whiten.store.store import Store
from whiten.utils.arrays import Vectors
from whiten.utils.files import temporary_folder
from whiten.utils.progress import progress
from whiten.views.own_size import LONGEST, render_own_size

BLOCK_BYTES = 64 << 20  # of distractors' embeddings in memory at once
CROPPED, WHOLE = "cropped", "uncropped"

Setups = dict[str, dict[str, Any]]
"""Result of `whiten.metrics.revisited`."""


def evaluate_revisited_set(
    encoder: Encoder,
    data: RevisitedSet,
    *,
    multi_scale: bool = False,
    distractors: Path | None = None,
    cache: Path | None = None,
    show_progress: bool = False,
) -> RevisitedReport:
    """Evaluate on revisited Oxford or Paris.

    Args:
        encoder: a single model that takes images of any size; its whitening is applied at each
            scale.
        data: the set, see `require_set`.
        multi_scale: average the embeddings at 1, 1/√2 and 1/2 of the size.
        distractors: folder of R1M, or a store of its embeddings that this function made.
        cache: folder that keeps embeddings between calls; none by default.

    Raises:
        ConfigError: an image that the ground truth refers to cannot be read.
        TeacherError: the model takes images of only one size.
        StoreError: the store of distractors was made with another model or other settings.
    """
    protocol = data.name
    if len(encoder.parts) > 1 or encoder.rotation is not None:
        raise ConfigError(f"{protocol} is measured for one model at a time: name one, not fuse:")
    part = encoder.parts[0]
    scales = MULTI if multi_scale else SINGLE
    model = see_own_size(require_network(part.teacher), scales=scales, whitener=part.whitener)
    # The readout records all that affects an embedding, so every store's fingerprint covers it.
    model = dataclasses.replace(model, readout=f"{model.readout};longest={LONGEST}")
    listed = None if distractors is None else _find_distractors(distractors, model)
    with temporary_folder() as temporary:
        embedder = _Embedder(model, cache or temporary, show_progress)
        boxes = dict(zip(data.truth.queries, data.truth.boxes, strict=True))
        queries = {
            CROPPED: embedder.gather(data.queries, f"{protocol}-queries-cropped", boxes),
            WHOLE: embedder.gather(data.queries, f"{protocol}-queries"),
        }
        gallery = embedder.gather(data.gallery, protocol)
        more: Iterable[Vectors] = ()
        skipped: list[Skipped] = []
        if listed is not None:
            if isinstance(listed, Store):
                more, skipped = blocks_of(listed), listed.skipped
            else:
                store = embedder.embed(listed, DISTRACTORS)
                more, skipped = blocks_of(store, listed), store.skipped_of(listed.by_id)
        settings = list(score_settings(queries, gallery, data.truth, more))
    return RevisitedReport(
        protocol=protocol,
        name=encoder.name,
        dim=model.dim,
        scales=scales,
        whitened=part.whitener is not None,
        queries=len(data.queries),
        database=len(data.gallery),
        settings=settings,
        skipped=skipped,
    )


def require_set(root: Path, protocol: str, distractors: Path | None = None) -> RevisitedSet:
    """Read a set whose images all exist, before hours of embedding.

    Args:
        root: folder that contains `roxford5k` or `rparis6k`, or that folder itself.
        protocol: roxford5k or rparis6k.
        distractors: see `evaluate_revisited_set`.

    Raises:
        ConfigError: the ground truth cannot be read, an image is missing, or the distractors are
            neither images nor a store.
    """
    data = read_set(root, protocol)
    for items in (data.queries, data.gallery):
        _require_files(items, protocol)
    if distractors is not None and distractor_list(distractors) is None:
        _open_store(distractors)
    return data


def _find_distractors(place: Path, model: Teacher) -> Items | Store:
    """Return the distractors to embed, or a store of their embeddings.

    Raises:
        ConfigError: the folder holds neither.
        StoreError: the store is of another model or readout.
    """
    file = distractor_list(place)
    if file is not None:
        return read_distractors(file)
    store = _open_store(place)
    if not model.made(store.origin.uri, store.origin.fingerprint):
        raise StoreError(
            f"{place} holds embeddings of another model, or of other scales, sizes or whitening "
            f"({store.origin.uri}): name the images, --cache keeps their store for the next "
            "time"
        )
    return store


def _open_store(place: Path) -> Store:
    try:
        return Store.open(place)
    except StoreError as error:
        raise ConfigError(
            f"{place} is neither the folder of {DISTRACTORS}.txt nor a store of embeddings "
            f"({str(error).rpartition(': ')[0]}): name one of them"
        ) from error


def _require_files(items: Items, protocol: str) -> None:
    absent = [item for item in items if not Path(item.path).is_file()]
    if absent:
        raise ConfigError(
            f"{len(absent)} of {len(items)} images of {protocol} are missing, first "
            f"{absent[0].path}: the ground truth counts on all of them, get them again"
        )


class _Embedder:
    """Embeds images at their own size, one store per collection."""

    def __init__(self, model: Teacher, folder: Path, show_progress: bool) -> None:
        self.whole = model
        self.cropped = dataclasses.replace(model, readout=f"{model.readout};cropped")
        self.folder = folder
        self.show_progress = show_progress

    def embed(self, items: Items, label: str, boxes: dict[str, Box] | None = None) -> Store:
        def render(data: bytes, item: Item) -> Any:
            return render_own_size(data, box=None if boxes is None else boxes[item.id])

        model = self.whole if boxes is None else self.cropped
        with progress(f"embed {label}", enabled=self.show_progress, unit="images") as update:
            folder = store_folder(self.folder / label, model)
            return embed(items, model, folder, progress=update, render=render)

    def gather(self, items: Items, label: str, boxes: dict[str, Box] | None = None) -> Vectors:
        """Return (len(items), d) embeddings in the order of the items.

        Raises:
            ConfigError: an image cannot be read.
        """
        try:
            store = self.embed(items, label, boxes)
        except NoImagesError as error:
            raise ConfigError(f"{label}: {error}") from error
        if skipped := store.skipped_of(items.by_id):
            raise ConfigError(
                f"{len(skipped)} of {len(items)} images of {label} cannot be used, first "
                f"{skipped[0].id!r}: {skipped[0].reason}; the ground truth counts on all of them, "
                "get them again"
            )
        return store.gather(items.ids.to_pylist())


def blocks_of(store: Store, items: Items | None = None) -> Iterator[Vectors]:
    """Yield a store's whole images in blocks of limited size, which may span shards.

    Args:
        items: images to yield; by default all.
    """
    rows = max(1, BLOCK_BYTES // (4 * store.dim))
    waiting: list[Vectors] = []
    for names, _, vectors in store.blocks(view=0):
        own = vectors if items is None else vectors[items.by_id.rows(names) >= 0]
        if waiting and sum(map(len, waiting)) + len(own) > rows:
            yield np.concatenate(waiting)
            waiting = []
        waiting.append(own)
    if waiting:
        yield np.concatenate(waiting)


def score_settings(
    queries: dict[str, Vectors],
    gallery: Vectors,
    truth: GroundTruth,
    distractors: Iterable[Vectors] = (),
) -> Iterator[Setting]:
    """Yield the metrics of each kind of queries, without distractors and, if any, with them.

    The distractors are read once for all kinds of queries.

    Args:
        queries: per kind, (q, d) float32, in the order of the ground truth.
        gallery: (n, d) float32, in the order of its images.
        distractors: blocks of (b, d) float32, positive for no query.
    """
    labelled, positives = metrics.revisited_labels(truth.lists, len(gallery))
    stacked = np.concatenate(list(queries.values()))
    parts = [slice(k * len(labelled), (k + 1) * len(labelled)) for k in range(len(queries))]
    similarity = stacked @ gallery.T
    counters = []
    for part in parts:
        own = similarity[part]
        scores = [own[query, places] for query, places in enumerate(labelled)]
        counters.append(metrics.RankCounter(labelled, scores, positives))
        for start in range(0, len(gallery), BLOCK_ROWS):
            block = own[:, start : start + BLOCK_ROWS]
            counters[-1].add(start, block)
    for kind, counter in zip(queries, counters, strict=True):
        yield _setting(kind, 0, metrics.revisited_scores([counter], truth.lists))
    count = 0
    for vectors in distractors:
        similarity = stacked @ vectors.T
        for part, counter in zip(parts, counters, strict=True):
            counter.add(len(gallery) + count, similarity[part])
        count += len(vectors)
    if count:
        for kind, counter in zip(queries, counters, strict=True):
            yield _setting(kind, count, metrics.revisited_scores([counter], truth.lists))


def _setting(kind: str, distractors: int, scores: Setups) -> Setting:
    known = {name: _known(setup["aps"]) for name, setup in scores.items()}
    return Setting(
        queries=kind,
        distractors=distractors,
        figures={name: Figure.of(aps) if len(aps) else None for name, aps in known.items()},
        precisions={
            name: dict(setup["mp_at"]) if len(known[name]) else {} for name, setup in scores.items()
        },
        counted={name: len(aps) for name, aps in known.items()},
    )


def _known(aps: Sequence[float | None]) -> np.ndarray:
    return np.array([ap for ap in aps if ap is not None], np.float64)
