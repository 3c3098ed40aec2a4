"""Find and decode images. A bad file is skipped with its reason, and counted."""

from whiten.media.collection import Item, Items
from whiten.media.decoding import Box, decode, decode_scaled, upright_rgb
from whiten.media.finding import SUFFIXES, display_path, find_items
from whiten.media.naming import NameIndex, Names, name_codes
from whiten.media.reading import Skipped, Stamp, content_hash, read_bytes, stamp_of
from whiten.media.threads import ordered_map

__all__ = [
    "SUFFIXES",
    "Box",
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
    "find_items",
    "name_codes",
    "ordered_map",
    "read_bytes",
    "stamp_of",
    "upright_rgb",
]
