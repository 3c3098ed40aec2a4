"""The paper's two view plans: what is drawn, how often, and that it looks as torchvision's."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageOps
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as tv

from counting_teacher import make_teacher
from pictures import photograph
from whiten.datasets.finding import find_items
from whiten.embedding.embed import embed, store_folder
from whiten.errors import StoreError
from whiten.views.plan import DRAWN, Colours, ViewPlan
from whiten.views.rendering import Preprocess, View, plan_view, render

IMAGES, FRAMES = ViewPlan.named("paper-images", seed=3), ViewPlan.named("paper-frames", seed=3)
GOLDEN = (
    0.286056431914181,
    0.047053996874615,
    0.625342166540692,
    0.901617126397651,
    1.175112304766248,
    0.663196321620316,
    0.957028799560062,
    -0.019702442011238,
    0.000000000000000,
)
GOLDEN_CHOICES = ((1, 2, 3, 0), True, False, False)
PREPROCESS = Preprocess(size=(224, 224), fit="squash")


def drawn(plan: ViewPlan, number: int, n: int = 4000) -> list[View]:
    return [plan_view(plan, f"{i}.jpg", number, (640, 480)) for i in range(n)]


def share(flags: list[bool]) -> float:
    return float(np.mean(flags))


# --- what is drawn ----------------------------------------------------------------------------


def test_no_view_is_the_whole_image() -> None:
    for plan in (IMAGES, FRAMES):
        views = [plan_view(plan, "a.jpg", number, (640, 480)) for number in range(4)]
        assert all(view.box is not None for view in views)
        assert len(set(views)) == 4
        assert views == [plan_view(plan, "a.jpg", number, (320, 240)) for number in range(4)]


def test_images_are_cropped_and_flipped_and_nothing_else() -> None:
    for view in drawn(IMAGES, 0, 300):
        assert view == View(box=view.box, flip=view.flip)


def test_a_published_view_is_the_same_forever() -> None:
    # Stored embeddings depend on these numbers: if they change, every store is silently wrong.
    view = plan_view(FRAMES, "cats/1.jpg", 1, (640, 480))
    assert view.box is not None
    numbers = (*view.box, view.brightness, view.contrast, view.saturation, view.hue, view.blur)
    assert numbers == pytest.approx(GOLDEN, abs=1e-12)
    assert (view.order, view.flip, view.grayscale, view.solarize) == GOLDEN_CHOICES


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (100, 100), (1000, 100), (10, 1000)])
def test_crops_are_distributed_as_torchvisions(size: tuple[int, int]) -> None:
    boxes = np.array([plan_view(IMAGES, f"{i}", 1, size).box for i in range(3000)])
    scale = 20  # torchvision rounds to pixels
    image = Image.new("L", (size[0] * scale, size[1] * scale))
    theirs = np.array(
        [RandomResizedCrop.get_params(image, [0.4, 1.0], [3 / 4, 4 / 3]) for _ in range(3000)]
    ) / [image.height, image.width, image.height, image.width]
    theirs = theirs[:, [1, 0, 3, 2]]
    assert boxes.min() >= 0
    assert (boxes[:, :2] + boxes[:, 2:]).max() <= 1 + 1e-12
    for quantile in (0.05, 0.25, 0.5, 0.75, 0.95):
        ours = np.quantile(boxes, quantile, axis=0)
        np.testing.assert_allclose(ours, np.quantile(theirs, quantile, axis=0), atol=0.03)


def test_a_crop_that_never_fits_is_the_largest_central_one() -> None:
    box = plan_view(IMAGES, "a", 1, (3000, 2)).box
    assert box is not None
    left, top, width, height = box
    assert (top, height) == (0, 1)
    assert width * 3000 / 2 == pytest.approx(4 / 3)
    assert left == pytest.approx((1 - width) / 2)


@pytest.mark.slow
def test_even_and_odd_frames_change_as_often_as_published() -> None:
    for number, blurred, solarized in ((0, 1.0, 0.0), (2, 1.0, 0.0), (1, 0.1, 0.2), (3, 0.1, 0.2)):
        views = drawn(FRAMES, number)
        assert share([v.blur > 0 for v in views]) == pytest.approx(blurred, abs=0.02)
        assert share([v.solarize for v in views]) == pytest.approx(solarized, abs=0.02)
        assert share([v.grayscale for v in views]) == pytest.approx(0.2, abs=0.02)
        assert share([v.flip for v in views]) == pytest.approx(0.5, abs=0.03)
        jittered = [v for v in views if v.brightness != 1]
        assert len(jittered) / len(views) == pytest.approx(0.8, abs=0.02)
        for name, most in (("brightness", 0.4), ("contrast", 0.4), ("saturation", 0.2)):
            factors = np.array([getattr(v, name) for v in jittered])
            assert (factors.min(), factors.max()) == pytest.approx((1 - most, 1 + most), abs=0.01)
            assert factors.mean() == pytest.approx(1, abs=0.02)
        hues = np.array([v.hue for v in jittered])
        assert (hues.min(), hues.max()) == pytest.approx((-0.1, 0.1), abs=0.01)
        orders = [v.order for v in jittered]
        assert len(set(orders)) == 24
        assert share([order[0] == 3 for order in orders]) == pytest.approx(0.25, abs=0.03)
    sigmas = np.array([v.blur for v in drawn(FRAMES, 0)])
    assert (sigmas.min(), sigmas.max()) == pytest.approx((0.1, 2.0), abs=0.01)
    assert sigmas.mean() == pytest.approx(1.05, abs=0.03)


def test_only_frames_are_asymmetric() -> None:
    assert (FRAMES.is_asymmetric, IMAGES.is_asymmetric) == (True, False)
    symmetric = Colours(blur=(0.5, 0.5), solarize=(0.1, 0.1))
    assert not dataclasses.replace(FRAMES, colours=symmetric).is_asymmetric


# --- how it looks -----------------------------------------------------------------------------


def published(image: Image.Image, view: View) -> Image.Image:
    """The published transforms with these parameters, by torchvision and Pillow."""
    changes: list[Any] = [
        lambda x: tv.adjust_brightness(x, view.brightness),
        lambda x: tv.adjust_contrast(x, view.contrast),
        lambda x: tv.adjust_saturation(x, view.saturation),
        lambda x: tv.adjust_hue(x, view.hue),
    ]
    for number in view.order if view.brightness != 1 else ():
        image = changes[number](image)
    if view.grayscale:
        image = tv.rgb_to_grayscale(image, num_output_channels=3)
    if view.blur:
        image = image.filter(ImageFilter.GaussianBlur(view.blur))
    if view.solarize:
        image = ImageOps.solarize(image)
    return tv.hflip(image) if view.flip else image


@pytest.mark.parametrize("number", [0, 1])
def test_a_view_looks_as_torchvision_makes_it(number: int) -> None:
    image = photograph(224, 224)
    for i in range(60):
        view = dataclasses.replace(plan_view(FRAMES, f"{i}", number, image.size), box=None)
        expected = np.asarray(published(image, view))
        found = render(image, view, PREPROCESS)
        assert np.array_equal(found, expected)


def test_blur_is_in_proportion_to_the_input() -> None:
    image = photograph(448, 448)
    view = View(blur=2.0)
    large = render(image, view, PREPROCESS.resized(448))
    small = render(image, view, PREPROCESS)
    halved = np.asarray(Image.fromarray(large).resize((224, 224), Image.Resampling.BICUBIC))
    assert np.abs(halved.astype(int) - small).mean() < 1
    sharp = render(image, View(), PREPROCESS)
    assert np.abs(sharp.astype(int) - small).mean() > 1


# --- in a store -------------------------------------------------------------------------------


def write_photographs(folder: Path) -> Path:
    for number in range(3):
        photograph(60 + number, 50).save(folder / f"{number}.png")
    return folder


def test_random_views_never_pass_for_whole_images(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    items = find_items(write_photographs(tmp_path / "images"))
    assert IMAGES.fingerprint().startswith(DRAWN)
    embed(items, make_teacher(), tmp_path / "random", plan=IMAGES)
    with pytest.raises(StoreError, match="another view plan"):
        embed(items, make_teacher(), tmp_path / "random")
    embed(items, make_teacher(), tmp_path / "whole")
    with pytest.raises(StoreError, match="another view plan"):
        embed(items, make_teacher(), tmp_path / "whole", plan=IMAGES)


def test_plans_lie_apart_in_a_cache(tmp_path: Path) -> None:
    teacher = make_teacher()
    folders = [store_folder(tmp_path, teacher, augment=name) for name in (None, "paper-images")]
    assert store_folder(tmp_path, teacher, augment="light") == folders[0]
    assert folders[1].name == folders[0].name + "-paper-images"


def test_decoding_keeps_enough_pixels_for_view_0(monkeypatch: pytest.MonkeyPatch) -> None:
    from whiten.views import rendering as views

    asked: list[int] = []

    def decode(data: bytes, *, min_side: int) -> Any:
        asked.append(min_side)
        return photograph(224, 224), (0.0, 0.0, 224.0, 224.0)

    monkeypatch.setattr(views, "decode_scaled", decode)
    for number in (0, 1):
        views.render_bytes(b"", IMAGES, "a", number, PREPROCESS)
    assert asked == [math.ceil(224 / math.sqrt(0.4 * 3 / 4))] * 2
