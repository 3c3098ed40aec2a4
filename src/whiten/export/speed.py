"""The speed of each variant on this machine, compared with eager torch in float32."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np

from whiten.models.teacher import Teacher

BATCHES = (1, 16)
ROUNDS = 5
PAUSE = 0.02  # seconds for threads that spin after work to fall asleep
SECONDS = 0.05  # per turn


def measure_speeds(models: Mapping[str, Teacher]) -> dict[str, dict[str, float]]:
    """Measure images per second of each model by batch size, from rendered pixels to embeddings.

    The models take turns, and the best turn of each counts, to reduce the influence of other work
    on the machine.
    """
    speeds: dict[str, dict[str, float]] = {name: {} for name in models}
    for batch in BATCHES:
        times: dict[str, list[float]] = {name: [] for name in models}
        repeats = {name: _repeats(model, batch) for name, model in models.items()}
        for _ in range(ROUNDS):
            for name, model in models.items():
                time.sleep(PAUSE)
                times[name].append(_seconds(model, batch, repeats[name]))
        for name, found in times.items():
            speeds[name][str(batch)] = round(batch / min(found), 2)
    return speeds


def _repeats(model: Teacher, batch: int) -> int:
    """Return the number of calls that fill a turn; this also warms up the model."""
    _seconds(model, batch, 1)
    return max(1, round(SECONDS / max(_seconds(model, batch, 1), 1e-6)))


def _seconds(model: Teacher, batch: int, repeats: int) -> float:
    """Return the seconds of one call."""
    pixels = np.zeros((batch, *model.preprocess.size, 3), np.uint8)
    began = time.perf_counter()
    for _ in range(repeats):
        model.embed(pixels)
    return (time.perf_counter() - began) / repeats
