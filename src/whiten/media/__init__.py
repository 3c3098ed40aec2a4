"""Find and decode images and videos. A bad file is skipped with its reason, and counted.

The names below load what they need when they are first used: decoding needs Pillow alone,
collections need pyarrow too.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from whiten.media.collection import Item, Items
    from whiten.media.decoding import Box, decode, decode_scaled, upright_rgb
    from whiten.media.finding import SUFFIXES, display_path, find_items, find_videos
    from whiten.media.frames import Extraction, extract_frames, find_or_extract
    from whiten.media.naming import NameIndex, Names, name_codes
    from whiten.media.reading import Skipped, Stamp, content_hash, read_bytes, stamp_of
    from whiten.media.threads import ordered_map
    from whiten.media.video import MAX_FRAMES, sample_frames

__all__ = [
    "MAX_FRAMES",
    "SUFFIXES",
    "Box",
    "Extraction",
    "Item",
    "Items",
    "NameIndex",
    "Names",
    "Skipped",
    "Stamp",
    "content_hash",
    "decode",
    "decode_scaled",
    "display_path",
    "extract_frames",
    "find_items",
    "find_or_extract",
    "find_videos",
    "name_codes",
    "ordered_map",
    "read_bytes",
    "sample_frames",
    "stamp_of",
    "upright_rgb",
]

_HOMES = {
    "MAX_FRAMES": "video",
    "SUFFIXES": "finding",
    "Box": "decoding",
    "Extraction": "frames",
    "Item": "collection",
    "Items": "collection",
    "NameIndex": "naming",
    "Names": "naming",
    "Skipped": "reading",
    "Stamp": "reading",
    "content_hash": "reading",
    "decode": "decoding",
    "decode_scaled": "decoding",
    "display_path": "finding",
    "extract_frames": "frames",
    "find_items": "finding",
    "find_or_extract": "frames",
    "find_videos": "finding",
    "name_codes": "naming",
    "ordered_map": "threads",
    "read_bytes": "reading",
    "sample_frames": "video",
    "stamp_of": "reading",
    "upright_rgb": "decoding",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'whiten.media' has no attribute {name!r}")
    value = getattr(import_module(f"whiten.media.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
