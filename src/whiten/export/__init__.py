"""A student -> a folder that embeds without torch.

What that costs in exactness and gains in speed is measured first, and what is not good enough is
not written.
"""

from whiten.export.exporting import Exports, export

__all__ = ["Exports", "export"]
