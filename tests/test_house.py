"""The rule of the house: a package imports only from packages on the lines above its own."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "whiten"

FLOORS = """
errors _version
utils
media retrieval whitening
metrics sklearn datasets views report
store
models
runs
embedding
index evaluation distillation
dedup compact export
serve demo
cli
"""
HEIGHT = {name: row for row, line in enumerate(FLOORS.split("\n")) for name in line.split()}

WITHOUT_TORCH = ("utils", "media", "datasets", "store", "retrieval", "index")

FILES = sorted(path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py")


def home(path: Path) -> str:
    """The package of a file; of a file directly in `src/whiten` its own name."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names of all modules imported below this node, in functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level and node.module, "imports name their module in full"
            # `from whiten import metrics` imports a module, not the front.
            yield from (f"{node.module}.{name.name}" for name in node.names)


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
            waiting += [
                child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)
            ]
    return found


def test_every_package_has_a_floor() -> None:
    assert {home(path) for path in FILES} == set(HEIGHT)


def test_few_files_stand_outside_of_packages() -> None:
    assert len(list(SOURCE.glob("*.py"))) <= 8


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_up_the_list(path: Path) -> None:
    own = home(path)
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
    if home(path) in WITHOUT_TORCH:
        assert not imports_at_once(path) & {"torch", "torchvision", "timm"}
    used = {name.split(".")[0] for name in imports(ast.parse(path.read_text()))}
    assert "matplotlib" not in used or home(path) == "report"


def test_a_package_says_what_it_is_for() -> None:
    for path in SOURCE.rglob("__init__.py"):
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        assert 2 <= len(text.splitlines()) <= 5, path
