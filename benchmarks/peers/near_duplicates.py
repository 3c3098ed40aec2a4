"""Near-duplicates by whiten and by others, on the same 1,800 images.

    python benchmarks/peers/near_duplicates.py --photos FOLDER… --out near_duplicates.json

300 photos and five edits of each, so 4,500 pairs. Rivals run at their defaults, each in an
environment of its own below --work; whiten chooses its threshold by itself (--target-precision
0.99). Pairs within a group count. Seconds are those of the whole process, models loaded.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

from environments import Environment, UnavailableError, make

from copies import Pairs, score, write_copies

HERE = Path(__file__).parent
LIMIT_S = 3600
# tool -> (packages, interpreter, script, further arguments)
RIVALS: dict[str, tuple[list[str], str | None, str, list[str]]] = {
    "immaculate, pdq": (["immaculate[sscd]"], "python3.12", "immaculate", ["pdq"]),
    "immaculate, SSCD distilled": (
        ["immaculate[sscd]"],
        "python3.12",
        "immaculate",
        ["sscd_distilled"],
    ),
    "immaculate, SSCD": (["immaculate[sscd]"], "python3.12", "immaculate", ["sscd"]),
    "imagededup, PHash": (["imagededup"], None, "imagededup", ["PHash"]),
    "imagededup, CNN": (["imagededup"], None, "imagededup", ["CNN"]),
    "CleanVision": (["cleanvision"], None, "cleanvision", []),
    "imagehash, phash": (["imagehash"], None, "imagehash", []),
}


def pairs_of(printed: str) -> Pairs:
    """Read groups or pairs of paths from the last line that a run prints."""
    found = json.loads(printed.strip().splitlines()[-1])
    groups = [[Path(path).name for path in group] for group in found.get("groups", [])]
    pairs = [[Path(path).name for path in pair] for pair in found.get("pairs", [])]
    return {tuple(sorted(pair)) for group in [*groups, *pairs] for pair in combinations(group, 2)}  # type: ignore[misc]


def by_whiten(model: str, folder: Path, cache: Path, further: list[str]) -> tuple[Pairs, Any]:
    own = Environment(Path(sys.executable), {})
    printed = own.run(
        "-m", "whiten", "dedup", folder, "--model", model, "--target-precision", "0.99",
        "--cache", cache, "--json", *further, limit_s=LIMIT_S,
    )  # fmt: skip
    found = json.loads(printed)
    groups = [[member["path"] for member in group["members"]] for group in found["groups"]]
    facts = {name: found["calibration"][name] for name in ("threshold", "precision_low")}
    return pairs_of(json.dumps({"groups": groups})), facts


def measured(name: str, folder: Path, run: Callable[[], tuple[Pairs, Any]]) -> dict[str, Any]:
    print(f"{name} …", file=sys.stderr, flush=True)
    began = time.perf_counter()
    try:
        pairs, facts = run()
    except UnavailableError as error:
        print(f"{name}: left out: {error}", file=sys.stderr)
        return {"tool": name, "left_out": str(error)}
    seconds = round(time.perf_counter() - began, 1)
    row = {"tool": name, **score(pairs, folder), "seconds": seconds, **facts}
    print(f"{name}: {row}", file=sys.stderr)
    return row


def rival(name: str, folder: Path, work: Path) -> dict[str, Any]:
    packages, python, script, further = RIVALS[name]
    try:
        own = make(work / script, packages, python=python)
    except UnavailableError as error:
        print(f"{name}: left out: {error}", file=sys.stderr)
        return {"tool": name, "left_out": str(error)}
    names = ["python", *(package.partition("[")[0] for package in packages)]
    used = {one: own.versions.get(one, "") for one in names}

    def run() -> tuple[Pairs, Any]:
        file = HERE / "rivals" / f"{script}_run.py"
        return pairs_of(own.run("-I", file, folder, *further, limit_s=LIMIT_S)), {"versions": used}

    return measured(name, folder, run)


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| tool | precision | recall | seconds |", "|---|---|---|---|"]
    for row in rows:
        if "left_out" in row:
            lines.append(f"| {row['tool']} | left out: {row['left_out']} | | |")
        else:
            numbers = f"{row['precision']:.3f} | {row['recall']:.3f} | {row['seconds']:.1f}"
            lines.append(f"| {row['tool']} | {numbers} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--photos", type=Path, nargs="+", required=True, help="folders of photos")
    parser.add_argument("--count", type=int, default=300, help="photos that are used")
    parser.add_argument("--work", type=Path, help="keeps environments and embeddings")
    parser.add_argument("--only", nargs="*", help="beginnings of names of tools; by default all")
    parser.add_argument("--teachers", nargs="+", default=[
        "demo:efficientnet-lite2", "demo:mobilenetv2", "demo:open-nsfw",
    ], help="the first is measured alone, too")  # fmt: skip
    parser.add_argument("--student", default="demo:efficientnet-lite0?size=160&fit=squash")
    parser.add_argument("--also", action="store_true", help="with --also mirrored,rotated, too")
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="whiten-") as temporary:
        work = (options.work or Path(temporary)).resolve()
        folder = Path(temporary) / "images"
        photos = write_copies(options.photos, folder, options.count)
        ours = {
            "whiten, one teacher": (options.teachers[0], []),
            "whiten, whitened fusion": ("fuse:whitened:" + ",".join(options.teachers), []),
            "whiten, student": (options.student, []),
            "whiten, student whitened": (f"fuse:whitened:{options.student}", []),
        }
        if options.also:
            further = ["--also", "mirrored,rotated"]
            ours["whiten, student whitened, also turned"] = (
                f"fuse:whitened:{options.student}", further,
            )  # fmt: skip
        rows = []
        for name in [*RIVALS, *ours]:
            if options.only and not name.startswith(tuple(options.only)):
                continue
            if name in RIVALS:
                rows.append(rival(name, folder, work))
                continue
            model, more = ours[name]
            # Embeddings of no other run are used, so that the seconds are a user's.
            with tempfile.TemporaryDirectory(prefix="whiten-") as cache:
                rows.append(
                    measured(
                        name,
                        folder,
                        lambda: by_whiten(model, folder, Path(cache), more),  # noqa: B023
                    )
                )
    facts = {
        "benchmark": "near-duplicates of photos, by whiten and others",
        "photos": photos,
        "images": 6 * photos,
        "python": platform.python_version(),
        "teachers": options.teachers,
        "student": options.student,
        "rows": rows,
    }
    print(table(rows), file=sys.stderr)
    print(json.dumps(facts, indent=2))
    if options.out is not None:
        options.out.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
