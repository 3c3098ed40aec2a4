"""How many images were embedded, and whether each has its own embedding."""

from __future__ import annotations

import numpy as np
import pytest

from whiten.embedding.encoder import Encoder
from whiten.index import Index


def count_embedded(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collects how many images each forward pass from now on sees."""
    counts: list[int] = []
    teacher = encoder.parts[0].teacher
    forward = teacher.forward

    def counted(inputs):  # type: ignore[no-untyped-def]
        counts.append(len(inputs))
        return forward(inputs)

    monkeypatch.setattr(teacher, "forward", counted)
    return counts


def paths_of(index: Index) -> list[str]:
    return [item.path for item in index.items(index.ids())]


def check_vectors(index: Index, encoder: Encoder) -> None:
    """Every image has its own embedding."""
    expected = encoder.embed(paths_of(index))
    np.testing.assert_allclose(index.vectors(index.ids()), expected, atol=1e-6)
