"""Replayable views, and the preprocessing of each model.

A view is a pure function of (image, plan, image id, view number). So a teacher's embedding of a
view can be computed once and stored, and the student later sees the same crop, in its own size and
normalisation.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from whiten.errors import ConfigError
from whiten.media.boxes import Box
from whiten.media.decoding import decode_scaled
from whiten.utils.hashing import fingerprint
from whiten.views.plan import Colours, ViewPlan

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
BLUR_SIDE = 224  # input side that a view's blur refers to

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class Preprocess:
    """The preprocessing that a model expects.

    Attributes:
        size: (height, width) in pixels.
        fit: `crop` takes the centred part with the input's aspect ratio, `squash` stretches the
            whole image.
        crop_fraction: for `crop`, the part of the shorter side that is kept (timm's crop_pct).
        interpolation: nearest, bilinear, bicubic or lanczos.
        mean, std: per channel in the model's channel order, for pixels in 0..`white`.
        white: the value of full brightness before `mean` is subtracted.
        channels: rgb or bgr.
        layout: nchw or nhwc.
    """

    size: tuple[int, int] = (224, 224)
    fit: Literal["crop", "squash"] = "crop"
    crop_fraction: float = 1.0
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    white: float = 1.0
    channels: Literal["rgb", "bgr"] = "rgb"
    layout: Literal["nchw", "nhwc"] = "nchw"

    def fingerprint(self) -> str:
        facts = dataclasses.asdict(self)
        # Increment the number when the cropping changes.
        return fingerprint(facts if self.fit == "squash" else [2, facts])

    @classmethod
    def from_mapping(cls, facts: dict[str, Any]) -> Preprocess:
        """Build from the fields as in JSON, lists for tuples; `check_types` validates the rest."""
        own: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in facts.items()}
        return cls(**own)

    def resized(self, side: int) -> Preprocess:
        return dataclasses.replace(self, size=(side, side))

    def fitted(self, fit: str) -> Preprocess:
        """Return the same preprocessing with another `fit`.

        Raises:
            ConfigError: `fit` is neither crop nor squash.
        """
        if fit not in ("crop", "squash"):
            raise ConfigError(f"fit={fit} must be crop or squash")
        return dataclasses.replace(self, fit=fit)  # type: ignore[arg-type]

    def normalize(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Normalise (n, h, w, 3) uint8 RGB -> float32 input, (n, 3, h, w) or (n, h, w, 3).

        `nchw` output is a channels-last view of memory: the fastest layout for convolutions on CPUs
        and GPUs, and the one in which images are decoded.
        """
        n, height, width, _ = pixels.shape
        std = np.asarray(self.std, np.float32)
        ordered = pixels[..., ::-1] if self.channels == "bgr" else pixels
        # Whole rows at a time: loops over the three channels take five times as long.
        rows = ordered.reshape(n * height, width * 3)
        out: npt.NDArray[np.float32] = rows.astype(np.float32)
        out *= np.tile(np.float32(self.white / 255.0) / std, width)
        out -= np.tile(np.asarray(self.mean, np.float32) / std, width)
        out = out.reshape(n, height, width, 3)
        return out.transpose(0, 3, 1, 2) if self.layout == "nchw" else out


@dataclass(frozen=True)
class View:
    """The parameters of one view.

    Attributes:
        box: left, top, width and height as fractions of the upright image; None is the whole
            image, fitted the model's own way.
        flip: mirrored left to right.
        quarters: quarter turns to the left, after that.
        brightness, contrast, saturation: factors, 1 changes nothing.
        hue: turn of the colour circle, in -0.5..0.5.
        order: order in which brightness, contrast, saturation and hue (0 to 3) are changed.
        grayscale: colour is dropped, after these.
        blur: sigma of a Gaussian in pixels of a 224 × 224 input, after that; 0 is none.
        solarize: values of 128 and more are inverted, last.
    """

    box: tuple[float, float, float, float] | None = None
    flip: bool = False
    quarters: int = 0
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    order: tuple[int, ...] = (0, 1, 2, 3)
    grayscale: bool = False
    blur: float = 0.0
    solarize: bool = False


def plan_view(plan: ViewPlan, item_id: str, number: int, size: tuple[float, float]) -> View:
    """Draw view `number` of an image: a pure function of its arguments.

    Args:
        item_id: the image's id in its collection.
        number: 0 is the whole image, unchanged, unless the plan draws it too.
        size: (width, height) of the upright image; only its aspect ratio matters.
    """
    if not plan.is_random(number):
        return View()
    if plan.turns:
        return View(flip=number >= 4, quarters=number % 4)
    u = _uniforms(plan.seed, item_id, number, 9 if plan.whole else _RANDOM_CROP + 11)
    if not plan.whole:
        box = _redrawn_crop(plan, u[:_RANDOM_CROP], size[0] / size[1])
        view = View(box=box, flip=u[_RANDOM_CROP] < plan.flip)
        return _coloured(view, plan.colours, number, u[_RANDOM_CROP + 1 :])
    area = plan.scale[0] + u[0] * (plan.scale[1] - plan.scale[0])
    width, height = _crop_sides(area, u[1], plan.ratio, size[0] / size[1])
    width, height = min(1.0, width), min(1.0, height)
    is_gray = u[5] < plan.grayscale
    return View(
        box=(u[2] * (1 - width), u[3] * (1 - height), width, height),
        flip=u[4] < plan.flip,
        brightness=1 + (2 * u[6] - 1) * plan.jitter,
        contrast=1 + (2 * u[7] - 1) * plan.jitter,
        saturation=0.0 if is_gray else 1 + (2 * u[8] - 1) * plan.jitter,
    )


_TRIES = 10  # of torchvision's RandomResizedCrop
_RANDOM_CROP = 4 * _TRIES  # number of draws


def _uniforms(seed: int, item_id: str, number: int, n: int) -> list[float]:
    """Draw `n` numbers in [0, 1) for a view; a longer draw starts with the same numbers."""
    key = f"{seed}\0{item_id}\0{number}".encode()
    digest = int.from_bytes(hashlib.blake2b(key, digest_size=16).digest(), "little")
    # Computed from Philox's raw stream, which is specified, so that views are the same under every
    # NumPy release, which Generator's methods do not guarantee.
    raw = np.random.Philox(key=digest).random_raw(n)
    return [int(r >> np.uint64(11)) / (1 << 53) for r in raw]


def _crop_sides(area: float, u: float, ratio: float, image_aspect: float) -> tuple[float, float]:
    """Return width and height, as fractions, of a crop with log-uniform aspect in pixels."""
    aspect = math.exp((2 * u - 1) * math.log(ratio))
    return math.sqrt(area * aspect / image_aspect), math.sqrt(area / aspect * image_aspect)


def _redrawn_crop(
    plan: ViewPlan, u: Sequence[float], image_aspect: float
) -> tuple[float, float, float, float]:
    """Return the first of ten crops that fits, else the largest central one of an allowed aspect.

    As in torchvision's RandomResizedCrop, which the published code uses.
    """
    for start in range(0, _RANDOM_CROP, 4):
        area = plan.scale[0] + u[start] * (plan.scale[1] - plan.scale[0])
        width, height = _crop_sides(area, u[start + 1], plan.ratio, image_aspect)
        if width <= 1 and height <= 1:
            return (u[start + 2] * (1 - width), u[start + 3] * (1 - height), width, height)
    width = min(1.0, plan.ratio / image_aspect)
    height = min(1.0, plan.ratio * image_aspect)
    return ((1 - width) / 2, (1 - height) / 2, width, height)


def _coloured(view: View, colours: Colours | None, number: int, u: Sequence[float]) -> View:
    """Add the changes of colour and sharpness, given ten draws."""
    if colours is None:
        return view
    if u[0] < colours.probability:
        orders = list(itertools.permutations(range(4)))
        view = dataclasses.replace(
            view,
            order=orders[int(u[1] * len(orders))],
            brightness=1 + (2 * u[2] - 1) * colours.brightness,
            contrast=1 + (2 * u[3] - 1) * colours.contrast,
            saturation=1 + (2 * u[4] - 1) * colours.saturation,
            hue=(2 * u[5] - 1) * colours.hue,
        )
    low, high = colours.sigma
    side = number % 2
    return dataclasses.replace(
        view,
        grayscale=u[6] < colours.grayscale,
        blur=low + u[8] * (high - low) if u[7] < colours.blur[side] else 0.0,
        solarize=u[9] < colours.solarize[side],
    )


def render(
    image: Image.Image, view: View, preprocess: Preprocess, picture: Box | None = None
) -> npt.NDArray[np.uint8]:
    """Crop, resize and colour an upright RGB image: (h, w, 3) uint8, RGB, not normalised.

    Args:
        picture: region of `image` that holds the picture, in pixels; by default all of it.
    """
    if view.quarters % 2:  # the model's size is that of the turned image
        preprocess = dataclasses.replace(preprocess, size=preprocess.size[::-1])
    height, width = preprocess.size
    left, top, right, bottom = picture or (0.0, 0.0, *image.size)
    size = (right - left, bottom - top)
    part = _fitted_box(size, preprocess) if view.box is None else _pixels(view.box, size)
    box = (left + part[0], top + part[1], min(left + part[2], right), min(top + part[3], bottom))
    # One antialiased resampling straight from the source; `reducing_gap` first shrinks huge
    # images by an integer factor, to the same result within a grey level.
    out = image.resize(
        (width, height), RESAMPLING[preprocess.interpolation], box=box, reducing_gap=3.0
    )
    out = _recoloured(out, view)
    if view.flip:
        out = out.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    # Four times as fast as `np.asarray(out)`, which copies twice.
    pixels = np.frombuffer(out.tobytes(), np.uint8).reshape(height, width, 3)
    return np.rot90(pixels, view.quarters) if view.quarters else pixels


def _recoloured(image: Image.Image, view: View) -> Image.Image:
    """Change colours in the order of the published code: jitter, grey, blur, solarise."""
    for number in view.order:
        if number == 3:
            image = _turned(image, view.hue)
            continue
        enhance, factor = (
            (ImageEnhance.Brightness, view.brightness),
            (ImageEnhance.Contrast, view.contrast),
            (ImageEnhance.Color, view.saturation),
        )[number]
        if factor != 1.0:
            image = enhance(image).enhance(factor)
    if view.grayscale:
        image = image.convert("L").convert("RGB")
    if view.blur:
        sigma = view.blur * math.sqrt(image.width * image.height) / BLUR_SIDE
        image = image.filter(ImageFilter.GaussianBlur(sigma))
    return ImageOps.solarize(image) if view.solarize else image


def _turned(image: Image.Image, hue: float) -> Image.Image:
    """Rotate the hue by a fraction of the colour circle, in its 256 steps."""
    if hue == 0:
        return image
    steps = int(hue * 255)
    h, s, v = image.convert("HSV").split()
    return Image.merge("HSV", (h.point([(i + steps) % 256 for i in range(256)]), s, v)).convert(
        "RGB"
    )


def render_bytes(
    data: bytes,
    plan: ViewPlan,
    item_id: str,
    number: int,
    preprocess: Preprocess,
    *,
    is_coloured: bool = True,
) -> npt.NDArray[np.uint8]:
    """Decode a file's content no larger than the view needs, and render the view.

    Args:
        is_coloured: if False, the view is only cropped and resized; `on_device.recolour` does the
            rest.

    Raises:
        ImageError: the content cannot be decoded.
    """
    side = max(preprocess.size)
    if not plan.is_random(number):
        need = side / preprocess.crop_fraction
    else:  # the smallest crop must still be at least as large as the input
        need = side / math.sqrt(plan.scale[0] / plan.ratio)
    image, picture = decode_scaled(data, min_side=math.ceil(need))
    size = (picture[2] - picture[0], picture[3] - picture[1])
    view = plan_view(plan, item_id, number, size)
    return render(image, view if is_coloured else View(view.box), preprocess, picture)


def _fitted_box(size: tuple[float, float], preprocess: Preprocess) -> Box:
    width, height = size
    if preprocess.fit == "squash":
        return Box(0.0, 0.0, width, height)
    # As in torchvision and timm: resized so that the crop fits, cropped at whole pixels.
    crop = preprocess.size[::-1]
    covered = [math.floor(side / preprocess.crop_fraction + 1e-6) for side in crop]
    if covered[0] * height >= covered[1] * width:
        resized = (covered[0], max(covered[1], int(covered[0] * height / width)))
    else:
        resized = (max(covered[0], int(covered[1] * width / height)), covered[1])
    left, top = (round((r - c) / 2) for r, c in zip(resized, crop, strict=True))
    x, y = width / resized[0], height / resized[1]
    right, bottom = min((left + crop[0]) * x, width), min((top + crop[1]) * y, height)
    return Box(left * x, top * y, right, bottom)


def _pixels(box: tuple[float, float, float, float], size: tuple[float, float]) -> Box:
    """Convert left, top, width and height as fractions to a box in pixels."""
    left, top, width, height = box
    return Box(
        left * size[0],
        top * size[1],
        min((left + width) * size[0], size[0]),
        min((top + height) * size[1], size[1]),
    )
