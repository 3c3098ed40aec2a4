"""Count the test images that a student was trained on, or on near-duplicates of them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from whiten.datasets.collection import Items
from whiten.datasets.finding import find_items
from whiten.datasets.transfer import with_transfer_set
from whiten.embedding.encoder import Encoder
from whiten.embedding.rows import embed_rows
from whiten.errors import ImageError, WhitenError
from whiten.media.pixels import Pictures
from whiten.media.reading import read_bytes, stamp_of
from whiten.report.overlap import Overlap
from whiten.retrieval.exact import exact_search
from whiten.runs.apart import Apart
from whiten.runs.folder import RunFolder
from whiten.utils.arrays import Vectors
from whiten.utils.hashing import content_hash

MOST = 20_000  # training images among which near-duplicates are looked for
_LOOKED_AT = 5  # most similar training images per test image, whose pixels are compared


def find_overlap(
    encoder: Encoder,
    test: Items,
    vectors: Vectors,
    training: Items,
    *,
    cache: Path | None = None,
    show_progress: bool = False,
) -> Overlap:
    """Compare test images with training images: files by their bytes, the others by their pixels.

    Args:
        encoder: proposes the training images that a test image is compared with.
        vectors: (n, dim) its embeddings of the test images.
        cache: folder that keeps the embeddings of the training images; none by default.
    """
    is_equal = _equal(test, training)
    near: int | None = 0
    if len(training) > MOST:
        near = None
    elif not is_equal.all():
        known, gallery, _ = embed_rows(encoder, training, cache=cache, show_progress=show_progress)
        near = _near(test.take(~is_equal), vectors[~is_equal], known, gallery)
    return Overlap(len(test), int(is_equal.sum()), near)


def run_of(model: str) -> RunFolder | None:
    """Return the run that made the student behind a URI; None if that is not known.

    Args:
        model: folder of a student in its run's folder, also as `whiten:FOLDER`.
    """
    folder = Path(model.removeprefix("whiten:"))
    run = RunFolder(folder.parent)
    return run if folder.name == run.student.name and run.config.is_file() else None


def training_images(run: RunFolder) -> Items | None:
    """Find the images that a run's student learned from; None if they have been moved."""
    try:
        images, spec = run.read_config()
        own = find_items(images, None, spec.exclude, spec.include)
        if spec.holdout_source:
            own = Apart.read(run).not_in(own)
        return with_transfer_set(own, spec.unlabelled, None, spec.exclude, spec.include)
    except WhitenError:
        return None


def run_overlap(
    run: RunFolder, student: Encoder, test: Items, vectors: Vectors, *, show_progress: bool
) -> Overlap | None:
    """Count the test images that a run's student knows from training.

    Returns:
        None if the training images cannot be read where they were.
    """
    training = training_images(run)
    if training is None:
        return None
    # Kept with the other embeddings of the run, so that they are computed once.
    cache = run.embeddings if os.access(run.embeddings, os.W_OK) else None
    try:
        return find_overlap(
            student, test, vectors, training, cache=cache, show_progress=show_progress
        )
    except WhitenError:  # none can be read, or the cache is damaged: no reason to fail
        return None


def describe_overlap(overlap: Overlap | None) -> str:
    if overlap is None:
        return "The training images are not where they were, so test images may be among them."
    return overlap.line()


def _equal(test: Items, training: Items) -> np.ndarray:
    """(n,) whether the file of a test image has the bytes of a training image."""
    sizes = [_size(path) for path in training.paths.to_pylist()]
    wanted = {_size(path) for path in test.paths.to_pylist()} & set(sizes) - {None}
    some = [p for p, s in zip(training.paths.to_pylist(), sizes, strict=True) if s in wanted]
    known = {_digest(path) for path in some} - {None}
    found = [_size(path) in wanted and _digest(path) in known for path in test.paths.to_pylist()]
    return np.array(found, bool)


def _size(path: bytes) -> int | None:
    stamp = stamp_of(os.fsdecode(path))
    return None if stamp is None else stamp.size


def _digest(path: bytes) -> str | None:
    try:
        return content_hash(read_bytes(os.fsdecode(path)))
    except ImageError:
        return None


def _near(test: Items, vectors: Vectors, known: Items, gallery: Vectors) -> int:
    """Count the test images of which a similar training image shows the same picture."""
    pictures, found = Pictures(), 0
    nearest = exact_search(vectors, gallery, min(_LOOKED_AT, len(known)))
    for item, (rows, _) in zip(test, nearest, strict=True):
        found += any(pictures.same(item.path, known[int(row)].path) for row in rows)
    return found
