"""Near-duplicates of a collection: find them, show them, and write a script that deletes them."""

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
