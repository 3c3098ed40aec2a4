"""Near-duplicates of a collection: find them, show them, and write a script that deletes them.

Takes images, videos or stored embeddings; returns groups, a page and a script that is not run.
"""

from whiten.dedup.finding import Deduplication, Group, Member, deduplicate
from whiten.dedup.sources import Collection, open_collection
from whiten.dedup.threshold import Calibration

__all__ = [
    "Calibration",
    "Collection",
    "Deduplication",
    "Group",
    "Member",
    "deduplicate",
    "open_collection",
]
