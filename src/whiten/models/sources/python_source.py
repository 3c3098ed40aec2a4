"""Hash the source of a factory: its module, and the modules next to it that it imports."""

from __future__ import annotations

import ast
import hashlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

_INSTALLED = {Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib")}


def hash_sources(files: list[Path], root: Path) -> str:
    """Hash files by name below `root` and content; the same wherever `root` is."""
    digest = hashlib.blake2b(digest_size=16)
    for path in files:
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()}|{len(content)}|".encode())
        digest.update(content)
    return digest.hexdigest()


def find_sources(module: ModuleType) -> tuple[list[Path], Path]:
    """Return the files that a module consists of, sorted, and the folder that it is imported from.

    These are its own file and, read from the import statements, those of modules in the same
    folder or package. Of an installed package, these are its own modules; other installed packages
    are not followed. Both are empty if the module has no file.
    """
    if not getattr(module, "__file__", None):
        return [], Path()
    start = Path(str(module.__file__)).resolve()
    levels = module.__name__.count(".") + (start.stem == "__init__")
    root = start.parents[levels] if levels < len(start.parents) else start.parent
    package = module.__name__.partition(".")[0] if root in _INSTALLED else ""
    found = set(_packages(start, root))
    todo = list(found | {start})
    found.add(start)
    while todo:
        for path in _imported(todo.pop(), root, package):
            if path not in found:
                found.add(path)
                todo.append(path)
    return sorted(found), root


def _packages(path: Path, root: Path) -> Iterator[Path]:
    """Yield the `__init__` of every package around a file: importing it runs them."""
    for folder in path.parents:
        if folder == root:
            return
        if (folder / "__init__.py").is_file():
            yield folder / "__init__.py"


def _imported(path: Path, root: Path, package: str) -> Iterator[Path]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # a compiled module imports what nobody can see
        return
    here = path.parent.relative_to(root).parts
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _files(tuple(alias.name.split(".")), root, package)
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else ()
            name = (*base, *(node.module.split(".") if node.module else ()))
            yield from _files(name, root, package)
            for alias in node.names:  # each may be a module of the package
                yield from _files((*name, alias.name), root, package)


def _files(name: tuple[str, ...], root: Path, package: str) -> Iterator[Path]:
    """Yield the files of `a.b.c` below root: of a, a.b and a.b.c, as far as they exist."""
    if package and name[:1] != (package,):
        return
    for length in range(1, len(name) + 1):
        place = root.joinpath(*name[:length])
        for path in (place / "__init__.py", place.with_name(f"{place.name}.py")):
            if path.is_file():
                yield path.resolve()
