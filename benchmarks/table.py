"""Fill the tables of docs/benchmarks.md from benchmarks/results/*.json.

    python benchmarks/table.py

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; NAME.json fills it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"
RESULTS = ROOT / "benchmarks" / "results"
MISSING = "*Not measured yet.*"


def fill(page: str, results: Mapping[str, Any]) -> str:
    """The page with every table made anew.

    Raises:
        ValueError: a result has no place on the page.
    """
    names = re.findall(r"<!-- table: (\w+) -->", page)
    if lost := sorted(set(results) - set(names)):
        raise ValueError(f"no table on the page for {', '.join(lost)}: add <!-- table: NAME -->")

    def replace(match: re.Match[str]) -> str:
        name = match[1]
        text = render(results[name]) if name in results else MISSING
        return f"<!-- table: {name} -->\n{text}\n<!-- end -->"

    return re.sub(r"<!-- table: (\w+) -->\n.*?<!-- end -->", replace, page, flags=re.DOTALL)


def render(result: Mapping[str, Any]) -> str:
    lines = memory_table(result) if "growth" in result else comparison_tables(result)
    return "\n".join(lines)


def comparison_tables(result: Mapping[str, Any]) -> Iterator[str]:
    machine = result["machine"]
    yield f"{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}."
    for comparison in result["comparisons"]:
        yield from ("", f"**{comparison['setting']}**", "")
        known = ("setting", "ours", "rounds", "rivals", "targets", "targets_met")
        facts = {key: fact for key, fact in comparison.items() if key not in known}
        # What is known of each rival is a column.
        columns = {
            key: fact
            for key, fact in facts.items()
            if isinstance(fact, dict) and fact.keys() <= comparison["rivals"].keys()
        }
        heads = ["way", "median", "time / ours", "aim", *map(in_words, columns)]
        yield f"| {' | '.join(heads)} |"
        yield "|---" + "|---:" * (len(heads) - 1) + "|"
        for name, row in comparison["rivals"].items():
            aim = comparison["targets"].get(name)
            cells = [
                f"**{name}**" if name == comparison["ours"] else name,
                duration(row["median_s"]),
                f"{row['ratio_to_ours']:.3g}×",
                "" if aim is None else f"≥ {aim:g}×",
                *(number(column[name]) if name in column else "" for column in columns.values()),
            ]
            yield f"| {' | '.join(cells)} |"
        rest = [f"{in_words(key)} {number(f)}" for key, f in facts.items() if key not in columns]
        if rest:
            yield from ("", "; ".join(rest) + ".")


def memory_table(result: Mapping[str, Any]) -> Iterator[str]:
    rows = {(row["stage"], row["dim"], row["n"]): row["peak_mb"] for row in result["rows"]}
    stages = list(dict.fromkeys(stage for stage, _, _ in rows))
    columns = list(dict.fromkeys((dim, n) for _, dim, n in rows))
    heads = [f"{n:,}, D={dim}" for dim, n in columns]
    yield f"| peak, MB | {' | '.join(heads)} | bytes an image | and dimension |"
    yield "|---" + "|---:" * (len(columns) + 2) + "|"
    for stage in stages:
        cells = [f"{rows[stage, dim, n]:.0f}" for dim, n in columns]
        growth = result["growth"][stage]
        per_image, per_dimension = growth["bytes_an_image"], growth["bytes_a_dimension"]
        yield f"| {stage} | {' | '.join(cells)} | {per_image:.0f} | {per_dimension:.2f} |"


def duration(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def in_words(name: str) -> str:
    return name.replace("_", " ")


def number(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{name} {number(one)}" for name, one in value.items())
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def read_results(folder: Path) -> dict[str, Any]:
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def main() -> None:
    PAGE.write_text(fill(PAGE.read_text(), read_results(RESULTS)))


if __name__ == "__main__":
    main()
