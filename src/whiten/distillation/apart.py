"""Set the images of held-out sources apart, so that nothing of a run is fitted on them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa

from whiten.datasets.collection import Item, Items
from whiten.datasets.sources import read_sources, without_sources
from whiten.datasets.transfer import with_transfer_set
from whiten.errors import ConfigError, ImageError, counted
from whiten.media.reading import read_bytes
from whiten.retrieval.held_out import FEWEST_GROUPS, FEWEST_IMAGES, Flags
from whiten.runs.spec import DistillSpec
from whiten.utils.hashing import content_hash
from whiten.utils.threads import ordered_map

_AHEAD = 64


def split_sources(images: str, items: Items, spec: DistillSpec) -> tuple[Items, Items]:
    """Set the held-out sources apart, and add the transfer set to the others.

    Args:
        images: the folder or table of the items.

    Returns:
        The images to train on, those of the transfer set included, and those of the held-out
        sources.

    Raises:
        ConfigError: a source is unknown, no image is left to train on, or the held-out ones are too
            few to test on.
    """
    names, column = spec.holdout_source, spec.source_column
    if not names:
        added = with_transfer_set(items, spec.unlabelled, None, spec.exclude, spec.include)
        return added, items[:0]
    is_unseen = read_sources(images, items, column).are_of(names)
    if is_unseen.all():
        raise ConfigError(
            "holdout_source names every source, which leaves no image to train on: hold out fewer"
        )
    unseen = items.take(is_unseen)
    sizes = Counter(group for group in unseen.groups.to_pylist() if group is not None)
    pairs = sum(size > 1 for size in sizes.values())
    if len(unseen) < FEWEST_IMAGES and pairs < FEWEST_GROUPS:
        raise ConfigError(
            f"{counted(len(unseen), 'image')} of {', '.join(names)}: too few to test on, hold out "
            f"sources with at least {FEWEST_IMAGES} images, or {FEWEST_GROUPS} groups of 2"
        )

    def without(source: str, found: Items) -> Items:
        return without_sources(source, found, column, names)

    seen = items.take(~is_unseen)
    return with_transfer_set(seen, spec.unlabelled, without, spec.exclude, spec.include), unseen


def copies_of(unseen: Items, contents: pa.Array) -> Flags:
    """(n,) which of the images to train on are copies of unseen ones.

    Args:
        contents: (n,) content hash of each image to train on.

    Raises:
        ConfigError: all are.
    """
    if not len(unseen):
        return np.zeros(len(contents), bool)
    hashes = {name for name in ordered_map(_hash, unseen, workers=None, ahead=_AHEAD) if name}
    is_copy = np.array([name in hashes for name in contents.to_pylist()])
    if is_copy.all():
        raise ConfigError(
            "all other images are copies of those of holdout_source, which leaves none to train on"
        )
    return is_copy


def _hash(item: Item) -> str | None:
    try:
        return content_hash(read_bytes(item.path))
    except ImageError:
        return None


def describe_split(spec: DistillSpec, unseen: int, copies: int) -> str:
    """Say what is held out, for the model card."""
    images = counted(unseen, "image")
    text = f"{', '.join(spec.holdout_source)} (column {spec.source_column}, {images})"
    return text + (f"; {counted(copies, 'copy')} of these in other sources" if copies else "")
