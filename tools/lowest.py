"""Print the lowest versions that pyproject.toml admits, as constraints for pip.

    python tools/lowest.py > constraints.txt

Of several bounds for one package the highest counts. Requirements without a lower bound, and those
that name extras of this project, are left out.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"


def constraints(pyproject: str) -> Iterator[str]:
    """`name==version` per package with a lower bound, in the order of the file."""
    bounds: dict[str, str] = {}
    project = tomllib.loads(pyproject)["project"]
    extras = project["optional-dependencies"].values()
    for requirement in [*project["dependencies"], *(each for extra in extras for each in extra)]:
        if found := re.match(r"([\w.-]+)(?:\[[\w,]+\])?>=([\w.]+)", requirement):
            bounds[found[1]] = max(bounds.get(found[1], ""), found[2], key=_numbers)
    return (f"{name}=={version}" for name, version in bounds.items())


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


if __name__ == "__main__":
    print(*constraints(PYPROJECT.read_text()), sep="\n")
