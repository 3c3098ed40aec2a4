"""Measure each difference between the published code and the defaults on the bundled images.

    python studies/differences.py --out runs/quality --json studies/results/differences.json
    python tools/pages.py

One thing is changed at a time. Heads on frozen features are trained with three seeds each and may
be interrupted: what is done is stored in OUT/differences. The rest are the demo's teachers on the
test split, without training. Test mAP in percent throughout; nothing is chosen by it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import statistics
import sys
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from emoji import average_precisions, load_split, mean_average_precision
from quality import images, lay_out, score
from regimes import OFF_THE_SHELF, Embedded, read, teachers_of
from torch import Tensor
from trials import PRETRAINED, SEEDS, WEAK

from whiten.distillation.distill import distill
from whiten.distillation.fusion import positive_wins
from whiten.distillation.losses import (
    fused_teacher_similarity,
    student_similarity,
    teacher_similarities,
)
from whiten.distillation.objective import Batch
from whiten.models.registry import open_teacher
from whiten.runs.spec import DistillSpec
from whiten.utils.arrays import normalize_rows
from whiten.views.rendering import View, render
from whiten.whitening.choosing import choose_whitening

HEAD = {
    "student": PRETRAINED,
    "pool": "avg",
    "backbone_lr": 0.0,
    "epochs": 20,
    "batch_size": 256,
    "recipe": "similarity",
}
PCA = {"shrinkage": 0.0, "whiten_dim": 256}
CHOSEN = {"shrinkage": "auto", "whiten_dim": "auto"}
VIEWS, GROUPS = {**HEAD, **PCA, "pairs": "views"}, {**HEAD, **PCA, "pairs": "groups"}
OPTIMISER = {
    "optimizer": "adam",
    "warmup": 0.0,
    "clip": 0.0,
    "weight_decay": 1e-6,
    "min_lr": 1e-6,
}
# An epoch of one pair a group has half the steps: these groups have four images.
ONE_PAIR = {"pairs_per_epoch": 1, "epochs": 40}
RUNS: dict[str, dict[str, Any]] = {
    "views": VIEWS,
    "views, whitening chosen": {**VIEWS, **CHOSEN},
    "views, random start": {**VIEWS, "start": "random"},
    "views, published optimiser": {**VIEWS, **OPTIMISER},
    "views, maxrand": {**VIEWS, "fusion": "maxrand"},
    "views, maxrand drawn twice": {**VIEWS, "fusion": "maxrand"},
    "groups": GROUPS,
    "groups, whitening chosen": {**GROUPS, **CHOSEN},
    "groups, one pair": {**GROUPS, **ONE_PAIR},
    "groups, published views": {**GROUPS, "augment": "paper-images"},
    "groups, all published": {**GROUPS, **OPTIMISER, **ONE_PAIR, "recipe": "paper"},
}
DRAWN_TWICE = "views, maxrand drawn twice"
FEW = 300  # images for a whitening that asks for more axes than they span


# --- students ---------------------------------------------------------------------------


def train(name: str, seed: int, out: Path) -> float:
    """Test mAP of a head that was trained so; from disk where that was done before."""
    known = out / "differences" / f"{name}-{seed}.json"
    if known.exists():
        return float(json.loads(known.read_text()))
    folder = out / "differences" / "run"
    shutil.rmtree(folder, ignore_errors=True)
    with ExitStack() as stack:
        if name == DRAWN_TWICE:
            stack.enter_context(patch("whiten.distillation.training.objective", drawn_twice))
        distill(
            images(out, "labelled"),
            WEAK,
            out=folder,
            cache=out / "embeddings",
            show_progress=False,
            seed=seed,
            **RUNS[name],
        )
    found = float(score(str(folder / "student"), out, "test").mean())
    shutil.rmtree(folder)
    known.write_text(json.dumps(found))
    print(f"{name}, seed {seed}: {100 * found:.2f}", file=sys.stderr, flush=True)
    return found


def drawn_twice(
    batch: Batch, spec: DistillSpec, generator: torch.Generator
) -> tuple[Tensor, list[float]]:
    """The paper's loss with another random target for each direction, as published."""
    similarity = student_similarity(batch.student_x, batch.student_y) / spec.temperature
    total = similarity.new_zeros(())
    for dim in (1, 0):
        target, _ = fused_teacher_similarity(
            batch.teachers_x, batch.teachers_y, spec.fusion or "", generator=generator
        )
        logits = (target / spec.temperature).log_softmax(dim)
        total = total + F.kl_div(
            similarity.log_softmax(dim), logits, reduction="batchmean", log_target=True
        )
    each = teacher_similarities(batch.teachers_x, batch.teachers_y)
    return total, positive_wins(each).tolist()


def students(out: Path) -> dict[str, Any]:
    (out / "differences").mkdir(exist_ok=True)
    found = {}
    for name in RUNS:
        scores = [train(name, seed, out) for seed in SEEDS]
        found[name] = {"map": statistics.mean(scores), "seeds": scores}
    return found


