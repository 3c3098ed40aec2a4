"""Measure what `--compatible` costs a student and what it gives: the weight of `align`.

    python studies/compatible.py --work runs/compatible --out studies/results/compatible.json

Trains the demo's student on the bundled training split with several weights of the regression onto
the fused teachers, and measures mAP on the validation split three ways: the student alone, its
queries against the teachers' gallery, and the teachers alone. Weight 0 is the recipe without it,
asked all the same. `--settings` names some of: head-views, head-groups, whole-views, whole-groups.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from quality import lay_out
from trials import PRETRAINED, WEAK

from whiten.datasets.collection import Item
from whiten.datasets.finding import find_items
from whiten.datasets.task import folder_task
from whiten.distillation.distill import distill
from whiten.embedding.encoder import Encoder
from whiten.embedding.opening import load
from whiten.embedding.rows import embed_rows
from whiten.evaluation.evaluate import evaluate_task
from whiten.runs.folder import RunFolder
from whiten.whitening.whitener import Whitener

HEAD = {"backbone_lr": 0.0, "epochs": 20, "batch_size": 256}
SETTINGS: dict[str, dict[str, Any]] = {
    "head-views": {**HEAD, "pairs": "views"},
    "head-groups": {**HEAD, "pairs": "groups"},
    "whole-views": {"pairs": "views", "epochs": 3, "lr": 2e-3},
    "whole-groups": {"pairs": "groups", "epochs": 4, "lr": 2e-3},
}
WEIGHTS = (0.0, 0.3, 1.0, 3.0, 10.0, 30.0)


def gallery_of(run: RunFolder) -> Encoder:
    """`fuse:compatible:RUN`, also of a run whose student was not asked to be compatible."""
    whitened = load(f"fuse:whitened:{run.root}")
    return Encoder("teachers", whitened.parts, rotation=Whitener.load(run.rotation))


def mean_ap(queries: np.ndarray, gallery: np.ndarray, items: list[Item]) -> float:
    return evaluate_task(folder_task(items), queries, gallery).figures["map"].value


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    parser.add_argument("--quick", action="store_true", help="small sizes: does it run at all")
    parser.add_argument("--work", type=Path, default=Path("runs/compatible"))
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--weights", nargs="+", type=float, default=list(WEIGHTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    options = parser.parse_args()
    work: Path = options.work
    lay_out(work)
    val = find_items(work / "images" / "val")
    rows = []
    for setting in options.settings:
        for weight in options.weights:
            for seed in options.seeds:
                facts = trial(setting, weight, seed, work, val, quick=options.quick)
                rows.append(facts)
                print(json.dumps(facts), flush=True)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"benchmark": "compatible", "rows": rows}, indent=1)
        options.out.write_text(text + "\n")


def trial(
    setting: str, weight: float, seed: int, work: Path, val: Any, *, quick: bool
) -> dict[str, Any]:
    run = RunFolder(work / "run" / f"{setting}-{weight:g}-{seed}")
    shutil.rmtree(run.root, ignore_errors=True)
    chosen = dict(SETTINGS[setting])
    if quick:
        chosen["epochs"] = 1
    if weight:
        chosen |= {"compatible": True, "align": weight}
    else:
        chosen["queue"] = None if "whole" in setting else 1e-9  # so that the rotation is written
    distill(
        work / "images" / "all.csv",
        WEAK,
        student=PRETRAINED,
        pool="avg",
        out=run.root,
        cache=work / "embeddings",
        seed=seed,
        show_progress=False,
        **chosen,
    )
    cache = work / "embeddings-val"
    items, of_teachers, _ = embed_rows(gallery_of(run), val, cache=cache)
    _, of_student, _ = embed_rows(load(run.student), val)
    cosine = float((of_student * of_teachers).sum(axis=1).mean())
    return {
        "setting": setting,
        "weight": weight,
        "seed": seed,
        "student": mean_ap(of_student, of_student, list(items)),
        "student against teachers": mean_ap(of_student, of_teachers, list(items)),
        "teachers": mean_ap(of_teachers, of_teachers, list(items)),
        "cosine": cosine,
    }


if __name__ == "__main__":
    main()
