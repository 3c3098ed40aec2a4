"""Does a default run ever end below its start? 24 runs, in one table.

Two data sets (drawings at 64 px, photographs at 160 px), without labels and with groups, of 100,
600 and all images, with a frozen backbone and a trained one; whatever else is left to `whiten
distill`. Subsets are of whole groups. Half of the photographs' groups test; the runs of all
photographs learn from those of `--unlabelled`, too. Each test image queries all others of its kind.

Prints mAP in points, and what the student gained over the better of its start and its start
whitened, with the interval over groups. Finished runs are read again from `--work`, and rows of
earlier calls stay in the JSON.

    python studies/default_runs.py --photos TABLE --unlabelled TABLE --work FOLDER --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from trials import WEAK
from unseen import KINDS, PAIRS, drawings, measure

from whiten.datasets.collection import Items
from whiten.datasets.finding import find_items
from whiten.distillation.distill import distill
from whiten.embedding.opening import load_fusions
from whiten.evaluation.run_encoders import CLOSED_FORM, START, START_WHITENED, run_encoders
from whiten.metrics import bootstrap_interval
from whiten.runs.folder import RunFolder

BACKBONES = {"frozen": 0.0, "trained": 1.0}
SHOWN = (START, START_WHITENED, CLOSED_FORM, "student", "whitened fusion")


@dataclass(frozen=True)
class Data:
    """One data set.

    Attributes:
        name: of the table's first column.
        student, teachers: URIs.
        train: the training images.
        tests: test images per kind.
        unlabelled: more images for the largest run.
    """

    name: str
    student: str
    teachers: list[str]
    train: Items
    tests: dict[str, Items]
    unlabelled: list[str] = field(default_factory=list)


def data_sets(options: argparse.Namespace) -> Iterator[Data]:
    """Yield the drawings and the photographs."""
    work = options.work / "drawings"
    work.mkdir(parents=True, exist_ok=True)
    student = "demo:efficientnet-lite0?size={}&fit={}"
    if "drawings" in options.data:
        held = next(drawings(work))
        train, (test, _) = find_items(held.train), held.seen
        yield Data("drawings", student.format(64, "squash"), WEAK, train, {"drawings": test})
    if "photos" in options.data:
        items = find_items(options.photos)
        groups = np.array(items.groups.to_pylist(), object)
        every = np.unique(groups)
        tested = np.random.default_rng(0).permutation(every)[: len(every) // 2]
        tests = np.isin(groups, tested)
        kinds = np.array([KINDS[group.partition(":")[0]] for group in groups], object)
        parts = {kind: items.take(tests & (kinds == kind)) for kind in np.unique(kinds)}
        teachers = [uri.replace("squash", "crop") for uri in WEAK]
        yield Data(
            "photos",
            student.format(160, "crop"),
            teachers,
            items.take(~tests),
            parts,
            [str(options.unlabelled)],
        )


def subset(items: Items, count: int, seed: int, place: Path) -> Path:
    """Write a table of whole groups, drawn until there are `count` images."""
    groups = np.array(items.groups.to_pylist(), object)
    drawn = np.random.default_rng(seed).permutation(np.unique(groups))
    sizes = np.array([(groups == group).sum() for group in drawn])
    kept = drawn[: 1 + np.searchsorted(sizes.cumsum(), count)]
    with open(place, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "group"])
        for item, group in zip(items, groups, strict=True):
            if group in kept:
                rows.writerow([Path(item.path).resolve(), group])
    return place


def run_once(
    data: Data, count: int | None, pairs: str, backbone: str, seed: int, work: Path, **options: Any
) -> dict:
    """Distil, and measure every row of the report on the test images, per kind."""
    name = f"{data.name}-{pairs}-{count or 'all'}-{backbone}-{seed}"
    result = work / f"{name}.json"
    if result.exists():
        return json.loads(result.read_text())
    table = subset(data.train, count or len(data.train), seed, work / f"{name}.csv")
    run = RunFolder(work / name)
    found = distill(
        table,
        data.teachers,
        run.root,
        student=data.student,
        cache=work / "embeddings",
        unlabelled=[] if count else data.unlabelled,
        pairs=pairs,
        backbone_lr=BACKBONES[backbone],
        seed=seed,
        resume=run.root.exists(),
        show_progress=False,
        **options,
    )
    scores: dict = {}
    for encoder, _, row in run_encoders(run, load_fusions(run.root)):
        for kind, items in data.tests.items():
            every = np.ones(len(items), bool)
            precision = measure(encoder, items, every, work / "embeddings-test")["mAP"]
            scores.setdefault(row, {})[kind] = precision.tolist()
    asked = {"data": data.name, "pairs": pairs, "images": count, "backbone": backbone, "seed": seed}
    row = {**asked, "steps": found.steps, "gain": found.gain, "scores": scores}
    result.write_text(json.dumps(row))
    return row


def table_of(rows: list[dict], data: dict[str, Data]) -> list[dict]:
    """Average each setting's seeds; intervals draw whole groups."""
    settings: dict[tuple, list[dict]] = {}
    for row in rows:
        key = (row["data"], row["pairs"], row["images"], row["backbone"])
        settings.setdefault(key, []).append(row)
    shown = []
    for (name, pairs, count, backbone), own in settings.items():
        for kind, items in data[name].tests.items():
            groups = np.array(items.groups.to_pylist(), object).astype(str)
            means = {
                row: np.mean([one["scores"][row][kind] for one in own], axis=0)
                for row in own[0]["scores"]
            }
            best = max((START, START_WHITENED), key=lambda row: float(np.nanmean(means[row])))
            gained = means["student"] - means[best]
            known = ~np.isnan(gained)
            low, high = bootstrap_interval(gained[known], groups=groups[known])
            shown.append(
                {
                    "test images": kind,
                    "pairs": PAIRS[pairs],
                    "images": count or "all",
                    "backbone": backbone,
                    "mAP": {row: float(np.nanmean(values)) for row, values in means.items()},
                    "gain": [float(np.nanmean(gained)), low, high],
                    "steps": [one["steps"] for one in own],
                }
            )
    return shown


