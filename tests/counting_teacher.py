"""A small teacher that counts the images it sees, and a plain loop to compare with."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from whiten.datasets.collection import Item
from whiten.models.teacher import Teacher
from whiten.models.weights import hash_state
from whiten.views.plan import ViewPlan
from whiten.views.rendering import Preprocess, render_bytes

DIM = 8
SIDE = 16


class Counting(nn.Module):
    """A convolution and an average, which remembers how many images it has seen."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, DIM, 4, stride=4)
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            parameter.data.normal_(generator=generator)
        self.seen = 0

    def forward(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        return self.conv(images).abs().mean(dim=(2, 3))


def make_teacher(seed: int = 0) -> Teacher:
    module = Counting(seed)
    return Teacher(
        uri=f"python:tests:conv{seed}",
        name=f"conv{seed}",
        dim=DIM,
        preprocess=Preprocess(size=(SIDE, SIDE)),
        weights_hash=hash_state(module.state_dict()),
        forward=module,
        module=module,
    )


def seen(teacher: Teacher) -> int:
    assert isinstance(teacher.module, Counting)
    return teacher.module.seen


def plain(teacher: Teacher, items: Sequence[Item], view: int, plan: ViewPlan) -> np.ndarray:
    """One image after another, without the library's batches and threads."""
    rows = []
    for item in items:
        pixels = render_bytes(Path(item.path).read_bytes(), plan, item.id, view, teacher.preprocess)
        with torch.inference_mode():
            out = teacher.forward(torch.from_numpy(teacher.preprocess.normalize(pixels[None])))
        rows.append(F.normalize(out, dim=1)[0].numpy())
    return np.stack(rows)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def make_newer(path: str | Path, seconds: float = 60) -> None:
    later = time.time() + seconds
    os.utime(path, (later, later))


def overwrite(path: str | Path, colour: str) -> None:
    Image.new("RGB", (40, 32), colour).save(path)
    make_newer(path)


def spoil(images: Path) -> dict[str, str]:
    """Four bad files among the good ones, and the reasons that they are expected to have."""
    (images / "group0" / "0005.jpg").write_bytes(b"no image")
    (images / "group1" / "0005.png").touch()
    whole = (images / "group0" / "000.jpg").read_bytes()
    (images / "group1" / "zz.jpg").write_bytes(whole[: len(whole) // 2])
    (images / "group2" / "link.webp").symlink_to(images / "nowhere")
    return {
        "group0/0005.jpg": "not an image, or of an unknown format",
        "group1/0005.png": "empty file",
        "group1/zz.jpg": "damaged",
        "group2/link.webp": "no such file or directory",
    }
