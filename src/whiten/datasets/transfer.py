"""A transfer set: other images that a distillation learns from, in addition to the user's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from whiten.datasets.collection import Item, Items
from whiten.datasets.finding import find_items
from whiten.datasets.patterns import Patterns
from whiten.utils.hashing import fingerprint
from whiten.utils.urls import as_path

_PREFIX = "unlabelled:"


def with_transfer_set(
    items: Items,
    sources: Sequence[str],
    without: Callable[[str, Items], Items] | None = None,
    exclude: Patterns = (),
    include: Patterns = (),
) -> Items:
    """Add the images of other folders or tables, without their groups, after the items.

    Their ids begin with their source, so that they never meet those of the items or of each other.

    Args:
        without: called with a source and its images; returns those to keep.

    Raises:
        NoImagesError: a source holds no image.
    """
    if not sources:
        return items

    def rows() -> Iterator[Item]:
        yield from items
        for source in dict.fromkeys(str(as_path(source).resolve()) for source in sources):
            found = find_items(source, None, exclude, include)
            for item in found if without is None else without(source, found):
                yield Item(f"{_PREFIX}{fingerprint(source)[:8]}/{item.id}", item.path)

    return Items.of(rows())


def is_own(items: Items) -> npt.NDArray[np.bool_]:
    """(n,) whether an image is one of the user's own, not of a transfer set."""
    flags: npt.NDArray[np.bool_] = ~pc.starts_with(items.ids, _PREFIX).to_numpy(
        zero_copy_only=False
    )
    return flags


def repeats_own(items: Items, contents: pa.Array) -> npt.NDArray[np.bool_]:
    """(n,) whether an image of a transfer set is a copy of one of the user's own.

    Args:
        contents: (n,) content hash of each image.
    """
    own = is_own(items)
    known = pc.is_in(contents, value_set=contents.filter(pa.array(own)))
    flags: npt.NDArray[np.bool_] = ~own & known.to_numpy(zero_copy_only=False)
    return flags
