"""The house: which packages `src/whiten` has, in which order they may import, and the imports.

python tools/house.py                     count the arrows
python tools/house.py --draw FILE.svg     draw the picture of docs/architecture.md
python tools/house.py --source DIR        count in another checkout's src/whiten
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterator
from html import escape
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "whiten"

# A package imports only from packages on the lines above its own.
FLOORS = (
    ("errors", "_version"),
    ("utils",),
    ("storage",),
    ("media", "retrieval", "whitening"),
    ("metrics", "sklearn", "datasets", "views", "report"),
    ("store",),
    ("models",),
    ("runs",),
    ("embedding",),
    ("index", "evaluation", "distillation"),
    ("dedup", "compact", "export"),
    ("serve", "demo", "diagnosis"),
    ("cli",),
)
HEIGHT = {name: row for row, names in enumerate(FLOORS) for name in names}

Arrows = set[tuple[str, str]]


def files(source: Path) -> list[Path]:
    """All modules but the front, `whiten/__init__.py`, and what `python -m whiten` starts."""
    front = {source / "__init__.py", source / "__main__.py"}
    return sorted(path for path in source.rglob("*.py") if path not in front)


def home(path: Path, source: Path) -> str:
    """The package of a file; of a file directly in `source` its own name."""
    return path.relative_to(source).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names of all that is imported below this node, in functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level and node.module, "imports name their module in full"
            # `from whiten import metrics` imports a module, not the front.
            yield from (f"{node.module}.{name.name}" for name in node.names)


def arrows(source: Path) -> Arrows:
    """Pairs of packages of which the first imports the second."""
    paths = files(source)
    known = {home(path, source) for path in paths}
    found: Arrows = set()
    for path in paths:
        own = home(path, source)
        for name in imports(ast.parse(path.read_text())):
            top, _, rest = name.partition(".")
            other = rest.split(".")[0]
            if top == "whiten" and other in known and other != own:
                found.add((own, other))
    return found


def reduced(found: Arrows) -> Arrows:
    """The arrows that no longer way replaces (transitive reduction; there must be no circle)."""
    below: dict[str, set[str]] = {}
    for start, end in found:
        below.setdefault(start, set()).add(end)

    def reaches(start: str, end: str, seen: set[str]) -> bool:
        for step in below.get(start, ()):
            if step == end:
                return True
            if step not in seen:
                seen.add(step)
                if reaches(step, end, seen):
                    return True
        return False

    return {
        (start, end)
        for start, end in found
        if not any(reaches(step, end, set()) for step in below[start] if step != end)
    }


WIDTH, ROW, BOX, GAP = 880, 74, 34, 22
STYLE = """
text { font: 14px system-ui, "Segoe UI", Roboto, sans-serif; fill: #1f2430; text-anchor: middle; }
rect { fill: #fff; stroke: #0072b2; stroke-width: 1.4; }
path { fill: none; stroke: #8a94a6; stroke-width: 1.3; marker-end: url(#end); }
"""


def draw(found: Arrows) -> str:
    """An SVG: a row per line of the rule, an arrow per import that no longer way replaces."""
    place: dict[str, tuple[float, float, float]] = {}  # centre, top, width
    for row, names in enumerate(FLOORS):
        widths = [9.0 * len(name) + 26 for name in names]
        # Rows are shifted in turn, so that arrows past a row find a gap.
        left = (WIDTH - sum(widths) - 4 * GAP * (len(names) - 1)) / 2 + (-1) ** row * 26
        for name, width in zip(names, widths, strict=True):
            place[name] = (left + width / 2, 20 + row * ROW, width)
            left += width + 4 * GAP
    shapes = []
    for start, end in sorted(reduced(found)):
        x, y, _ = place[start]
        to_x, to_y, _ = place[end]
        to_y += BOX
        bend = (y - to_y) / 2
        shapes.append(
            f'<path d="M{x:.0f} {y:.0f} C{x:.0f} {y - bend:.0f} {to_x:.0f} {to_y + bend:.0f} '
            f'{to_x:.0f} {to_y + 3:.0f}"/>'
        )
    for name, (x, y, width) in place.items():
        shapes.append(
            f'<rect x="{x - width / 2:.0f}" y="{y}" width="{width:.0f}" height="{BOX}" rx="7"/>'
            f'<text x="{x:.0f}" y="{y + 22}">{escape(name)}</text>'
        )
    height = 20 + ROW * len(FLOORS)
    arrow = (
        '<marker id="end" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0 0 L8 4 L0 8 z" style="fill:#8a94a6;stroke:none"/></marker>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'role="img" aria-label="Packages of whiten and their imports">\n'
        f"<style>{STYLE}</style><defs>{arrow}</defs>\n"
        f'<rect x="0" y="0" width="{WIDTH}" height="{height}" style="stroke:none"/>\n'
        + "\n".join(shapes)
        + "\n</svg>\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", type=Path, default=SOURCE)
    parser.add_argument("--draw", type=Path)
    options = parser.parse_args()
    found = arrows(options.source)
    names = {home(path, options.source) for path in files(options.source)}
    kept = len(reduced(found))
    print(f"{len(names)} packages and modules, {len(found)} arrows, {kept} after reduction")
    if options.draw:
        options.draw.write_text(draw(found))


if __name__ == "__main__":
    main()
