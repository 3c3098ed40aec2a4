"""Embeddings in fewer bytes, and what each codec costs in mAP.

Embeddings enter; codes, and a table of bytes and losses, leave.
"""

from whiten.compact.codec import Codec, bytes_per_vector
from whiten.compact.folder import Compact, Hit, open_compact, write_compact
from whiten.compact.kinds import default_kinds, fit
from whiten.compact.table import Cost, Costs, measure_costs

__all__ = [
    "Codec",
    "Compact",
    "Cost",
    "Costs",
    "Hit",
    "bytes_per_vector",
    "default_kinds",
    "fit",
    "measure_costs",
    "open_compact",
    "write_compact",
]