# --- teachers ---------------------------------------------------------------------------


def fused(teachers: list[Embedded], whiteners: list[Any]) -> np.ndarray:
    """Test embeddings of all teachers, each whitened, side by side."""
    each = [w(t.test) for w, t in zip(whiteners, teachers, strict=True)]
    return normalize_rows(np.concatenate([normalize_rows(one) for one in each], axis=1))


def published_whitening(fit: np.ndarray, dim: int) -> Any:
    """Divides by the roots of eigenvalues that are raised to 1e-5 of the largest."""
    fit = fit.astype(np.float64)
    mean = fit.mean(0)
    values, vectors = np.linalg.eigh(np.cov(fit.T, bias=True))
    values = np.maximum(values[::-1][:dim], 1e-5 * values[-1])
    axes = vectors[:, ::-1][:, :dim] / np.sqrt(values)
    return lambda x: ((x - mean) @ axes).astype(np.float32)


def whitenings(teachers: list[Embedded], groups: np.ndarray) -> dict[str, float]:
    def on_test(fits: list[np.ndarray], dim: int) -> float:
        return mean_average_precision(
            fused(teachers, [published_whitening(fit, dim) for fit in fits]), groups
        )

    whole = [t.whole for t in teachers]
    few = [fit[np.random.default_rng(0).permutation(len(fit))[:FEW]] for fit in whole]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # too few images: that is the question
        chosen = [
            choose_whitening(fit, others=[other for j, other in enumerate(few) if j != k])[0]
            for k, fit in enumerate(few)
        ]
    zeros = [np.concatenate([fit, np.zeros((7, fit.shape[1]), fit.dtype)]) for fit in whole]
    return {
        "whole images": on_test(whole, 256),
        "random crops": on_test([t.view for t in teachers], 256),
        "with 7 rows of zeros": on_test(zeros, 256),
        "few images, null directions kept": on_test(few, 512),
        "few images, null directions left out": on_test(few, FEW - 1),
        "few images, chosen": mean_average_precision(
            fused(teachers, [whitener.transform for whitener in chosen]), groups
        ),
    }


def normalisation() -> dict[str, float]:
    """One teacher with and without the mean and the deviation that it was trained with."""
    test = load_split("test")
    teacher = open_teacher(WEAK[1])
    plain = dataclasses.replace(teacher.preprocess, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    pixels = np.stack([render(image, View(), teacher.preprocess) for image in test.images])
    found = {}
    for name, preprocess in (("normalised", teacher.preprocess), ("not normalised", plain)):
        model = dataclasses.replace(teacher, preprocess=preprocess)
        rows = [model.embed(pixels[i : i + 16]) for i in range(0, len(pixels), 16)]
        found[name] = mean_average_precision(np.concatenate(rows), test.groups)
    return found


def orders(embeddings: np.ndarray, groups: np.ndarray) -> dict[str, float]:
    """An order that may differ between machines, where similarities tie."""
    found = {}
    for name, values in (("exact", embeddings), ("one byte", np.round(embeddings * 127) / 127)):
        similarity = torch.from_numpy(np.round(values @ values.T, 2 if name == "one byte" else 9))
        similarity.fill_diagonal_(-torch.inf)
        aps = []
        for stable in (True, False):
            order = torch.argsort(-similarity, dim=1, stable=stable).numpy()[:, :-1]
            hits = groups[order] == groups[:, None]
            precision = hits.cumsum(1) / np.arange(1, hits.shape[1] + 1)
            aps.append((precision * hits).sum(1) / hits.sum(1))
        found[f"queries that change, {name}"] = int((aps[0] != aps[1]).sum())
    return found


def cut_off(embeddings: np.ndarray, groups: np.ndarray, k: int = 10) -> dict[str, float]:
    """AP of the first k by two definitions."""
    similarity = embeddings @ embeddings.T
    np.fill_diagonal(similarity, -np.inf)
    hits = groups[np.argsort(-similarity, axis=1, kind="stable")[:, :k]] == groups[:, None]
    sums = (hits * hits.cumsum(1) / np.arange(1, k + 1)).sum(1)
    exist = np.minimum(np.bincount(groups)[groups] - 1, k)
    return {
        "by positives retrieved": float((sums / np.maximum(hits.sum(1), 1)).mean()),
        "by positives that exist": float((sums / exist).mean()),
        "whole ranking": float(average_precisions(embeddings, groups).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=Path("runs/quality"))
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    lay_out(options.out)
    groups = load_split("test").groups
    teachers = read(teachers_of(OFF_THE_SHELF, Path()), options.out)
    embeddings = fused(teachers, [published_whitening(t.whole, 256) for t in teachers])
    facts = {
        "benchmark": "differences",
        "whitening": whitenings(teachers, groups),
        "normalisation": normalisation(),
        "order": orders(embeddings, groups),
        "cut-off": cut_off(embeddings, groups),
        "students": students(options.out),
    }
    text = json.dumps(facts, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
