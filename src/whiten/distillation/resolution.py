"""The input sizes that suit a student, and the size of its images."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np

from whiten.datasets.collection import Items
from whiten.errors import ImageError
from whiten.media.decoding import stored_size
from whiten.media.reading import read_bytes
from whiten.models.student import StudentNet, build_student
from whiten.models.student_folder import StudentConfig
from whiten.models.uri import parse_uri
from whiten.runs.spec import DistillSpec

_STEP = 32  # pixels between candidate sizes of networks without patches
_SMALLEST = 64  # pixels of the smallest candidate, unless the images are smaller
_LOOKED_AT = 64  # images


def candidate_sizes(
    spec: DistillSpec, net: StudentNet, config: StudentConfig, own_side: int
) -> list[int]:
    """Return the input sides that a student may get, ascending: none is beyond its native one.

    Args:
        config: of the student at its native size, or at the given one.
        own_side: shorter side of the images; larger inputs would only enlarge them.
    """
    native = config.preprocess.size[0]
    step = _size_step(net)
    if has_given_size(spec) or step is None:
        return [native]
    most = min(native, max(own_side, step))
    sizes = [*range(step, most, step), *([native] if native <= most else [])]
    large = [size for size in sizes if size >= _SMALLEST]
    return large or sizes[-1:] or [native]


def has_given_size(spec: DistillSpec) -> bool:
    """Whether the user gave the student's size, or it has one as a trained student."""
    parsed = parse_uri(spec.student)
    return spec.size is not None or parsed.scheme == "whiten" or "size" in dict(parsed.options)


def native_size(spec: DistillSpec, config: StudentConfig) -> int:
    """Return the input side that the student's backbone was made for.

    Args:
        config: of the student at any size.
    """
    parsed = parse_uri(spec.student)
    if parsed.scheme == "whiten" or not has_given_size(spec):
        return config.preprocess.size[0]
    options = {name: text for name, text in parsed.options if name != "size"}
    uri = type(parsed)(parsed.scheme, parsed.target, tuple(options.items()))
    _, own = build_student(uri, dim=spec.dim, pool=spec.pooling, pretrained=False)
    return own.preprocess.size[0]


def _size_step(net: StudentNet) -> int | None:
    """Return what input sides must be multiples of; None if the network has one size."""
    backbone: Any = net.backbone
    patches = getattr(backbone, "patch_embed", None)
    if patches is None:
        return _STEP
    if not hasattr(backbone, "pos_embed"):
        return None  # its windows fit one size
    side: int = patches.patch_size[0]
    return side


def drawn(items: Items, seed: int) -> Items:
    """Draw a few of the items, in their order."""
    rows = np.random.default_rng(seed).permutation(len(items))[:_LOOKED_AT]
    return items.take(np.sort(rows))


def own_side(items: Items) -> int:
    """Return the median of the shorter sides of images, in pixels."""
    sides = []
    for item in items:
        try:
            sides.append(min(stored_size(read_bytes(item.path))))
        except ImageError:
            continue
    return int(statistics.median(sides)) if sides else _SMALLEST
