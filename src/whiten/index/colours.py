"""Which images of an index were embedded before colour profiles were converted to sRGB."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from whiten.datasets.collection import Items
from whiten.errors import counted
from whiten.index.rows import Facts
from whiten.media.decoding import has_foreign_colours
from whiten.utils.threads import ordered_map

_log = logging.getLogger(__name__)


def converted(sources: Sequence[str], number: int, before: Facts | None) -> list[str]:
    """Return `Facts.converted` once one of the sources is indexed."""
    own = sources[number] if sources else ""
    return sorted({own, *(() if before is None else before.converted)})


def ignored_profiles(facts: Facts) -> bool:
    """Return whether an index may hold images whose colour profile was ignored."""
    return bool(set(facts.sources or [""]) - set(facts.converted))


def have_profiles(
    items: Items, are_same: npt.NDArray[np.bool_], place: str
) -> npt.NDArray[np.bool_]:
    """(n,) which of the unchanged images have a profile that was ignored; logs how many."""
    rows = np.flatnonzero(are_same)
    found = np.zeros(len(items), bool)
    paths = (item.path for item in items.take(rows))
    found[rows] = list(ordered_map(has_foreign_colours, paths))
    if count := int(found.sum()):
        _log.warning(
            "%s: the colour profiles of %s were ignored so far: embedded again in sRGB",
            place,
            counted(count, "image"),
        )
    return found
