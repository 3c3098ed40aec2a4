"""What embeddings lose in fewer bytes: a table of the storage kinds, measured on the user's images.

Embeddings enter; bytes and losses leave. The kinds are those of an index in a folder, which
`whiten index --storage` and `whiten compact --out` write.
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
