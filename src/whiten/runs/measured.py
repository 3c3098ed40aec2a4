"""What a run measured on its held-out images: the names of its starts, and their scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

AS_IT_IS, WHITENED = "start", "start, whitened"  # what a run has to beat


def best_starts(measured: Mapping[str, Any]) -> dict[str, float]:
    """The scores of a run's start, of the best whitening of it, and of the start it took."""
    scores: dict[str, float] = measured.get("scores", {})
    starts = {AS_IT_IS: scores[AS_IT_IS]} if AS_IT_IS in scores else {}
    whitened = [score for name, score in scores.items() if name.startswith(WHITENED)]
    if whitened:
        starts[WHITENED] = max(whitened)
    if measured.get("start") in scores:
        starts[measured["start"]] = scores[measured["start"]]
    return starts
