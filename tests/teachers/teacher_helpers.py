"""What tests of teachers share: pixels, textbook normalisation, weights unlike any start."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from pictures import photograph
from whiten.views.rendering import IMAGENET_MEAN, IMAGENET_STD, Preprocess, View, render


def make_pixels(side: int, n: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def to_input(pixels: np.ndarray, preprocess: Preprocess) -> Tensor:
    return normalise(pixels, preprocess.mean, preprocess.std)


def normalise(pixels: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """The textbook normalisation, apart from the library's own."""
    images = torch.tensor(pixels).permute(0, 3, 1, 2).float() / 255
    return (images - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def check_same(actual: np.ndarray, expected: Tensor) -> None:
    """`actual` is `expected`, L2-normalised."""
    assert actual.shape == expected.shape
    torch.testing.assert_close(
        torch.from_numpy(actual), F.normalize(expected, dim=1), atol=1e-4, rtol=0
    )


def make_image() -> Image.Image:
    """A wide, smooth photograph, so that two resamplings differ little."""
    return photograph(420, 300)


def check_same_view(preprocess: Preprocess, expected: Tensor) -> None:
    """Ours of `make_image` shows what a library's transform makes of it."""
    ours = to_input(render(make_image(), View(), preprocess)[None], preprocess)[0]
    assert ours.shape == expected.shape
    assert (ours - expected).abs().mean() < 0.02  # of values with a deviation of about 1


def random_state(module: nn.Module, seed: int) -> dict[str, Tensor]:
    """Weights that are unlike any initialisation, and keep activations in range."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: value + 0.02 * torch.randn(value.shape, generator=generator)
        if value.is_floating_point() and "running_var" not in name
        else value
        for name, value in module.state_dict().items()
    }


def save_model(module: nn.Module, path: Path, seed: int = 0) -> nn.Module:
    state = random_state(module, seed)
    module.load_state_dict(state)
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return module.eval()


class Explosive:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.mark),))


def shake(module: Any, seed: int = 0) -> Any:
    """Weights unlike any initialisation, in which biases and class tokens are not zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return module.eval()


def mean_colours(pixels: np.ndarray) -> Tensor:
    """(n, 3): the mean of ImageNet-normalised RGB."""
    colours = pixels.reshape(len(pixels), -1, 3).mean(1) / 255
    return torch.from_numpy((colours - IMAGENET_MEAN) / IMAGENET_STD).float()
