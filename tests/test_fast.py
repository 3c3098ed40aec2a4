"""`make test-fast` leaves slow tests out, and still tests every package."""

from __future__ import annotations

import ast
from pathlib import Path

from house import HEIGHT, imports

TESTS = Path(__file__).parent


def has_fast_tests(tree: ast.Module) -> bool:
    """Whether a file has a test without the mark `slow`."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and "pytest.mark.slow" in ast.unparse(node.value):
            return False
    tests = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name.startswith("test_")]
    marks = [[ast.unparse(mark) for mark in test.decorator_list] for test in tests]
    return any("pytest.mark.slow" not in of_test for of_test in marks)


def test_every_package_has_fast_tests() -> None:
    trees = [ast.parse(path.read_text()) for path in TESTS.rglob("test_*.py")]
    used = {name for tree in trees if has_fast_tests(tree) for name in imports(tree)}
    packages = {name.split(".")[1] for name in used if name.startswith("whiten.")}
    assert set(HEIGHT) - packages == {"_version"}  # a number
