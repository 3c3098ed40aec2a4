"""Fill the effects on docs/differences.md.

    python benchmarks/differences_page.py

Reads what `differences.py --json benchmarks/recipes/differences.json` wrote. An effect stands
between `<!-- m: NAME -->` and `<!-- /m -->`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "differences.md"
RESULTS = ROOT / "benchmarks" / "recipes" / "differences.json"


def effects(found: Mapping[str, Any]) -> dict[str, str]:
    """By the name that each has on the page: the published way → the default."""
    students, whitening = found["students"], found["whitening"]
    shown, order, cut_off = found["normalisation"], found["order"], found["cut-off"]

    def trained(published: str, default: str) -> str:
        return f"{_seeds(students[published])} → {_seeds(students[default])}"

    def fused(published: str, default: str = "whole images") -> str:
        return _arrow(whitening[published], whitening[default])

    return {
        "chosen-views": trained("views", "views, whitening chosen"),
        "chosen-groups": trained("groups", "groups, whitening chosen"),
        "start": trained("views, random start", "views"),
        "optimiser": trained("views, published optimiser", "views"),
        "maxrand": trained("views, maxrand drawn twice", "views, maxrand"),
        "one-pair": trained("groups, one pair", "groups"),
        "views-groups": trained("groups, published views", "groups"),
        "all-groups": trained("groups, all published", "groups, whitening chosen"),
        "null": fused("few images, null directions kept", "few images, null directions left out"),
        "few": fused("few images, null directions kept", "few images, chosen"),
        "crops": fused("random crops"),
        "zeros": fused("with 7 rows of zeros"),
        "normalisation": _arrow(shown["not normalised"], shown["normalised"]),
        "order": "; ".join(
            f"{order[f'queries that change, {kind}']:,} of 1,912 {what}"
            for kind, what in (
                ("exact", "as they are"),
                ("one byte", "with similarities of two decimals, which tie"),
            )
        ),
        "cut-off": "mean AP "
        + _arrow(cut_off["by positives retrieved"], cut_off["by positives that exist"])
        + f", of the whole ranking {100 * cut_off['whole ranking']:.1f}",
    }


def _arrow(published: float, default: float) -> str:
    return f"{100 * published:.1f} → {100 * default:.1f}"


def _seeds(student: Mapping[str, Any]) -> str:
    low, high = min(student["seeds"]), max(student["seeds"])
    return f"{100 * student['map']:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def fill(page: str, texts: Mapping[str, str]) -> str:
    """The page with every effect made anew.

    Raises:
        ValueError: an effect and its place do not meet.
    """
    places = re.findall(r"<!-- m: ([\w-]+) -->", page)
    if sorted(places) != sorted(texts):
        raise ValueError(f"places and effects differ: {sorted(set(places) ^ set(texts))}")
    return re.sub(
        r"<!-- m: ([\w-]+) -->.*?<!-- /m -->",
        lambda match: f"<!-- m: {match[1]} -->{texts[match[1]]}<!-- /m -->",
        page,
    )


def main() -> None:
    found = json.loads(RESULTS.read_text())
    PAGE.write_text(fill(PAGE.read_text(), effects(found)))


if __name__ == "__main__":
    main()
