"""Views that are coloured on the device look as Pillow colours them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from whiten.views.on_device import recolour
from whiten.views.plan import ViewPlan
from whiten.views.rendering import Preprocess, View, plan_view, render

PLAN = ViewPlan.named("paper-frames", seed=5)
CPU = torch.device("cpu")


def photographs(n: int, side: int = 96) -> list[Image.Image]:
    noise = np.random.default_rng(0).integers(0, 256, (n, 7, 9, 3), dtype=np.uint8)
    return [Image.fromarray(one).resize((side, side), Image.Resampling.BICUBIC) for one in noise]


def both(views: list[View], side: int = 96) -> tuple[np.ndarray, np.ndarray]:
    """Coloured on the device, and by Pillow."""
    preprocess = Preprocess(size=(side, side), fit="squash")
    images = photographs(len(views), side)
    plain = np.stack([np.asarray(image) for image in images])
    reference = [render(image, v, preprocess) for image, v in zip(images, views, strict=True)]
    return recolour(plain, views, CPU).numpy(), np.stack(reference)


EXACT = {
    "nothing": {},
    "flip": {"flip": True},
    "darker": {"brightness": 0.63},
    "brighter": {"brightness": 1.37},
    "less contrast": {"contrast": 0.61},
    "more contrast": {"contrast": 1.39},
    "less saturation": {"saturation": 0.82},
    "more saturation": {"saturation": 1.18},
    "grey": {"grayscale": True},
    "solarised": {"solarize": True},
    "in another order": {"order": (2, 1, 3, 0), "saturation": 1.2, "contrast": 0.7},
}


@pytest.mark.parametrize("changed", EXACT.values(), ids=EXACT.keys())
def test_grey_levels_are_pillows(changed: dict[str, Any]) -> None:
    ours, theirs = both([View(**changed)] * 6)
    difference = np.abs(ours.astype(int) - theirs)
    # float32 sums fall on the other side of a whole number now and then.
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.002


@pytest.mark.parametrize("hue", [-0.1, -0.003, 0.003, 0.04, 0.1, 0.4])
def test_hues_are_pillows(hue: float) -> None:
    ours, theirs = both([View(hue=hue)] * 6)
    difference = np.abs(ours.astype(int) - theirs)
    assert (difference > 1).mean() < 0.002
    assert difference.max() <= 8


@pytest.mark.parametrize("sigma", [0.1, 0.3, 0.7, 1.2, 2.0])
@pytest.mark.parametrize("side", [96, 448])
def test_a_blur_is_pillows(sigma: float, side: int) -> None:
    ours, theirs = both([View(blur=sigma)] * 2, side)
    difference = np.abs(ours.astype(int) - theirs)
    assert difference.max() <= 3
    assert difference.mean() < 0.6


@pytest.mark.parametrize("number", [0, 1])
def test_a_batch_of_the_papers_views(number: int) -> None:
    views = [
        dataclasses.replace(plan_view(PLAN, f"{i}", number, (1, 1)), box=None) for i in range(64)
    ]
    ours, theirs = both(views)
    difference = np.abs(ours.astype(int) - theirs)
    # Where a value crosses 128 in between, solarising turns a level into many.
    assert np.median(difference.reshape(64, -1).mean(1)) < 0.5
    assert difference.mean() < 0.8
    assert ours.dtype == np.uint8 and ours.flags["C_CONTIGUOUS"]


def test_the_input_stays_as_it_was() -> None:
    pixels = np.stack([np.asarray(image) for image in photographs(2)])
    before = pixels.copy()
    recolour(pixels, [View(brightness=0.5), View(flip=True)], CPU)
    assert np.array_equal(pixels, before)
