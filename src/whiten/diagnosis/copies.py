"""Count the copies among images: files of equal content, and images that nearly equal another."""

from __future__ import annotations

import heapq
from collections import defaultdict

import numpy as np

from whiten.datasets.collection import Items
from whiten.dedup.near_duplicates import Forest, range_search
from whiten.dedup.pair_similarity import VectorSimilarity, usable_rows
from whiten.errors import ImageError
from whiten.media.decoding import decode_scaled
from whiten.media.pixels import Pictures
from whiten.media.reading import read_bytes, stamp_of
from whiten.utils.arrays import Vectors
from whiten.utils.hashing import content_hash

ALIKE = 0.9  # similarity of the unwhitened fusion from which pixels are compared
MOST = 2000  # pairs whose pixels are compared, the most similar ones


def exact_copies(items: Items) -> int:
    """Count the images whose file has the content of an earlier one; unreadable ones count not.

    Only files of equal size are read, and of equal content the first is decoded.
    """
    by_size: dict[int, list[str]] = defaultdict(list)
    for item in items:
        if (stamp := stamp_of(item.path)) is not None:
            by_size[stamp.size].append(item.path)
    copies = 0
    for paths in by_size.values():
        if len(paths) > 1:
            contents: dict[str, list[str]] = defaultdict(list)
            for path in paths:
                contents[_digest(path)].append(path)
            equal = (same for same in contents.values() if len(same) > 1)
            copies += sum(len(same) - 1 for same in equal if _is_image(same[0]))
    return copies


def _digest(path: str) -> str:
    try:
        return content_hash(read_bytes(path))
    except ImageError:
        return ""


def _is_image(path: str) -> bool:
    try:
        decode_scaled(read_bytes(path), min_side=1)
    except ImageError:
        return False
    return True


def near_copies(items: Items, vectors: Vectors) -> int:
    """Count the images that nearly equal an earlier one: both teachers and pixels say so.

    Args:
        items: images of different content.
        vectors: (n, d) their fused embeddings, L2-normalised.
    """
    usable = usable_rows(vectors)  # stores of earlier versions hold embeddings of zeros
    items, vectors = items.take(usable), vectors[usable]
    pairs = (
        (float(value), int(one), int(other))
        for ones, others, values in range_search(VectorSimilarity(vectors), ALIKE)
        for one, other, value in zip(ones, others, values, strict=True)
    )
    pictures, forest = Pictures(), Forest(len(items))
    same = [
        (one, other)
        for _, one, other in heapq.nlargest(MOST, pairs)
        if pictures.same(items[one].path, items[other].path)
    ]
    if not same:
        return 0
    ones, others = np.array(same).T
    forest.join(ones, others)
    return sum(len(group) - 1 for group in forest.groups())
