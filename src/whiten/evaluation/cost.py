"""Measure the cost of embedding an image: parameters, multiply-accumulates and time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from whiten.embedding.encoder import Encoder
from whiten.models.opening import for_many
from whiten.models.stored_model import Model, StoredModel

LATENCY_BATCH = 16
LARGE = 10_000  # images of a collection that is worth the fastest runtime

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Cost:
    """Cost of embedding one image.

    Attributes:
        params: number of parameters; None if unknown.
        macs: multiply-accumulates.
        ms_per_image: median forward time in float32 in batches of 16, without decoding.
    """

    params: int | None
    macs: int | None
    ms_per_image: float | None


def measure_cost(encoder: Encoder, *, repeats: int = 3) -> Cost:
    """Measure on this machine; the parts of a fused encoder run one after another."""
    costs = [_measure_teacher(part.teacher, repeats) for part in encoder.parts]
    return Cost(
        params=_sum([cost.params for cost in costs]),
        macs=_sum([cost.macs for cost in costs]),
        ms_per_image=_sum([cost.ms_per_image for cost in costs]),
    )


def _measure_teacher(teacher: Model, repeats: int) -> Cost:
    if isinstance(teacher, StoredModel):
        return Cost(None, None, None)
    teacher = for_many(teacher, LARGE)
    pixels = np.zeros((LATENCY_BATCH, *teacher.preprocess.size, 3), np.uint8)
    teacher.embed(pixels)
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        teacher.embed(pixels)
        times.append(time.perf_counter() - began)
    milliseconds = round(1000 * float(np.median(times)) / LATENCY_BATCH, 3)
    return Cost(teacher.params, teacher.count_macs(), milliseconds)


def _sum(numbers: Sequence[Number | None]) -> Number | None:
    """Return the sum, or None if a part is unknown."""
    known = [number for number in numbers if number is not None]
    return sum(known) if len(known) == len(numbers) else None
