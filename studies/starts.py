"""Does the criterion without labels order starts as the true mAP does?

Fits every start in closed form that `distill` considers, on images without their groups, and prints
what the folds say of it next to its mAP on grouped test images, with the rank correlation.

    python studies/starts.py TRAIN TEST --teachers URI … --student URI --size 160 --cache FOLDER
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from whiten.datasets.finding import find_items
from whiten.datasets.task import folder_task
from whiten.distillation.held_out import CROP_VIEWS, CROPS
from whiten.distillation.mix import (
    SHARES,
    SHRINKAGES,
    STRENGTHS,
    candidates,
    choose_mix,
    sample,
)
from whiten.embedding.embed import embed, store_folder
from whiten.embedding.encoder import embed_cached
from whiten.embedding.fitting import fit_whiteners
from whiten.evaluation.evaluate import evaluate_task
from whiten.models.registry import open_teacher
from whiten.models.student import backbone_as_teacher, build_student
from whiten.runs.spec import DistillSpec
from whiten.utils.arrays import Vectors, normalize_rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--teachers", nargs="+", required=True)
    parser.add_argument("--student", required=True)
    parser.add_argument("--size", type=int)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    train, test = find_items(options.train), find_items(options.test)
    spec = DistillSpec(teachers=options.teachers, student=options.student, size=options.size)
    net, config = build_student(spec.student, dim=spec.dim, size=spec.size, pool="avg")
    backbone = backbone_as_teacher(net, config)
    stores = [embed_cached(open_teacher(uri), train, options.cache) for uri in spec.teachers]
    whiteners, _ = fit_whiteners(stores, train, dim="auto", shrinkage="auto", by_groups=False)
    ids = train.ids.to_pylist()
    # `distill` also fits it on a second view.
    targets = [
        normalize_rows(whitener.transform(store.gather(ids)))[:, None].astype(np.float32)
        for whitener, store in zip(whiteners, stores, strict=True)
    ]
    features = embed_cached(backbone, train, options.cache).gather(ids)[:, None]
    judged = train.take(sample(len(train), spec.seed))
    folder = store_folder(options.cache, backbone, precision="32", augment="crops")
    views = embed(judged, backbone, folder, views=CROP_VIEWS, plan=CROPS)
    crops = np.stack([views.gather(judged.ids.to_pylist(), view) for view in CROP_VIEWS], axis=1)
    held = embed_cached(backbone, test, options.cache / "test").gather(test.ids.to_pylist())

    mix, scores = choose_mix(features, targets, None, spec, crops)
    task = folder_task(test)
    queries = test.by_id.rows([item.id for item in task.queries])

    def true_map(vectors: Vectors) -> float:
        found = normalize_rows(vectors.astype(np.float32))
        return 100 * evaluate_task(task, found[queries], found).figures["map"].value

    own = np.ones(len(features), bool)
    rows = [
        (fitted.name, scores[fitted.name], true_map(fitted.head()(held)))
        for fitted in candidates(features, targets, own, SHARES, STRENGTHS, SHRINKAGES, spec.dim)
        if fitted.name in scores
    ]
    for name, score, value in sorted(rows, key=lambda row: -row[1]):
        print(f"{name:48} {score:.3f} {value:5.1f}{'  chosen' if name == mix.name else ''}")
    ranks = [np.argsort(np.argsort([row[k] for row in rows])) for k in (1, 2)]
    correlation = float(np.corrcoef(*ranks)[0, 1])
    start = true_map(held)
    print(f"start {start:.1f}; rank correlation of {len(rows)} starts: {correlation:.2f}")
    if options.out is not None:
        facts = {"rows": rows, "start": start, "chosen": mix.name, "correlation": correlation}
        options.out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
