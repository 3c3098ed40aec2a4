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
from whiten.models.teacher import Teacher

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


_REPEATS = 3
_measured: dict[tuple[str, str, str], Cost] = {}  # in this process, by what computes


def measure_cost(encoder: Encoder) -> Cost:
    """Measure on this machine, each model once; the parts of a fused encoder run one by one."""
    costs = [_cost(part.teacher) for part in encoder.parts]
    return Cost(
        params=_sum([cost.params for cost in costs]),
        macs=_sum([cost.macs for cost in costs]),
        ms_per_image=_sum([cost.ms_per_image for cost in costs]),
    )


def _cost(model: Model) -> Cost:
    if isinstance(model, StoredModel):
        return Cost(None, None, None)
    model = for_many(model, LARGE)
    key = (model.fingerprint(), model.runtime, model.device_type)
    if key not in _measured:
        _measured[key] = _measure(model)
    return _measured[key]


def _measure(teacher: Teacher) -> Cost:
    pixels = np.zeros((LATENCY_BATCH, *teacher.preprocess.size, 3), np.uint8)
    teacher.embed(pixels)
    times = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        teacher.embed(pixels)
        times.append(time.perf_counter() - began)
    milliseconds = round(1000 * float(np.median(times)) / LATENCY_BATCH, 3)
    return Cost(teacher.params, teacher.count_macs(), milliseconds)


def _sum(numbers: Sequence[Number | None]) -> Number | None:
    """Return the sum, or None if a part is unknown."""
    known = [number for number in numbers if number is not None]
    return sum(known) if len(known) == len(numbers) else None
