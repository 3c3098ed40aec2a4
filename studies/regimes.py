"""Teachers that never saw the domain and teachers of the domain, and what they make of the images.

Reads what `quality.py run` cached, and embeds what is missing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from quality import lay_out
from trials import STRONG, WEAK

from whiten.datasets.collection import Item
from whiten.datasets.finding import find_items
from whiten.embedding.embed import embed, store_folder
from whiten.models.registry import open_teacher
from whiten.views.plan import ViewPlan

OFF_THE_SHELF, OF_THE_DOMAIN = "off the shelf", "of the domain"


@dataclass(frozen=True)
class Embedded:
    """One teacher's embeddings, each (n, D): of a training image whole and of a random view of it,
    and of the other splits' images whole."""

    whole: np.ndarray
    view: np.ndarray
    val: np.ndarray
    test: np.ndarray


def teachers_of(regime: str, strong: Path) -> list[str]:
    return WEAK if regime == OFF_THE_SHELF else [f"whiten:{strong / name}" for name in STRONG]


def read(teachers: Iterable[str], quality: Path) -> list[Embedded]:
    """Embeddings of all splits in the order of `emoji.load_split`."""
    lay_out(quality)
    splits = {split: find_items(quality / "images" / split) for split in ("val", "test")}
    train = find_items(quality / "images" / "all.csv")
    found = []
    for uri in teachers:
        whole, view = _embed(uri, train, quality / "embeddings", views=2)
        [val] = _embed(uri, splits["val"], quality / "embeddings-val", views=1)
        [test] = _embed(uri, splits["test"], quality / "embeddings-test", views=1)
        found.append(Embedded(whole, view, val, test))
    return found


def _embed(uri: str, items: list[Item], cache: Path, *, views: int) -> list[np.ndarray]:
    teacher = open_teacher(uri)
    folders = {p: store_folder(cache, teacher, precision=p) for p in ("bf16", "32")}
    precision = next((p for p, folder in folders.items() if folder.exists()), "32")
    folder = folders[precision]
    plan = ViewPlan()
    store = embed(items, teacher, folder, views=range(views), plan=plan, precision=precision)
    return [store.gather([item.id for item in items], view=view) for view in range(views)]
