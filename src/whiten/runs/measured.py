"""Scores of a run's starts on its held-out images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

AS_IT_IS, WHITENED = "start", "whitened start"  # names of the scores that a run should beat


def best_starts(measured: Mapping[str, Any]) -> dict[str, float]:
    """Return the scores of the start, of its best whitening, and of the start that was taken."""
    scores: dict[str, float] = measured.get("scores", {})
    starts = {AS_IT_IS: scores[AS_IT_IS]} if AS_IT_IS in scores else {}
    whitened = [score for name, score in scores.items() if name.startswith(WHITENED)]
    if whitened:
        starts[WHITENED] = max(whitened)
    if measured.get("start") in scores:
        starts[measured["start"]] = scores[measured["start"]]
    return starts
