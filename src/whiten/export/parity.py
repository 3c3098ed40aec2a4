"""Agreement of an exported student's embeddings with torch's, and its limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from whiten.datasets.collection import Item
from whiten.datasets.task import Task, folder_task
from whiten.errors import ConfigError
from whiten.evaluation.evaluate import evaluate_task
from whiten.utils.arrays import Vectors

LEAST_COSINE = {"fp32": 0.9999, "fp16": 0.999, "bf16": 0.99}  # per image
_NEIGHBOURS = 5
_LEAST_IMAGES = 4 * _NEIGHBOURS  # below this, most images are neighbours


@dataclass(frozen=True)
class Parity:
    """Agreement of exported embeddings with torch's, on the same held-out images.

    Attributes:
        cosine, lowest_cosine: mean and minimum.
        centred, lowest_centred: the same after subtracting torch's mean embedding from both.
            Embeddings share a direction that makes all cosines high, so these tell more. None for a
            single image.
        map: retrieval mAP of the exported embeddings; None if it could not be measured.
        map_lost: torch's mAP minus `map`.
    """

    cosine: float
    lowest_cosine: float
    centred: float | None = None
    lowest_centred: float | None = None
    map: float | None = None
    map_lost: float | None = None


@dataclass(frozen=True)
class Truth:
    """The ground truth for measuring retrieval.

    Attributes:
        task: relevant images per query; None if there are too few images.
        by: `groups`, or `neighbours`: without groups, the nearest images in torch.
        map: mAP of torch's embeddings.
    """

    task: Task | None
    by: str
    map: float | None


def find_truth(items: Sequence[Item], embeddings: Vectors) -> Truth:
    """Take the groups of the held-out images as ground truth, else torch's nearest neighbours.

    Args:
        embeddings: (n, d) float32 embeddings from torch.
    """
    try:
        task = folder_task(items)
    except ConfigError:  # too few groups
        if len(items) < _LEAST_IMAGES:
            return Truth(None, "none", None)
        task, by = _neighbours(items, embeddings), "neighbours"
    else:
        by = "groups"
    return Truth(task, by, mean_precision(task, embeddings))


def mean_precision(task: Task, embeddings: Vectors) -> float:
    """Compute the mAP of a task whose queries are part of its gallery."""
    rows = {id(item): row for row, item in enumerate(task.gallery)}
    queries = embeddings[[rows[id(query)] for query in task.queries]]
    return evaluate_task(task, queries, embeddings).figures["map"].value


def _neighbours(items: Sequence[Item], embeddings: Vectors) -> Task:
    similarities = embeddings @ embeddings.T
    np.fill_diagonal(similarities, -np.inf)
    nearest = np.argsort(-similarities, axis=1, kind="stable")[:, :_NEIGHBOURS]
    itself = [np.asarray([row], np.int64) for row in range(len(items))]
    return Task(list(items), list(items), list(nearest.astype(np.int64)), itself)


def compare(reference: Vectors, exported: Vectors, truth: Truth) -> Parity:
    """Compare (n, d) float32 embeddings with torch's, both with rows L2-normalised."""
    cosines = _cosines(reference, exported)
    centred = None
    if len(reference) > 1:
        mean = reference.mean(axis=0)
        centred = _cosines(reference - mean, exported - mean)
    found = None if truth.task is None else mean_precision(truth.task, exported)
    lost = None if found is None or truth.map is None else truth.map - found
    return Parity(
        cosine=float(cosines.mean()),
        lowest_cosine=float(cosines.min()),
        centred=None if centred is None else float(centred.mean()),
        lowest_centred=None if centred is None else float(centred.min()),
        map=found,
        map_lost=lost,
    )


def _cosines(one: Vectors, other: Vectors) -> npt.NDArray[np.float64]:
    """Compute (n,) cosines of the rows in double precision; 0 if a row is zero."""
    a, b = one.astype(np.float64), other.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    products: npt.NDArray[np.float64] = np.einsum("nd,nd->n", a, b)
    np.divide(products, lengths, out=products, where=lengths > 0)
    return products


def reason_to_refuse(
    precision: str, parity: Parity, *, by: str, int8_floor: float, int8_loss: float
) -> str:
    """Return why an export is not exact enough; "" if it is.

    Args:
        by: ground truth of the mAP, see `Truth`.
        int8_floor: minimum mean-centred cosine of int8, on average.
        int8_loss: maximum loss of mAP for int8, if images have groups.
    """
    if precision != "int8":
        least = LEAST_COSINE[precision]
        if parity.lowest_cosine >= least:
            return ""
        return (
            f"its lowest cosine to torch is {parity.lowest_cosine:.5f}, below {least}: export "
            "another precision"
        )
    found = parity.cosine if parity.centred is None else parity.centred
    figures = f"cosine {parity.cosine:.4f}" + (
        "" if parity.map_lost is None else f", mAP lost {parity.map_lost:.4f}"
    )
    if found < int8_floor:
        return (
            f"its mean-centred cosine to torch is {found:.4f}, below the floor {int8_floor:g} "
            f"({figures}): leave int8 out, or lower --int8-floor"
        )
    if by == "groups" and parity.map_lost is not None and parity.map_lost > int8_loss:
        return (
            f"it loses {parity.map_lost:.4f} of the mAP, more than {int8_loss:g} (mean-centred "
            f"cosine {found:.4f}): leave int8 out, or raise --int8-loss"
        )
    return ""
