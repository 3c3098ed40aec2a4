"""Imports only point down the floors: a module may use what stands above it in this list."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "whiten"

FLOORS = [
    "allocator",
    "mapped",
    "atomic",
    "errors",
    "view_plan",
    "spec",
    "progress",
    "devices",
    "media",
    "shards",
    "store",
    "stored_rows",
    "affine",
    "moments",
    "eigen",
    "sealed",
    "whitening",
    "sklearn",
    "choosing",
    "fusion",
    "losses",
    "recipes",
    "objective",
    "set_similarity",
    "pair_similarity",
    "near_duplicates",
    "metrics",
    "reranking",
    "views",
    "views_torch",
    "own_size",
    "teachers",
    "inputs",
    "exported",
    "multiscale",
    "student",
    "student_module",
    "card",
    "published",
    "pairs",
    "upkeep",
    "embed",
    "run_folder",
    "targets",
    "training_set",
    "prepare",
    "training",
    "distill",
    "encoder",
    "opening",
    "protocols",
    "evaluate",
    "export",
    "evaluate_videos",
    "revisited_report",
    "evaluate_revisited",
    "datasets",
    "index",
    "questions",
    "searching",
    "hits_page",
    "serve",
    "plot_style",
    "grids",
    "plots",
    "report_page",
    "report",
    "video_plots",
    "video_report",
    "dedup",
    "compact",
    "benchmark",
    "run_report",
    "doctor",
    "demo",
    "config_file",
    "terminal",
    "cli",
]


def floor(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imported(path: Path) -> set[str]:
    """Floors that a file imports from, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {floor(name.name) for name in node.names if name.name.startswith("whiten.")}
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "whiten":
                found |= {name.name for name in node.names if name.name in FLOORS}
            elif node.module.startswith("whiten."):
                found.add(floor(node.module))
    return found


FILES = sorted(p for p in SOURCE.rglob("*.py") if p != SOURCE / "__init__.py")


def own_floor(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def test_every_module_has_a_floor() -> None:
    assert {own_floor(path) for path in FILES} == set(FLOORS)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_down(path: Path) -> None:
    height = FLOORS.index(own_floor(path))
    above = {name for name in imported(path) if FLOORS.index(name) > height}
    assert not above, f"{path.name} imports from higher floors: {sorted(above)}"
