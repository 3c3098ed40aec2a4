"""The best student that held-out images have seen, and how a run goes on from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

PATIENCE = 5  # epochs without a better student, after which training stops
_WORSE = 2  # epochs in a row that are worse than the best, after which it starts from it again
_SLOWER = 1 / 3  # learning rate after such a new start
_MOST_STARTS = 2

Floats = npt.NDArray[np.float64]


@dataclass
class Best:
    """The best student so far, and what became of the epochs after it.

    Attributes:
        model: its weights.
        step: the step that it was measured at; 0 is the start.
        precisions: what each held-out image found with it.
        start: what each held-out image found with the start.
        since: the step of the last new start from it.
        worse: the last epochs, in a row, that were worse.
        restarts: new starts from a best student, each at a third of the learning rate.
    """

    model: dict[str, Tensor]
    step: int
    precisions: list[float]
    start: list[float]
    since: int = 0
    worse: int = 0
    restarts: int = 0

    @classmethod
    def of(cls, state: dict[str, Any] | None) -> Best | None:
        """Read from a checkpoint's plain values."""
        return None if state is None else cls(**state)

    @property
    def score(self) -> float:
        return float(np.mean(self.precisions))

    @property
    def pace(self) -> float:
        """The factor of the learning rate."""
        return _SLOWER**self.restarts

    def see(self, step: int, precisions: Floats, model: dict[str, Tensor]) -> bool:
        """Measure the student after an epoch; True if training should start again from the best.

        A learning rate that suits distant images destroys what a student knows of common ones.
        """
        if precisions.mean() > self.score and is_gain(precisions, self.start):
            self.model, self.step, self.precisions = model, step, precisions.tolist()
            self.worse = 0
            return False
        self.worse = self.worse + 1 if is_gain(np.array(self.precisions), precisions) else 0
        if self.worse < _WORSE or self.restarts == _MOST_STARTS:
            return False
        self.since, self.worse, self.restarts = step, 0, self.restarts + 1
        return True

    def is_over(self, step: int, batches_per_epoch: int) -> bool:
        """Whether there was no better student for `PATIENCE` epochs."""
        return step - max(self.step, self.since) >= PATIENCE * batches_per_epoch


def is_gain(precisions: Floats, start: Sequence[float] | Floats) -> bool:
    """Whether a student beats another by two standard errors, image by image.

    Few held-out images can flatter a student that got worse.
    """
    difference = precisions - np.array(start)
    return bool(difference.mean() > 2 * difference.std() / len(difference) ** 0.5)
