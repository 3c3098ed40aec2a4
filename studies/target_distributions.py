"""Why recipes differ: how much each training target says beyond which pair is the positive.

    python studies/target_distributions.py --quality runs/quality --out FILE.json

Reads the embeddings that `quality.py run` cached. For batches of 128 pairs, two views of an image
or two images of a group, it prints the mass that the target puts on the positive, and the
perplexity (exp of the entropy) of what it says of all: 1 is a label, 128 is no preference.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

import numpy as np
import torch
from emoji import load_split
from regimes import read
from trials import WEAK

from whiten.distillation.fusion import fuse
from whiten.utils.arrays import normalize_rows
from whiten.whitening.choosing import choose_whitening
from whiten.whitening.whitener import Whitener

BATCH, BATCHES, QUEUE, TAU = 128, 20, 4096, 0.05


def describe(target: torch.Tensor, positive: torch.Tensor) -> dict[str, float]:
    """Mean mass on the positives, and the perplexity, of softmax rows."""
    log = (target / TAU).log_softmax(dim=1)
    mass = (log.exp() * positive).sum(dim=1).mean()
    entropy = -(log.exp() * log).sum(dim=1).mean()
    return {"positive_mass": round(mass.item(), 3), "perplexity": round(math.exp(entropy), 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    parser.add_argument("--quality", type=Path, default=Path("runs/quality"))
    options = parser.parse_args()
    raw = [(teacher.whole, teacher.view) for teacher in read(WEAK, options.quality)]
    groups = load_split("train").groups
    prepared = {"raw": raw}
    for name, shrinkage in (("whitened", 0.0), ("centred", math.inf)):
        fits = [Whitener(256, shrinkage=shrinkage).fit(whole) for whole, _ in raw]
        prepared[name] = [
            (normalize_rows(fit.transform(a)), normalize_rows(fit.transform(b)))
            for fit, (a, b) in zip(fits, raw, strict=True)
        ]
    chosen = []
    for k, (whole, view) in enumerate(raw):
        others = [other for j, (other, _) in enumerate(raw) if j != k]
        fit, _ = choose_whitening(whole, others=others, second_views=view)
        chosen.append((normalize_rows(fit.transform(whole)), normalize_rows(fit.transform(view))))
    prepared["chosen"] = chosen

    rng = np.random.default_rng(0)
    rows = []
    for teachers, sides in prepared.items():
        fused = torch.from_numpy(normalize_rows(np.concatenate([a for a, _ in sides], axis=1)))
        for pairs in ("views", "groups"):
            for fusion in ("maxmin", "mean", "queue"):
                found = []
                for _ in range(BATCHES):
                    if pairs == "views":
                        x = y = rng.permutation(len(groups))[:BATCH]
                    else:
                        picked = rng.permutation(groups.max() + 1)[:BATCH]
                        pair = [rng.permutation(np.flatnonzero(groups == g))[:2] for g in picked]
                        x, y = np.array(pair).T
                    if fusion == "queue":
                        columns = rng.permutation(len(groups))[:QUEUE]
                        target = fused[x] @ fused[columns].T
                        same = groups[x][:, None] == groups[columns][None]
                        positive = torch.from_numpy(
                            same if pairs == "groups" else x[:, None] == columns
                        )
                    else:
                        stack = [
                            torch.from_numpy(a[x] @ (b if pairs == "views" else a)[y].T)
                            for a, b in sides
                        ]
                        target, positive = fuse(torch.stack(stack), fusion), torch.eye(BATCH)
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
