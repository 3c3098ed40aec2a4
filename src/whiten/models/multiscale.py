"""Embed images of any size, at one or several scales.

As published for landmarks (Radenović et al., TPAMI 2019; Ma et al., AAAI 2024): the normalised
input is resized by bilinear interpolation; the embedding of each scale is L2-normalised and, with a
whitening, whitened and normalised again; then all are averaged and normalised.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from whiten.errors import TeacherError, WhitenError
from whiten.models.teacher import Teacher, first_line
from whiten.whitening.whitener import Whitener

SINGLE = (1.0,)
MULTI = (1.0, 2**-0.5, 0.5)
_PROBES = ((97, 67), (67, 97))  # heights and widths that no patch size divides


def see_own_size(
    teacher: Teacher, *, scales: Sequence[float] = SINGLE, whitener: Whitener | None = None
) -> Teacher:
    """Return the teacher for images of any size.

    Args:
        teacher: a network that takes any input size, as convolutional ones do.
        scales: resize factors.
        whitener: applied at each scale to L2-normalised embeddings.

    Returns:
        A teacher whose fingerprint includes scales and whitening.

    Raises:
        TeacherError: the network takes only its own input size.
        WhiteningError: the whitening was fitted on another model.
    """
    teacher = teacher.in_torch()  # its graph has a fixed size
    if teacher.preprocess.layout != "nchw" or teacher.takes_pixels:
        raise TeacherError(
            f"{teacher.uri} does not take channels-first images: images of several sizes need a "
            "convolutional model of torch"
        )
    usual = tuple(scales) in (SINGLE, MULTI)  # whose stores have six digits
    written = (f"{scale:.6g}" if usual else repr(float(scale)) for scale in scales)
    readout = f"{teacher.readout};scales={','.join(written)}"
    if whitener is not None:
        readout += f";whitening={whitener.fingerprint()}"
    # A torch `Teacher`, whatever the given one computes with: torch resizes the scales.
    own = [entry.name for entry in dataclasses.fields(Teacher) if entry.init]
    facts = {name: getattr(teacher, name) for name in own}
    facts["forward"] = partial(_describe, teacher, tuple(scales), whitener)
    facts["dim"] = teacher.dim if whitener is None else len(whitener.projection_)
    seeing = Teacher(**facts | {"readout": readout})
    seeing.traced = seeing  # graphs have a fixed size
    for height, width in _PROBES:
        seeing.embed(np.zeros((1, height, width, 3), np.uint8))
    return seeing


def _describe(
    teacher: Teacher,
    scales: Sequence[float],
    whitener: Whitener | None,
    images: Tensor,
) -> Tensor:
    """Embed (n, 3, h, w) normalised input -> (n, d) sum over scales; the caller normalises."""

    def at(scale: float) -> Tensor:
        resized = images if scale == 1 else _resize(images, scale)
        embeddings = F.normalize(_forward(teacher, resized).float(), dim=1)
        if whitener is None:
            return embeddings
        return F.normalize(whitener.transform(embeddings), dim=1)

    return torch.stack([at(scale) for scale in scales]).sum(dim=0)


def _forward(teacher: Teacher, images: Tensor) -> Tensor:
    try:
        return teacher.forward_tensor(images)
    except WhitenError:
        raise
    except Exception as error:  # networks raise anything for a wrong size
        height, width = images.shape[2:]
        raise TeacherError(
            f"{teacher.uri} does not take {height}x{width} pixels ({first_line(error)}): images at "
            "their own size need a convolutional model"
        ) from error


def _resize(images: Tensor, scale: float) -> Tensor:
    return F.interpolate(images, scale_factor=scale, mode="bilinear", align_corners=False)
