"""Views are replayable, and every model sees the same crop in its own way."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from pictures import encode, photograph
from whiten.errors import ImageError
from whiten.views import rendering as views
from whiten.views.plan import TURNS, Colours, ViewPlan
from whiten.views.rendering import Preprocess, View, plan_view, render, render_bytes

PLAN = ViewPlan(seed=3)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape
    return float(np.abs(a.astype(np.float32) - b.astype(np.float32)).mean())


# --- planning ---------------------------------------------------------------------------------


def test_view_0_is_the_whole_image() -> None:
    assert plan_view(PLAN, "a.jpg", 0, (480, 320)) == View()
    image = photograph()
    whole = render(image, View(), Preprocess(size=(320, 480)))
    assert np.array_equal(whole, np.asarray(image))


def test_a_view_is_the_same_forever() -> None:
    view = plan_view(ViewPlan(seed=7), "cats/1.jpg", 2, (640, 480))
    assert view == plan_view(ViewPlan(seed=7), "cats/1.jpg", 2, (640, 480))
    assert view.box is not None
    # Stored embeddings depend on these numbers: if they change, every store is silently wrong.
    golden = (
        0.318823706458968,
        0.000000000000000,
        0.620570386630115,
        1.000000000000000,
        0.813560576085129,
        1.273342563726059,
        0.831468885110522,
    )
    found = (*view.box, view.brightness, view.contrast, view.saturation)
    assert found == pytest.approx(golden, abs=1e-12)
    assert view.flip is True


def test_a_view_depends_on_seed_id_and_number_and_on_no_other_size_than_shape() -> None:
    view = plan_view(PLAN, "a", 1, (640, 480))
    assert view == plan_view(PLAN, "a", 1, (320, 240))
    others = [
        plan_view(ViewPlan(seed=4), "a", 1, (640, 480)),
        plan_view(PLAN, "b", 1, (640, 480)),
        plan_view(PLAN, "a", 2, (640, 480)),
        plan_view(PLAN, "a1", 1, (640, 480)),
        plan_view(PLAN, "a", 11, (640, 480)),
    ]
    assert len({view, *others}) == 6


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (1, 1), (3000, 2), (2, 3000)])
def test_boxes_lie_inside_and_keep_to_the_plan(size: tuple[int, int]) -> None:
    for number in range(1, 400):
        view = plan_view(PLAN, "x", number, size)
        assert view.box is not None
        left, top, width, height = view.box
        assert left >= 0
        assert top >= 0
        assert width > 0
        assert height > 0
        assert left + width <= 1 + 1e-12
        assert top + height <= 1 + 1e-12
        for factor in (view.brightness, view.contrast):
            assert 0.7 <= factor <= 1.3
        if 1 not in (width, height):
            assert 0.35 <= width * height <= 1
            aspect = width * size[0] / (height * size[1])
            assert abs(math.log(aspect)) <= math.log(4 / 3) + 1e-9


def test_flips_grey_and_area_follow_their_probabilities() -> None:
    drawn = [plan_view(PLAN, f"{i}.jpg", 1, (100, 100)) for i in range(3000)]
    assert np.mean([v.flip for v in drawn]) == pytest.approx(0.5, abs=0.04)
    assert np.mean([v.saturation == 0 for v in drawn]) == pytest.approx(0.1, abs=0.025)
    areas = [v.box[2] * v.box[3] for v in drawn if v.box is not None]
    assert np.mean(areas) == pytest.approx(0.67, abs=0.03)
    never = dataclasses.replace(PLAN, flip=0.0, jitter=0.0, grayscale=0.0)
    view = plan_view(never, "a", 1, (100, 100))
    assert (view.flip, view.brightness, view.contrast, view.saturation) == (False, 1, 1, 1)


@pytest.mark.parametrize("fit", ["crop", "squash"])
@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
def test_turned_views_are_the_turned_image(size: tuple[int, int], fit: Any) -> None:
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (6, 9, 3), np.uint8))
    image = small.resize((90, 60), Image.Resampling.BICUBIC)
    preprocess = Preprocess(size=size, fit=fit)
    turned = [image, *(image.transpose(t) for t in (
        Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270,
        Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.TRANSPOSE,
        Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.TRANSVERSE,
    ))]  # fmt: skip
    found = [
        render(image, plan_view(TURNS, "a", number, image.size), preprocess) for number in range(8)
    ]
    wanted = [render(one, View(), preprocess) for one in turned]

    def apart(one: Any, other: Any) -> float:
        return float(np.abs(one.astype(int) - other.astype(int)).max())

    for number in range(8):
        assert apart(found[number], wanted[number]) <= 2, number


def test_the_plan_has_a_fingerprint_of_every_field() -> None:
    changed: dict[str, Any] = {
        "seed": 4,
        "scale": (0.3, 1.0),
        "ratio": 1.5,
        "flip": 0.4,
        "jitter": 0.2,
        "grayscale": 0.2,
        "whole": False,
        "colours": Colours(),
        "turns": True,
    }
    assert set(changed) == {f.name for f in dataclasses.fields(ViewPlan)}
    prints = {dataclasses.replace(PLAN, **{k: v}).fingerprint() for k, v in changed.items()}
    assert len({PLAN.fingerprint(), *prints}) == len(changed) + 1
    # Every store of random views holds this number.
    assert ViewPlan().fingerprint() == "72428e2f56453d881df36814e0dd1b8c"


# --- rendering --------------------------------------------------------------------------------


@pytest.mark.parametrize("fit", ["crop", "squash"])
@pytest.mark.parametrize("size", [(224, 224), (32, 96), (96, 32), (37, 53)])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_render_gives_the_size_asked_for(size: tuple[int, int], fit: Any, number: int) -> None:
    preprocess = Preprocess(size=size, fit=fit, crop_fraction=0.875)
    for shape in ((480, 320), (1, 1), (7, 300), (300, 1)):
        pixels = render(photograph(*shape), plan_view(PLAN, "a", number, shape), preprocess)
        assert pixels.shape == (*size, 3)
        assert pixels.dtype == np.uint8


def test_rounding_never_carries_the_fitted_box_over_the_edge() -> None:
    for size in ((37, 53), (53, 37), (224, 336), (100, 300)):
        preprocess = Preprocess(size=size)
        for width in range(1, 400, 7):
            for height in range(1, 400, 7):
                box = views._fitted_box((width, height), preprocess)
                assert box is not None
                assert 0 <= box[0] < box[2] <= width
                assert 0 <= box[1] < box[3] <= height
    # One of the shapes that rounding used to carry over.
    render(photograph(393, 197), View(), Preprocess(size=(37, 53)))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(640, 480), (481, 333), (97, 300), (60, 60)])
def test_the_crop_is_torchvisions(shape: tuple[int, int], interpolation: str) -> None:
    image = photograph(*shape)
    preprocess = Preprocess(size=(56, 56), crop_fraction=56 / 64, interpolation=interpolation)
    small = transforms.Resize(64, InterpolationMode(interpolation))(image)
    usual = np.asarray(transforms.CenterCrop(56)(small), np.float64)
    assert np.abs(render(image, View(), preprocess) - usual).mean() < 1


def test_crop_takes_the_centre_and_squash_takes_all() -> None:
    image = Image.new("RGB", (300, 100), "red")
    image.paste("lime", (100, 0, 200, 100))
    cropped = render(image, View(), Preprocess(size=(50, 50), interpolation="nearest"))
    assert (cropped == (0, 255, 0)).all()
    squashed = render(
        image, View(), Preprocess(size=(50, 50), fit="squash", interpolation="nearest")
    )
    assert (squashed == (0, 255, 0)).all(axis=2).mean() == pytest.approx(1 / 3, abs=0.03)


def test_flip_and_colour() -> None:
    image, preprocess = photograph(), Preprocess(size=(64, 64))
    plain = render(image, View(), preprocess)
    assert np.array_equal(render(image, View(flip=True), preprocess), plain[:, ::-1])
    grey = render(image, View(saturation=0.0), preprocess)
    assert np.array_equal(grey[..., 0], grey[..., 2])
    dark = render(image, View(brightness=0.5), preprocess)
    assert distance(dark, plain // 2) < 1
    flat = render(image, View(contrast=0.0), preprocess)
    assert flat.std() == 0


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_two_models_see_the_same_crop(number: int) -> None:
    image = photograph()
    view = plan_view(PLAN, "a", number, image.size)
    large = render(image, view, Preprocess(size=(192, 192)))
    small = render(image, view, Preprocess(size=(64, 64), fit="squash", crop_fraction=0.8))
    shrunk = np.asarray(Image.fromarray(large).resize((64, 64), Image.Resampling.BICUBIC))
    assert distance(small, shrunk) < 2
    other = render(image, plan_view(PLAN, "b", number, image.size), Preprocess(size=(64, 64)))
    assert distance(other, shrunk) > 10


def harsh(width: int, height: int) -> Image.Image:
    """Hard edges every 16 pixels: a shift by a fraction of one shows."""
    shape = (height // 16 + 1, width // 16 + 1, 3)
    blocks = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    return Image.fromarray(blocks.repeat(16, 0).repeat(16, 1)[:height, :width])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("number", range(4))
def test_a_shrunk_jpeg_shows_the_same_view(
    number: int, orientation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = Image.Exif()
    block[0x0112] = orientation
    data = encode(harsh(1025, 1601), "JPEG", quality=95, exif=block)
    preprocess = Preprocess(size=(32, 32))
    sizes, drawn = [], []
    original = views.render

    def spy(image: Image.Image, view: View, *rest: Any) -> np.ndarray:
        sizes.append(image.size)
        drawn.append(view)
        return original(image, view, *rest)

    monkeypatch.setattr(views, "render", spy)
    shrunk = render_bytes(data, PLAN, "a", number, preprocess)
    decode_scaled = views.decode_scaled
    monkeypatch.setattr(views, "decode_scaled", lambda d, min_side: decode_scaled(d, min_side=None))
    plain = render_bytes(data, PLAN, "a", number, preprocess)
    assert sorted(sizes[0]) == [129, 201]
    assert sorted(sizes[1]) == [1025, 1601]
    assert drawn[0] == drawn[1]
    assert distance(shrunk, plain) < 2


def test_a_shrunk_jpeg_is_never_smaller_than_the_model_needs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = encode(photograph(1600, 1200), "JPEG", quality=95)
    seen: list[float] = []
    original = views.render

    def spy(image: Image.Image, view: View, *rest: Any) -> np.ndarray:
        box = view.box or (0, 0, min(image.size) / image.size[0], min(image.size) / image.size[1])
        seen.append(min(box[2] * image.width, box[3] * image.height))
        return original(image, view, *rest)

    monkeypatch.setattr(views, "render", spy)
    for number in range(20):
        render_bytes(data, PLAN, "a", number, Preprocess(size=(64, 64)))
    assert min(seen) >= 63.9


def test_a_bad_file_is_an_image_error() -> None:
    with pytest.raises(ImageError):
        render_bytes(b"no image", PLAN, "a", 1, Preprocess())


# --- normalising ------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("channels", ["rgb", "bgr"])
@pytest.mark.parametrize("white", [1.0, 255.0])
def test_normalize_is_the_plain_formula(channels: Any, layout: Any, white: float) -> None:
    mean, std = (0.4 * white, 0.5 * white, 0.6 * white), (0.2, 0.3, 0.7)
    preprocess = Preprocess(channels=channels, layout=layout, white=white, mean=mean, std=std)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), dtype=np.uint8)
    given = pixels.copy()
    out = preprocess.normalize(pixels)
    assert out.dtype == np.float32
    assert np.array_equal(pixels, given)
    for channel in range(3):
        source = 2 - channel if channels == "bgr" else channel
        expected = (pixels[..., source] / 255.0 * white - mean[channel]) / std[channel]
        got = out[:, channel] if layout == "nchw" else out[..., channel]
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5 * white)
    assert torch.from_numpy(out).shape == ((2, 3, 5, 7) if layout == "nchw" else (2, 5, 7, 3))


def test_normalize_is_channels_last_in_memory() -> None:
    out = torch.from_numpy(Preprocess().normalize(np.zeros((2, 8, 8, 3), np.uint8)))
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_resized_changes_the_size_alone() -> None:
    assert Preprocess().resized(64) == Preprocess(size=(64, 64))
