"""Parts of an image."""

from __future__ import annotations

Box = tuple[float, float, float, float]
"""Left, top, right and bottom, in pixels."""
