"""Measure the loss of embeddings stored in fewer bytes, on the user's images.

Takes embeddings; returns bytes and losses per storage kind. The kinds are those of an index in a
folder, which `whiten index --storage` and `whiten compact --out` write.
"""

from whiten.compact.table import Costs, measure_costs
from whiten.index.local.storage.codec import Codec, bytes_per_vector
from whiten.index.local.storage.kinds import default_kinds, fit
from whiten.index.local.storage.loss import Cost

__all__ = [
    "Codec",
    "Cost",
    "Costs",
    "bytes_per_vector",
    "default_kinds",
    "fit",
    "measure_costs",
]
