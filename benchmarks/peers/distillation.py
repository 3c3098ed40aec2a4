"""One teacher, one student, the same images and minutes: whiten, cosine regression, LightlyTrain.

    python benchmarks/peers/distillation.py --images TRAIN --test TEST --out distillation.json

Regression is what SSP and EmbedDistill do with embeddings: the student, with a projection to the
teacher's dimension, minimises 1 - cosine to the teacher's embedding of the same view. TEST has one
folder per group, or is a table with columns path,group. Reports mAP in points.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from environments import UnavailableError, make

import whiten
from whiten.datasets.finding import find_items
from whiten.embedding.embed import embed, store_folder
from whiten.media.reading import read_bytes
from whiten.models.registry import open_teacher
from whiten.models.student import build_student, save_student
from whiten.utils.threads import ordered_map
from whiten.views.plan import ViewPlan
from whiten.views.rendering import render_bytes

HERE = Path(__file__).parent
BATCH, VIEWS, SEED = 128, 4, 0


def regress(options: argparse.Namespace, cache: Path, out: Path, minutes: float) -> int:
    """Train by cosine regression for so many minutes; return the steps."""
    items, plan = find_items(options.images), ViewPlan()
    teacher = open_teacher(options.teacher)
    # As for whiten, the teacher's embeddings are made once.
    store = embed(
        items, teacher, store_folder(cache, teacher), views=range(1, VIEWS + 1), plan=plan
    )
    ids = items.ids.to_pylist()
    targets = np.stack([store.gather(ids, view) for view in range(1, VIEWS + 1)])
    torch.manual_seed(SEED)
    net, config = build_student(options.student, dim=teacher.dim)
    optimizer = torch.optim.AdamW(net.parameters(), lr=options.lr, weight_decay=1e-4)
    rng, steps, end = np.random.default_rng(SEED), 0, time.monotonic() + 60 * minutes
    data = {item.id: read_bytes(item.path) for item in items}
    net.train()
    while time.monotonic() < end:
        rows = rng.choice(len(ids), min(BATCH, len(ids)), replace=False)
        view = int(rng.integers(VIEWS))
        names = [ids[row] for row in rows]

        def picture(name: str, view: int = view) -> Any:
            return render_bytes(data[name], plan, name, view + 1, config.preprocess)

        pixels = np.stack(list(ordered_map(picture, names)))
        embeddings = net(torch.from_numpy(config.preprocess.normalize(pixels)))
        target = torch.from_numpy(np.asarray(targets[view][rows], np.float32))
        loss = (1 - F.cosine_similarity(embeddings, target)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
    save_student(net.eval(), config, out, "cosine regression")
    return steps


def by_lightly_train(options: argparse.Namespace, work: Path, minutes: float) -> dict[str, Any]:
    """Give LightlyTrain the same teacher, or say in one line that it cannot take it."""
    try:
        own = make(work / "lightly_train", ["lightly-train"])
        weights = work / "teacher.pt"
        module = open_teacher(options.teacher).module
        torch.save({} if module is None else module.state_dict(), weights)
        file = HERE / "rivals" / "lightly_train_run.py"
        printed = own.run(
            "-I", file, options.images, weights, work / "lightly", minutes, limit_s=3600
        )
    except UnavailableError as error:
        return {"left_out": str(error)}
    facts: dict[str, Any] = json.loads(printed.strip().splitlines()[-1])
    return {"versions": {"lightly-train": own.versions.get("lightly-train", "")}, **facts}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--teacher", default="demo:mobilenetv2")
    parser.add_argument("--student", default="demo:efficientnet-lite0?size=160&fit=squash")
    parser.add_argument("--epochs", type=int, default=4, help="of whiten; its minutes are all's")
    parser.add_argument("--lr", type=float, default=1e-4, help="of the regression")
    parser.add_argument("--work", type=Path, help="keeps environments")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="whiten-") as temporary:
        place = Path(temporary)
        work = (options.work or place).resolve()
        work.mkdir(parents=True, exist_ok=True)
        rows: dict[str, Any] = {}

        def scored(name: str, model: Path | str, **facts: Any) -> None:
            found = whiten.evaluate(whiten.load(model), options.test)
            rows[name] = {"map": round(100 * found.figures["map"].value, 1), **facts}
            print(name, rows[name], file=sys.stderr, flush=True)

        scored("teacher", options.teacher)
        scored("student's start", options.student)
        began = time.monotonic()
        whiten.distill(
            options.images, [options.teacher], place / "whiten", student=options.student,
            epochs=options.epochs, seed=SEED,
        )  # fmt: skip
        minutes = (time.monotonic() - began) / 60
        scored("whiten", place / "whiten", minutes=round(minutes, 1))
        steps = regress(options, place / "regression-cache", place / "regression", minutes)
        scored("cosine regression", place / "regression", minutes=round(minutes, 1), steps=steps)
        rows["LightlyTrain"] = by_lightly_train(options, work, minutes)
        print("LightlyTrain", rows["LightlyTrain"], file=sys.stderr)
    facts = {"teacher": options.teacher, "student": options.student, "rows": rows}
    print(json.dumps(facts, indent=2))
    if options.out is not None:
        options.out.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
