"""Images at their own size, at one scale and several."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from pictures import encode, picture
from whiten.errors import ImageError, TeacherError, WhiteningError
from whiten.media.boxes import Box
from whiten.models.multiscale import MULTI, SINGLE, see_own_size
from whiten.models.registry import open_teacher
from whiten.models.stored_model import StoredModel, require_network
from whiten.models.teacher import Teacher
from whiten.views.own_size import render_own_size
from whiten.views.rendering import Preprocess
from whiten.whitening.whitener import Whitener


def test_a_jpeg_is_decoded_at_its_own_size_before_it_is_shrunk() -> None:
    data = encode(picture(0, 640, 480), "JPEG")
    shrunk = Image.open(io.BytesIO(data)).convert("RGB")
    shrunk.thumbnail((100, 100), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(render_own_size(data, longest=100), shrunk)


# --- rendering --------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (300, 7), (101, 99)])
def test_the_longest_side_is_limited_as_by_pil(size: tuple[int, int]) -> None:
    image = picture(1, *size)
    shrunk = image.copy()
    shrunk.thumbnail((90, 90), Image.Resampling.LANCZOS)
    found = render_own_size(encode(image), longest=90) if min(shrunk.size) >= 4 else None
    if found is None:
        with pytest.raises(ImageError, match="90x2 pixels are too few"):
            render_own_size(encode(image), longest=90)
        return
    assert max(found.shape[:2]) == 90
    np.testing.assert_array_equal(found, np.asarray(shrunk))


def test_nothing_is_enlarged() -> None:
    image = picture(2, 60, 40)
    np.testing.assert_array_equal(render_own_size(encode(image), longest=1024), np.asarray(image))
    cut = render_own_size(encode(image), longest=60, box=Box(*(10, 5, 40, 25)))
    np.testing.assert_array_equal(cut, np.asarray(image)[5:25, 10:40])


def test_a_cut_keeps_the_scale_of_the_whole_image() -> None:
    image = picture(3, 400, 200)
    cut = render_own_size(encode(image), longest=100, box=Box(*(100, 50, 300, 150)))
    expected = image.crop((100, 50, 300, 150))
    expected.thumbnail((50, 50), Image.Resampling.LANCZOS)  # 200 of 400 pixels at a quarter
    assert cut.shape == (25, 50, 3)
    np.testing.assert_array_equal(cut, np.asarray(expected))


def test_boxes_are_rounded_and_clipped_or_refused() -> None:
    image = picture(4, 60, 40)
    cut = render_own_size(encode(image), box=Box(*(9.6, -3.0, 99.0, 20.4)))
    np.testing.assert_array_equal(cut, np.asarray(image)[:20, 10:])
    with pytest.raises(ImageError, match="outside of the image, which has 60 × 40 pixels"):
        render_own_size(encode(image), box=Box(*(60, 0, 80, 20)))


def test_boxes_are_in_pixels_as_they_are_stored() -> None:
    image = picture(5, 60, 40)
    exif = Image.Exif()
    exif[0x0112] = 6  # on its side
    cut = render_own_size(encode(image, exif=exif), box=Box(*(0, 0, 50, 10)))
    np.testing.assert_array_equal(cut, np.asarray(image)[:10, :50])


# --- scales -----------------------------------------------------------------------------


def network(pool: int = 1, **changes: Any) -> Teacher:
    generator = torch.Generator().manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, padding=1),
        nn.AdaptiveAvgPool2d(pool),
        nn.Flatten(),
    )
    for weights in layers.parameters():
        weights.data.normal_(generator=generator)
    teacher = Teacher("python:net", "net", 12, Preprocess(size=(32, 32)), "hash", layers)
    return dataclasses.replace(teacher, **{"module": layers, **changes})


@pytest.fixture
def pixels() -> np.ndarray:
    return np.asarray(picture(6, 91, 64))[None]


@pytest.fixture
def whitener() -> Whitener:
    rows = np.random.default_rng(0).standard_normal((200, 12)) * np.linspace(1, 3, 12)
    return Whitener(5).fit(rows + 0.5)


@pytest.mark.parametrize("whitened", [False, True])
@pytest.mark.parametrize("scales", [SINGLE, MULTI])
def test_scales_are_as_published(
    pixels: np.ndarray, whitener: Whitener, scales: tuple[float, ...], whitened: bool
) -> None:
    teacher = network()
    assert teacher.module is not None
    model = see_own_size(teacher, scales=scales, whitener=whitener if whitened else None)
    found = model.embed(pixels)[0]

    # By hand, in float64, one step after the other.
    net = network().module
    assert net is not None
    net = net.double()
    mean, std = (
        torch.tensor(v).view(1, 3, 1, 1) for v in (teacher.preprocess.mean, teacher.preprocess.std)
    )
    image = (torch.from_numpy(pixels.copy()).permute(0, 3, 1, 2).double() / 255 - mean) / std
    total = np.zeros(5 if whitened else 12)
    for scale in scales:
        size = (int(64 * scale), int(91 * scale))
        resized = image
        if scale != 1:
            resized = F.interpolate(image, scale_factor=scale, mode="bilinear", align_corners=False)
        assert tuple(resized.shape[2:]) == size
        with torch.no_grad():
            one = net(resized)[0].numpy()
        one /= np.linalg.norm(one)
        if whitened:
            one = whitener.projection_ @ (one - whitener.mean_)
            one /= np.linalg.norm(one)
        total += one / len(scales)
    np.testing.assert_allclose(found, total / np.linalg.norm(total), atol=2e-5)
    assert model.dim == len(total)


def test_fingerprints_tell_scales_and_whitening_apart(whitener: Whitener) -> None:
    teacher = network()
    other = Whitener(5).fit(np.random.default_rng(1).standard_normal((200, 12)))
    models = [
        teacher,
        see_own_size(teacher),
        see_own_size(teacher, scales=MULTI),
        see_own_size(teacher, whitener=whitener),
        see_own_size(teacher, whitener=other),
    ]
    assert len({model.fingerprint() for model in models}) == len(models)
    assert see_own_size(network()).fingerprint() == models[1].fingerprint()


def test_models_of_one_size_are_refused() -> None:
    with pytest.raises(TeacherError, match=r"not take 97x67 pixels .*224.*convolutional"):
        see_own_size(open_teacher("timm:vit_tiny_patch16_224?pretrained=0"))
    fixed = nn.Sequential(nn.Flatten(), nn.Linear(32 * 32 * 3, 12))
    with pytest.raises(TeacherError, match="not take 97x67 pixels"):
        see_own_size(network(forward=fixed, module=fixed))
    patches = nn.Sequential(nn.PixelUnshuffle(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(TeacherError, match="not take 97x67 pixels"):  # though multiples of 4
        see_own_size(network(forward=patches, module=patches, dim=48))
    unpooled = network(pool=2)  # (n, 48), not (n, 12)
    with pytest.raises(TeacherError, match="one embedding per image"):
        see_own_size(unpooled)


def test_an_image_that_is_too_small_is_one_line() -> None:
    small = nn.Sequential(nn.AvgPool2d(33), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    model = see_own_size(network(forward=small, module=small))
    with pytest.raises(TeacherError, match=r"not take 32x40 pixels .*too small"):
        model.embed(np.zeros((1, 32, 40, 3), np.uint8))


def test_what_computes_nothing_or_takes_channels_last_is_refused() -> None:
    with pytest.raises(TeacherError, match="computes none"):
        require_network(StoredModel("store:s", "s", 12, Preprocess(), "hash", {}))
    with pytest.raises(TeacherError, match="channels-first"):
        see_own_size(network(preprocess=Preprocess(size=(32, 32), layout="nhwc")))


def test_another_models_whitening_is_refused() -> None:
    rows = np.random.default_rng(0).standard_normal((200, 7))
    with pytest.raises(WhiteningError, match="fitted on another model"):
        see_own_size(network(), whitener=Whitener(5).fit(rows))
