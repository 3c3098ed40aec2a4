"""The comparison of two pictures, which evaluations use as well: see `whiten.media.pixels`."""

from whiten.media.pixels import SAME, Pictures

__all__ = ["SAME", "Pictures"]
