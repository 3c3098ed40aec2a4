"""Checkpoints laid out as the published ones are, filled by a fixed rule instead of training."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whiten.models.teacher import Teacher

GOLDEN = Path(__file__).parent.parent / "golden"
FILES: dict[str, Any] = json.loads(
    gzip.decompress((GOLDEN / "teacher_checkpoints.json.gz").read_bytes())
)

Tensors = dict[str, Tensor]


def golden_outputs() -> dict[str, np.ndarray]:
    """`input` (2, 3, 96, 128), and each teacher's embedding of it with GeM power 3."""
    with np.load(GOLDEN / "teacher_outputs.npz") as arrays:
        return dict(arrays)


def fill_rule(key: str, shape: tuple[int, ...]) -> Tensor:
    """The value of a tensor in the checkpoints that the golden outputs were made with."""
    x = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape)
    if key.endswith("num_batches_tracked"):
        return torch.tensor(1)
    if key.endswith("running_var"):
        x = 1 + 0.25 * np.abs(x)
    elif len(shape) >= 2:
        x = x * np.sqrt(2 / np.prod(shape[1:]))
    elif key.endswith("weight"):
        x = 0.5 + 0.1 * x
    else:
        x = 0.1 * x
    return torch.from_numpy(np.asarray(x, np.float32))


def blank(key: str, shape: tuple[int, ...]) -> Tensor:
    """A zero of any shape that takes no space, for files whose values do not matter."""
    return torch.zeros(()).expand(shape)


def published_tensors(name: str, value: Callable[..., Tensor] = fill_rule) -> Tensors:
    shapes = {key: tuple(shape) for key, shape in FILES[name]["shapes"].items()}
    # The classifier of 81,313 landmarks has no part in the embedding.
    return {k: (blank if k == "desc_cls.weight" else value)(k, s) for k, s in shapes.items()}


def write_published(name: str, folder: Path, tensors: Tensors, **beside: Any) -> Path:
    """Save tensors as the published file of a teacher, under its own name."""
    facts = FILES[name]
    path = folder / facts["file"]
    torch.save({**facts.get("top", {}), **beside, facts["tensors"]: tensors}, path)
    return path


def embed_raw(teacher: Teacher, images: Tensor) -> Tensor:
    with torch.inference_mode():
        return teacher.forward(images)


def check_close(actual: np.ndarray | Tensor, expected: np.ndarray | Tensor) -> None:
    """To 1e-5 of the largest value."""
    actual, expected = torch.as_tensor(actual), torch.as_tensor(expected)
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


def batch_norm(x: Tensor, tensors: dict[str, Tensor], key: str) -> Tensor:
    out = (x - tensors[f"{key}.running_mean"]) / (tensors[f"{key}.running_var"] + 1e-5).sqrt()
    if f"{key}.weight" in tensors:
        out = out * tensors[f"{key}.weight"] + tensors[f"{key}.bias"]
    return out
