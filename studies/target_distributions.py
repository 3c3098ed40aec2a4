"""Why recipes differ: how much each training target says beyond which pair is the positive.

    python studies/target_distributions.py --quality runs/quality --out FILE.json

Reads the embeddings that `quality.py run` cached. For batches of 128 pairs, two views of an image
or two images of a group, it prints the mass that the target puts on the positive, and the
perplexity (exp of the entropy) of what it says of all: 1 is a label, 128 is no preference.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from emoji import load_split
from regimes import read
from trials import WEAK

from whiten.distillation.fusion import fuse
from whiten.utils.arrays import Array, normalize_rows
from whiten.whitening.choosing import choose_whitening
from whiten.whitening.whitener import Whitener

BATCH, BATCHES, QUEUE, TAU = 128, 20, 4096, 0.05

Sides = tuple[Array, Array]
"""A teacher's embeddings of whole images, and of another view of each."""


def describe(target: torch.Tensor, positive: torch.Tensor) -> dict[str, float]:
    """Mean mass on the positives, and the perplexity, of softmax rows."""
    log = (target / TAU).log_softmax(dim=1)
    mass = (log.exp() * positive).sum(dim=1).mean()
    entropy = -(log.exp() * log).sum(dim=1).mean()
    return {"positive_mass": round(mass.item(), 3), "perplexity": round(math.exp(entropy), 2)}


def prepare(raw: Sequence[Sides]) -> dict[str, list[Sides]]:
    """Return the teachers' embeddings as they come, whitened, centred, and whitened as chosen."""
    chosen = []
    for k, (whole, view) in enumerate(raw):
        others = [other for j, (other, _) in enumerate(raw) if j != k]
        chosen.append(choose_whitening(whole, others=others, second_views=view)[0])
    whiteners = {
        "whitened": [Whitener(256, shrinkage=0.0).fit(whole) for whole, _ in raw],
        "centred": [Whitener(256, shrinkage=math.inf).fit(whole) for whole, _ in raw],
        "chosen": chosen,
    }
    return {"raw": list(raw)} | {
        name: [
            (normalize_rows(fit.transform(whole)), normalize_rows(fit.transform(view)))
            for fit, (whole, view) in zip(fits, raw, strict=True)
        ]
        for name, fits in whiteners.items()
    }


def draw_batch(rng: np.random.Generator, groups: Array, pairs: str) -> tuple[Array, Array]:
    """Draw pairs: (128,) rows of the first images and of the second ones."""
    if pairs == "views":
        rows = rng.permutation(len(groups))[:BATCH]
        return rows, rows
    picked = rng.permutation(groups.max() + 1)[:BATCH]
    x, y = np.array([rng.permutation(np.flatnonzero(groups == g))[:2] for g in picked]).T
    return x, y


def queue_target(
    rng: np.random.Generator, fused: torch.Tensor, groups: Array, x: Array, pairs: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the similarities of a batch to a queue of images, and which of these are positive."""
    columns = rng.permutation(len(groups))[:QUEUE]
    of_group = groups[x][:, None] == groups[columns][None]
    positive = of_group if pairs == "groups" else x[:, None] == columns
    return fused[x] @ fused[columns].T, torch.from_numpy(positive)


def batch_target(
    sides: Sequence[Sides], x: Array, y: Array, pairs: str, fusion: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the fused similarities of both sides of a batch, and which of these are positive."""
    stack = [
        torch.from_numpy(whole[x] @ (view if pairs == "views" else whole)[y].T)
        for whole, view in sides
    ]
    return fuse(torch.stack(stack), fusion), torch.eye(BATCH)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    parser.add_argument("--quality", type=Path, default=Path("runs/quality"))
    options = parser.parse_args()
    prepared = prepare([(teacher.whole, teacher.view) for teacher in read(WEAK, options.quality)])
    groups = load_split("train").groups
    rng = np.random.default_rng(0)
    rows = []
    settings = itertools.product(prepared.items(), ("views", "groups"), ("maxmin", "mean", "queue"))
    for (teachers, sides), pairs, fusion in settings:
        whole = np.concatenate([whole for whole, _ in sides], axis=1)
        fused = torch.from_numpy(normalize_rows(whole))
        found = []
        for _ in range(BATCHES):
            x, y = draw_batch(rng, groups, pairs)
            if fusion == "queue":
                target, positive = queue_target(rng, fused, groups, x, pairs)
            else:
                target, positive = batch_target(sides, x, y, pairs, fusion)
            found.append(describe(target, positive))
        row = {key: float(np.mean([f[key] for f in found])) for key in found[0]}
        rows.append({"teachers": teachers, "pairs": pairs, "target": fusion, **row})
        print(
            f"{teachers:<10}{pairs:<8}{fusion:<8}mass on positives "
            f"{row['positive_mass']:.3f}  perplexity {row['perplexity']:.1f}",
            file=sys.stderr,
        )
    text = json.dumps(
        {"benchmark": "target_distributions", "temperature": TAU, "rows": rows}, indent=2
    )
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
