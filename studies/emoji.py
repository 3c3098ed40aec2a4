"""The bundled images, split by group, for studies that train on them in memory."""

from __future__ import annotations

import io
from dataclasses import dataclass
from importlib import resources

import numpy as np
import pyarrow.parquet as pq
from PIL import Image


@dataclass(frozen=True)
class Split:
    """Images of one split: `train` (1,178 groups), `val` (196) or `test` (478)."""

    ids: list[str]
    images: list[Image.Image]
    groups: np.ndarray  # (n,) int, the group's number


def load_split(name: str) -> Split:
    """Read a split in the order in which a folder of it would be found."""
    with resources.as_file(resources.files("whiten") / "demo" / "data" / "emoji.parquet") as path:
        table = pq.read_table(path, columns=["group", "vendor", "split", "image"]).to_pylist()
    rows = [(f"{r['group']}/{r['vendor']}.webp", r) for r in table if r["split"] == name]
    rows.sort(key=lambda pair: pair[0])
    images = [Image.open(io.BytesIO(row["image"])).convert("RGB") for _, row in rows]
    _, groups = np.unique([row["group"] for _, row in rows], return_inverse=True)
    return Split([key for key, _ in rows], images, groups)


def average_precisions(embeddings: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Each image's average precision when it searches all others; (n,) in [0, 1]."""
    similarity = embeddings @ embeddings.T
    np.fill_diagonal(similarity, -np.inf)
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :-1]
    hits = groups[order] == groups[:, None]
    found = hits.cumsum(axis=1)
    precision = found / np.arange(1, hits.shape[1] + 1)
    return (precision * hits).sum(axis=1) / hits.sum(axis=1)


def mean_average_precision(embeddings: np.ndarray, groups: np.ndarray) -> float:
    return float(average_precisions(embeddings, groups).mean())
