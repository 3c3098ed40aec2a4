"""Tables of docs/benchmarks.md, made of benchmarks/results/*.json; `tools/pages.py` writes them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


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


def read_results() -> dict[str, Any]:
    return {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}
