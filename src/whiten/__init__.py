"""Distil frozen image-embedding models into one small, fast student for visual search.

The names below load what they need when they are first used, so that `import whiten` is cheap.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from whiten import metrics
    from whiten.choosing import choose_whitening
    from whiten.distill import distill
    from whiten.encoder import Encoder
    from whiten.errors import WhitenError
    from whiten.evaluate import evaluate
    from whiten.evaluate_videos import evaluate_videos
    from whiten.exported import Exported
    from whiten.fusion import fuse
    from whiten.index import Index
    from whiten.losses import distillation_loss
    from whiten.near_duplicates import near_duplicates
    from whiten.opening import load
    from whiten.student_module import load_module
    from whiten.whitening import Whitener

__all__ = [
    "Encoder",
    "Exported",
    "Index",
    "WhitenError",
    "Whitener",
    "choose_whitening",
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
    "Encoder": "whiten.encoder",
    "Exported": "whiten.exported",
    "Index": "whiten.index",
    "WhitenError": "whiten.errors",
    "Whitener": "whiten.whitening",
    "choose_whitening": "whiten.choosing",
    "distill": "whiten.distill",
    "distillation_loss": "whiten.losses",
    "evaluate": "whiten.evaluate",
    "evaluate_videos": "whiten.evaluate_videos",
    "fuse": "whiten.fusion",
    "load": "whiten.opening",
    "load_module": "whiten.student_module",
    "near_duplicates": "whiten.near_duplicates",
}


def __getattr__(name: str) -> Any:
    if name == "metrics":
        return import_module("whiten.metrics")
    if name not in _HOMES:
        raise AttributeError(f"module 'whiten' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


class _Package(ModuleType):
    """Keeps `whiten.distill` and `whiten.evaluate` the functions of that name.

    Importing a submodule binds it in its package, where it would replace the function.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
