"""Fill the pages of benchmarks and studies with what was measured.

    python tools/pages.py

The text of a result is between `<!-- fill: NAME -->` and `<!-- end -->`, on its own lines if a line
ends after the first marker.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
sys.path += [str(ROOT / "benchmarks"), str(ROOT / "studies")]

import table  # noqa: E402
import tables  # noqa: E402

import plan_scale  # noqa: E402


def fill(page: str, texts: Mapping[str, str]) -> str:
    """Replace each marked text on a page.

    Raises:
        ValueError: the names on the page are not those of the texts.
    """
    names = re.findall(r"<!-- fill: ([\w-]+) -->", page)
    if sorted(names) != sorted(texts):
        raise ValueError(
            f"markers and texts differ: {', '.join(sorted(set(names) ^ set(texts)))}; add "
            "<!-- fill: NAME --><!-- end --> to the page, or the missing result"
        )
    return re.sub(
        r"<!-- fill: ([\w-]+) -->(\n?).*?<!-- end -->",
        lambda match: f"<!-- fill: {match[1]} -->{match[2]}{texts[match[1]]}{match[2]}<!-- end -->",
        page,
        flags=re.DOTALL,
    )


def texts() -> Iterator[tuple[Path, dict[str, str]]]:
    """Each page and its texts by name."""
    measured = table.read_results()
    yield DOCS / "scale.md", plan_scale.texts(measured)
    yield DOCS / "benchmarks.md", {name: table.render(found) for name, found in measured.items()}
    studies = tables.read_results()
    yield DOCS / "comparison.md", tables.recipe_tables(studies)
    yield DOCS / "differences.md", tables.effects(studies["differences"])


def main() -> None:
    for page, found in texts():
        page.write_text(fill(page.read_text(), found))
    quality = tables.read_results()["quality"]
    (DOCS / "recipes.png").write_bytes(tables.draw_test(quality["rows"], quality["starts"]))


if __name__ == "__main__":
    main()