def markdown(rows: list[dict]) -> str:
    """Format the table, in points."""
    heads = ["test images", "pairs", "images", "backbone", *SHOWN, "gain"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        cells = [str(row[head]) for head in heads[:4]]
        cells += [f"{100 * row['mAP'][name]:.1f}" for name in SHOWN]
        cells += ["{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * x for x in row["gain"]))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True, help="table: columns path,group")
    parser.add_argument("--unlabelled", type=Path, required=True, help="table: column path")
    parser.add_argument("--data", nargs="+", default=["drawings", "photos"])
    parser.add_argument("--images", nargs="+", default=["100", "600", "all"])
    parser.add_argument("--pairs", nargs="+", default=list(PAIRS), choices=list(PAIRS))
    parser.add_argument("--backbones", nargs="+", default=list(BACKBONES), choices=list(BACKBONES))
    parser.add_argument("--work", type=Path, required=True, help="folder of images, runs, caches")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--out", type=Path, help="JSON; by default results/default-runs.json")
    options = parser.parse_args()
    data = {one.name: one for one in data_sets(options)}
    rows = []
    counts = [None if count == "all" else int(count) for count in options.images]
    for seed, count, pairs, backbone in itertools.product(
        options.seeds, counts, options.pairs, options.backbones
    ):
        for one in data.values():
            rows.append(run_once(one, count, pairs, backbone, seed, options.work))
            print(f"{one.name} {count} {pairs} {backbone} {seed}: {rows[-1]['gain']}", flush=True)
    out = options.out or Path(__file__).parent / "results" / "default-runs.json"
    earlier = json.loads(out.read_text()) if out.exists() else []
    setting = itemgetter("test images", "pairs", "images", "backbone")
    shown = {setting(row): row for row in [*earlier, *table_of(rows, data)]}
    print(markdown([*shown.values()]))
    out.write_text(json.dumps([*shown.values()], indent=1) + "\n")


if __name__ == "__main__":
    main()
