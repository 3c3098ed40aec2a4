"""Find and decode images and videos. A bad file is skipped with its reason, and counted."""

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
