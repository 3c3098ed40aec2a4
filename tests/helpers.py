"""Small pictures, and a teacher that costs nothing, for tests that go the whole way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from whiten.storage import objects

FACTORY = '''
"""Teachers that see colours: the mean of each quarter of a 32 px image, mixed at random."""

import torch
from torch import nn

from whiten.views import Preprocess


def make(dim="12", seed="0"):
    layers = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, int(dim)))
    generator = torch.Generator().manual_seed(int(seed))
    for weights in layers.parameters():
        weights.data.normal_(generator=generator)
    return layers, Preprocess(size=(32, 32))
'''
TEACHER = "python:colour_teachers:make"


def write_factory(folder: Path) -> None:
    """Put the module of TEACHER into a folder; it must be on Python's path."""
    folder.mkdir(exist_ok=True)
    (folder / "colour_teachers.py").write_text(FACTORY)


def draw(seed: int, variant: int = 0, side: int = 32) -> Image.Image:
    """A pattern of colours; variants of one seed look alike."""
    pattern = np.random.default_rng(seed).integers(30, 226, (2, 2, 3))
    noise = np.random.default_rng([seed, variant]).integers(-25, 26, (2, 2, 3))
    blocks = (pattern + noise).astype(np.uint8).repeat(side // 2, 0).repeat(side // 2, 1)
    return Image.fromarray(blocks)


def write_image(path: Path, seed: int, variant: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    draw(seed, variant).save(path)
    return path


def write_groups(folder: Path, sizes: dict[str, int]) -> Path:
    """`folder/GROUP/N.png`, as many of each group as `sizes` says."""
    for seed, (group, size) in enumerate(sizes.items()):
        for n in range(size):
            write_image(folder / group / f"{n}.png", seed, n)
    return folder


def write_card(folder: Path, seed: int, count: int = 2) -> Path:
    """A camera's card: DSC0001.png and so on, as on every other card."""
    for number in range(1, count + 1):
        write_image(folder / f"DSC{number:04d}.png", seed + number)
    return folder


def forget_objects() -> None:
    """Forget which objects of storage services were listed, and what was read of them."""
    objects._listed.clear()
    objects._blocks.forget(lambda key: True)
