"""When a run that was granted a time must end."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from whiten.runs.budget import parse_time
from whiten.runs.spec import DistillSpec

RESERVE = 0.05  # of the time: for the student's files and the report, after training

clock: Callable[[], float] = time.monotonic  # counts on through all processes of a machine


@dataclass
class Deadline:
    """The end of a run's training by the clock.

    Attributes:
        seconds: time that training and all before it may take; None is without end.
        began: clock at the begin of the run, earlier parts of an interrupted one included.
    """

    seconds: float | None
    began: float

    @classmethod
    def of(cls, spec: DistillSpec, began: float) -> Deadline:
        """Return the deadline of a run; none if it repeats a run that recorded where it stopped."""
        if spec.budget is None or spec.stop_step is not None:
            return cls(None, began)
        return cls((1 - RESERVE) * parse_time(spec.budget), began)

    @property
    def spent(self) -> float:
        """Seconds since the begin."""
        return clock() - self.began

    def leaves(self, seconds: float) -> bool:
        """Whether that much time is left."""
        return self.seconds is None or self.spent + seconds <= self.seconds
