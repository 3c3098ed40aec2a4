"""Normalise views on the device of a model, and apply their colours, as Pillow to a grey level.

`views.rendering` is the reference: it applies colours in the decoding threads. On a GPU the same
parameters are applied here to a whole batch, so that these threads only decode, crop and resize.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from whiten.views.rendering import BLUR_SIDE, Preprocess, View

_PASSES = 3  # box blurs that approximate a Gaussian, as in Pillow


def model_input(
    preprocess: Preprocess, pixels: npt.NDArray[np.uint8] | Tensor, device: torch.device
) -> Tensor:
    """Normalise views on the device that computes with them.

    Bytes travel there, a quarter of the floats, from pinned memory while it computes.

    Args:
        preprocess: of the model.
        pixels: (n, h, w, 3) uint8 RGB; a tensor is on the CPU or on `device`.
        device: where the model is.

    Returns:
        float32 of `Preprocess.normalize`, (n, 3, h, w) or (n, h, w, 3); on a CPU to the bit.
    """
    if device.type == "cpu":
        return torch.from_numpy(preprocess.normalize(np.asarray(pixels)))
    return normalized(preprocess, to_device(pixels, device))


def normalized(preprocess: Preprocess, pixels: Tensor) -> Tensor:
    """Normalise as `Preprocess.normalize`, where the pixels are."""
    std = torch.tensor(preprocess.std, device=pixels.device)
    mean = torch.tensor(preprocess.mean, device=pixels.device)
    ordered = pixels.flip(-1) if preprocess.channels == "bgr" else pixels
    out = ordered.float() * (preprocess.white / 255.0 / std) - mean / std
    return out.permute(0, 3, 1, 2) if preprocess.layout == "nchw" else out


def to_device(pixels: npt.NDArray[np.uint8] | Tensor, device: torch.device) -> Tensor:
    """Copy to a device; to a CUDA device while it computes."""
    if isinstance(pixels, np.ndarray):
        pixels = torch.from_numpy(np.require(pixels, requirements=["C", "W"]))
    if device.type == "cuda" and pixels.device.type == "cpu":
        pixels = pixels.pin_memory()
    return pixels.to(device, non_blocking=True)


def recolour(pixels: npt.NDArray[np.uint8], views: Sequence[View], device: torch.device) -> Tensor:
    """Colour, blur, solarise and flip views that were only cropped and resized.

    Args:
        pixels: (n, h, w, 3) RGB.
        views: per image; their boxes are ignored.
        device: where to compute.

    Returns:
        (n, h, w, 3) uint8 on the device, as from `views.render`: within a grey level on average,
            and within a few where hue changes or an edge is blurred.
    """
    x = to_device(pixels, device).permute(0, 3, 1, 2).float()
    for place in range(4):
        # Each image has its own order, so at each position every change applies to part of the
        # batch.
        for number, change in enumerate(_CHANGES):
            factors = [_factors(view)[number] for view in views]
            neutral = 0.0 if number == 3 else 1.0
            x = _apply(
                x,
                [
                    v.order[place] == number and f != neutral
                    for v, f in zip(views, factors, strict=True)
                ],
                change,
                factors,
            )
    x = _apply(x, [view.grayscale for view in views], lambda part, _: _gray(part).expand_as(part))
    x = _apply(x, [view.blur > 0 for view in views], _blur, [view.blur for view in views])
    x = _apply(x, [view.solarize for view in views], lambda part, _: _solarize(part))
    x = _apply(x, [view.flip for view in views], lambda part, _: part.flip(3))
    return x.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _factors(view: View) -> tuple[float, float, float, float]:
    return view.brightness, view.contrast, view.saturation, view.hue


def _apply(
    x: Tensor,
    chosen: Sequence[bool],
    change: Callable[[Tensor, Tensor], Tensor],
    factors: Sequence[float] | None = None,
) -> Tensor:
    """Change some images of a batch, each by its own factor."""
    if not any(chosen):
        return x
    rows = torch.tensor(chosen, device=x.device).nonzero()[:, 0]
    own = torch.tensor(factors or [0.0] * len(chosen), dtype=torch.float32, device=x.device)
    return x.index_copy(0, rows, change(x[rows], own[rows, None, None, None]))


def _blend(base: Tensor, x: Tensor, factor: Tensor) -> Tensor:
    """Blend as Pillow does: from the base through the image and beyond, in whole grey levels."""
    return (base + factor * (x - base)).clamp(0, 255).floor()


def _gray(x: Tensor) -> Tensor:
    """Compute (n, 1, h, w) luma in Pillow's integers."""
    r, g, b = x.to(torch.int32).unbind(1)
    luma: Tensor = (r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16
    return luma.float()[:, None]


def _brighten(x: Tensor, factor: Tensor) -> Tensor:
    return _blend(torch.zeros_like(x), x, factor)


def _contrast(x: Tensor, factor: Tensor) -> Tensor:
    mean = (_gray(x).mean(dim=(1, 2, 3), keepdim=True) + 0.5).floor()
    return _blend(mean, x, factor)


def _saturate(x: Tensor, factor: Tensor) -> Tensor:
    return _blend(_gray(x), x, factor)


def _turn(x: Tensor, hue: Tensor) -> Tensor:
    """Rotate the hue by whole 255ths of the circle, via HSV with one byte per channel."""
    top, low = x.amax(1), x.amin(1)
    span = (top - low).clamp(min=1)
    r, g, b = ((top - channel) / span for channel in x.unbind(1))
    h = torch.where(x[:, 0] == top, b - g, torch.where(x[:, 1] == top, 2 + r - b, 4 + g - r))
    h = ((h / 6 + 1).frac() * 255).floor()
    h = torch.where(top == low, 0.0, h)
    s = ((top - low) / top.clamp(min=1) * 255).floor() / 255
    h = (h + (hue[:, 0] * 255).trunc()).remainder(256) * 6 / 255
    sector = h.floor()
    f = h - sector
    p, q, t = ((top * (1 - s * part)).round() for part in (torch.ones_like(f), f, 1 - f))
    sector = (sector.long() % 6)[:, None]
    # Red, green and blue by sector of the circle.
    out = [(top, q, p, p, t, top), (t, top, top, q, p, p), (p, p, t, top, top, q)]
    return torch.cat([torch.stack(c, dim=1).gather(1, sector) for c in out], dim=1).clamp(0, 255)


def _blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Blur as Pillow's Gaussian: three box blurs per direction, with repeated edges."""
    n, channels, height, width = x.shape
    scale = math.sqrt(height * width) / BLUR_SIDE
    kernels = [_kernel(scale * s) for s in sigma[:, 0, 0, 0].tolist()]
    reach = max(len(k) for k in kernels) // 2
    padded = [F.pad(k, [reach - len(k) // 2] * 2) for k in kernels]
    weights = torch.stack(padded).to(x.device).repeat_interleave(channels, dim=0)
    x = x.reshape(1, n * channels, height, width)
    for axis in (3, 2):
        shape = (-1, 1, 1, 2 * reach + 1) if axis == 3 else (-1, 1, 2 * reach + 1, 1)
        pad = (reach, reach, 0, 0) if axis == 3 else (0, 0, reach, reach)
        padded_x = F.pad(x, pad, mode="replicate")
        x = F.conv2d(padded_x, weights.reshape(shape), groups=n * channels).round()
    return x.reshape(n, channels, height, width)


def _kernel(sigma: float) -> Tensor:
    """Return the kernel of three box blurs of a fractional radius, (2·reach + 1,).

    The radius is chosen for the Gaussian's variance (Gwosdek et al., "Theoretical foundations of
    Gaussian convolution by extended box filtering", SSVM 2011).
    """
    variance = sigma**2 / _PASSES
    whole = math.floor((math.sqrt(12 * variance + 1) - 1) / 2)
    edge = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance)
    edge /= 6 * (variance - (whole + 1) ** 2)
    box = torch.full((2 * whole + 3,), 1.0)
    box[0] = box[-1] = edge
    box /= box.sum()
    kernel = box
    for _ in range(_PASSES - 1):
        kernel = F.conv1d(kernel[None, None], box[None, None], padding=len(box) - 1)[0, 0]
    return kernel


def _solarize(x: Tensor) -> Tensor:
    return torch.where(x < 128, x, 255 - x)


_CHANGES = (_brighten, _contrast, _saturate, _turn)  # in the numbering of `View.order`
