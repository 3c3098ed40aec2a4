"""Views of an image as pure functions of its content, a plan, its id and a view number.

Bytes enter; pixels of the size that a model wants leave, the same on every machine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from whiten.views.rendering import Preprocess

__all__ = ["Preprocess"]


def __getattr__(name: str) -> Any:
    """Load `Preprocess` when it is used: the plans of views need neither NumPy nor Pillow."""
    if name != "Preprocess":
        raise AttributeError(f"module 'whiten.views' has no attribute {name!r}")
    from whiten.views.rendering import Preprocess

    return Preprocess
