"""Measure α-query expansion and score normalisation on the demo's images.

    whiten demo --out runs/demo
    python studies/queries.py --demo runs/demo/drawings --out studies/results/queries.json

Every image searches all others of its split. Expansion is measured by mAP over a grid of (n, α),
score normalisation by µAP of each query's first 100 results over a grid of (top, β); its background
are the training images, none of which is right for a test image. The best of each grid is chosen on
the validation split and reported on the test split, with the 95 % interval of the paired
difference over groups.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from emoji import average_precisions, load_split
from quality import interval

from whiten.embedding.encoder import Encoder
from whiten.embedding.opening import load
from whiten.metrics import micro_average_precision
from whiten.retrieval.reranking import expand_queries, normalize_scores

MODELS = {
    "student, label-free": "{demo}/label-free",
    "student, groups": "{demo}/groups",
    "whitened fusion": "fuse:whitened:{demo}/label-free",
}
NEIGHBOURS = (1, 2, 3, 5, 10, 20)
ALPHAS = (0.0, 1.0, 2.0, 3.0, 5.0, 10.0)
TOPS = (1, 3, 10, 30, 100)
BETAS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
RESULTS = 100  # of a query that µAP ranks
DRAWS = 300


class Split:
    """Embeddings of a split, and what every image finds among the others."""

    def __init__(self, encoder: Encoder, name: str, limit: int | None) -> None:
        data = load_split(name)
        images = [np.asarray(image) for image in data.images[:limit]]
        self.groups = data.groups[:limit]
        self.vectors = encoder.embed(images)
        similarity = self.vectors @ self.vectors.T
        np.fill_diagonal(similarity, -np.inf)
        self.nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :-1]
        self.scores = np.take_along_axis(similarity, self.nearest, axis=1)

    def search(self, queries: np.ndarray) -> np.ndarray:
        """Average precision of each image when `queries` ask in its place."""
        similarity = queries @ self.vectors.T
        np.fill_diagonal(similarity, -np.inf)
        order = np.argsort(-similarity, axis=1, kind="stable")[:, :-1]
        hits = self.groups[order] == self.groups[:, None]
        precision = hits.cumsum(axis=1) / np.arange(1, hits.shape[1] + 1)
        return (precision * hits).sum(axis=1) / hits.sum(axis=1)

    def expanded(self, n: int, alpha: float) -> np.ndarray:
        neighbours = self.vectors[self.nearest[:, :n]]
        return self.search(
            expand_queries(self.vectors, neighbours, self.scores[:, :n], alpha=alpha)
        )

    @property
    def labels(self) -> np.ndarray:
        return self.groups[self.nearest[:, :RESULTS]] == self.groups[:, None]

    @property
    def positives(self) -> np.ndarray:
        """How many others are right for each query."""
        return np.bincount(self.groups)[self.groups] - 1

    def micro(self, scores: np.ndarray, queries: np.ndarray | None = None) -> float:
        """µAP of these queries' first results, by default of all."""
        rows = np.arange(len(scores)) if queries is None else queries
        total = int(self.positives[rows].sum())
        return micro_average_precision(scores[rows], self.labels[rows], n_positives=total)


def micro_difference(split: Split, scores: np.ndarray) -> tuple[float, float]:
    """95 % interval of the gain in µAP, drawing whole groups."""
    rng, members = (
        np.random.default_rng(0),
        [np.flatnonzero(split.groups == group) for group in np.unique(split.groups)],
    )
    gains = []
    for _ in range(DRAWS):
        rows = np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])
        plain = split.micro(split.scores[:, :RESULTS], rows)
        gains.append(split.micro(scores, rows) - plain)
    low, high = np.percentile(gains, [2.5, 97.5])
    return float(low), float(high)


def grid(score: Callable[[Any, Any], float], rows: Any, columns: Any) -> list[dict[str, Any]]:
    pairs = itertools.product(rows, columns)
    return [{"setting": list(pair), "score": score(*pair)} for pair in pairs]


def measure(name: str, encoder: Encoder, limit: int | None) -> dict[str, Any]:
    val, test = Split(encoder, "val", limit), Split(encoder, "test", limit)
    train = [np.asarray(image) for image in load_split("train").images[:limit]]
    background = encoder.embed(train)
    found: dict[str, Any] = {"model": name, "dim": encoder.dim, "background": len(background)}

    plain = average_precisions(test.vectors, test.groups)
    tried = grid(lambda n, alpha: float(val.expanded(n, alpha).mean()), NEIGHBOURS, ALPHAS)
    best = max(tried, key=lambda one: one["score"])["setting"]
    aps = test.expanded(*best)
    found["expansion"] = {
        "validation": {"without": float(average_precisions(val.vectors, val.groups).mean())},
        "validation_grid": tried,
        "n, alpha": best,
        "test": {"without": float(plain.mean()), "with": float(aps.mean())},
        "test_gain": float((aps - plain).mean()),
        "test_gain_interval": interval(aps - plain, test.groups),
        "test_grid": grid(lambda n, a: float(test.expanded(n, a).mean()), NEIGHBOURS, ALPHAS),
    }

    to_background = {split: split.vectors @ background.T for split in (val, test)}

    def normalized(split: Split, top: int, beta: float) -> np.ndarray:
        own = split.scores[:, :RESULTS]
        return normalize_scores(own, to_background[split], top=top, beta=beta)

    tried = grid(lambda top, beta: val.micro(normalized(val, top, beta)), TOPS, BETAS)
    best = max(tried, key=lambda one: one["score"])["setting"]
    scores, before = normalized(test, *best), test.micro(test.scores[:, :RESULTS])
    found["normalisation"] = {
        "validation": {"without": val.micro(val.scores[:, :RESULTS])},
        "validation_grid": tried,
        "top, beta": best,
        "test": {"without": before, "with": test.micro(scores)},
        "test_gain": test.micro(scores) - before,
        "test_gain_interval": micro_difference(test, scores),
        "test_grid": grid(lambda t, b: test.micro(normalized(test, t, b)), TOPS, BETAS),
    }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    parser.add_argument("--quick", action="store_true", help="small sizes: does it run at all")
    parser.add_argument("--demo", type=Path, default=Path("runs/demo/drawings"))
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    options = parser.parse_args()
    rows = []
    for name in options.models:
        encoder = load(MODELS[name].format(demo=options.demo))
        rows.append(measure(name, encoder, 80 if options.quick else None))
        for part, measure_name in (("expansion", "mAP"), ("normalisation", "µAP")):
            facts = rows[-1][part]
            low, high = facts["test_gain_interval"]
            chosen = next(key for key in facts if "," in key)
            print(
                f"{name:<22}{part:<15}{chosen} = {facts[chosen]}  test {measure_name} "
                f"{100 * facts['test']['without']:.1f} → {100 * facts['test']['with']:.1f}  "
                f"gain {100 * low:.1f} to {100 * high:.1f}",
                file=sys.stderr,
            )
        text = json.dumps({"benchmark": "queries", "rows": rows}, indent=1)
        if options.out:  # after each model: the fused teachers take their time
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
