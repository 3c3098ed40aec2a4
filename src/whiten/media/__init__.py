"""Find and decode images. A bad file is skipped with its reason, and counted."""

from whiten.media.decoding import Box, decode, decode_scaled, upright_rgb
from whiten.media.finding import SUFFIXES, Item, display_path, find_items
from whiten.media.reading import Skipped, Stamp, content_hash, read_bytes, stamp_of
from whiten.media.threads import ordered_map

__all__ = [
    "SUFFIXES",
    "Box",
    "Item",
    "Skipped",
    "Stamp",
    "content_hash",
    "decode",
    "decode_scaled",
    "display_path",
    "find_items",
    "ordered_map",
    "read_bytes",
    "stamp_of",
    "upright_rgb",
]
