"""The rule of the house: a package imports only from packages on the lines above its own."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from house import HEIGHT, ROOT, SOURCE, arrows, draw, files, home, imports, reduced

WITHOUT_TORCH = ("utils", "storage", "media", "datasets", "store", "retrieval", "index")

FILES = files(SOURCE)


def imports_at_once(path: Path) -> set[str]:
    """Top-level names of what is imported as soon as the module is."""
    waiting: list[ast.stmt] = list(ast.parse(path.read_text()).body)
    found: set[str] = set()
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            found |= {name.split(".")[0] for name in imports(node)}
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            waiting += [part for part in ast.iter_child_nodes(node) if isinstance(part, ast.stmt)]
    return found


def test_every_package_is_in_the_rule() -> None:
    assert {home(path, SOURCE) for path in FILES} == set(HEIGHT)


def test_few_files_stand_outside_of_packages() -> None:
    assert len(list(SOURCE.glob("*.py"))) <= 8


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_to_lines_above(path: Path) -> None:
    own = home(path, SOURCE)
    for name in imports(ast.parse(path.read_text())):
        top, _, rest = name.partition(".")
        if top != "whiten":
            continue
        other = rest.split(".")[0]
        assert other in HEIGHT or own == "cli", f"{name}: only cli imports the front"
        assert other in (own, "") or HEIGHT[other] < HEIGHT[own], (
            f"{own} imports {name}, which is not on a line above it"
        )


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_heavy_imports_stay_where_they_belong(path: Path) -> None:
    if home(path, SOURCE) in WITHOUT_TORCH:
        assert not imports_at_once(path) & {"torch", "torchvision", "timm"}
    used = {name.split(".")[0] for name in imports(ast.parse(path.read_text()))}
    assert "matplotlib" not in used or home(path, SOURCE) == "report"


def test_a_package_says_what_it_is_for() -> None:
    for path in SOURCE.rglob("__init__.py"):
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        assert 2 <= len(text.splitlines()) <= 5, path


def test_the_reduction_keeps_every_way() -> None:
    assert reduced({("a", "b"), ("b", "c"), ("a", "c"), ("a", "d")}) == {
        ("a", "b"),
        ("b", "c"),
        ("a", "d"),
    }


def test_the_picture_shows_the_imports_of_today() -> None:
    picture = (ROOT / "docs" / "architecture.svg").read_text()
    assert picture == draw(arrows(SOURCE)), "run: make architecture"


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_a_page_names_files_that_exist(page: str) -> None:
    named = re.findall(r"`([a-z_]+/[a-z_/]+\.py)`", (ROOT / page).read_text())
    assert len(named) > 10
    assert [
        name for name in named if not ((SOURCE / name).is_file() or (ROOT / name).is_file())
    ] == []
