"""Distil frozen image-embedding models into one small, fast student for visual search.

Names are imported on first use, so that `import whiten` is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from whiten._version import __version__ as __version__

if TYPE_CHECKING:
    from whiten import metrics
    from whiten.dedup.near_duplicates import near_duplicates
    from whiten.diagnosis.diagnose import diagnose
    from whiten.distillation.distill import distill
    from whiten.distillation.fusion import fuse
    from whiten.distillation.losses import distillation_loss
    from whiten.embedding.encoder import Encoder
    from whiten.embedding.opening import load
    from whiten.errors import WhitenError
    from whiten.evaluation.evaluate import evaluate
    from whiten.evaluation.videos import evaluate_videos
    from whiten.index.index import Index
    from whiten.models.exported import Exported
    from whiten.models.module import load_module
    from whiten.whitening.choosing import choose_whitening
    from whiten.whitening.whitener import Whitener

__all__ = [
    "Encoder",
    "Exported",
    "Index",
    "WhitenError",
    "Whitener",
    "choose_whitening",
    "diagnose",
    "distill",
    "distillation_loss",
    "evaluate",
    "evaluate_videos",
    "fuse",
    "load",
    "load_module",
    "metrics",
    "near_duplicates",
]

_HOMES = {
    "Encoder": "embedding.encoder",
    "Exported": "models.exported",
    "Index": "index.index",
    "WhitenError": "errors",
    "Whitener": "whitening.whitener",
    "choose_whitening": "whitening.choosing",
    "diagnose": "diagnosis.diagnose",
    "distill": "distillation.distill",
    "distillation_loss": "distillation.losses",
    "evaluate": "evaluation.evaluate",
    "evaluate_videos": "evaluation.videos",
    "fuse": "distillation.fusion",
    "load": "embedding.opening",
    "load_module": "models.module",
    "near_duplicates": "dedup.near_duplicates",
}


def __getattr__(name: str) -> Any:
    if name == "metrics":
        return import_module("whiten.metrics")
    if name not in _HOMES:
        raise AttributeError(f"module 'whiten' has no attribute {name!r}")
    return getattr(import_module(f"whiten.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
