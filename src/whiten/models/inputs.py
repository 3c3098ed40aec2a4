"""Read the images that a model is given, and pass them to it whole, in batches."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice

import numpy as np
import numpy.typing as npt
from PIL import Image

from whiten.errors import ImageError
from whiten.media.decoding import upright_rgb
from whiten.media.reading import read_bytes
from whiten.models.teacher import Teacher
from whiten.utils.threads import ordered_map
from whiten.views.plan import ViewPlan
from whiten.views.rendering import Preprocess, View, render, render_bytes

Embeddable = str | os.PathLike[str] | bytes | Image.Image | npt.NDArray[np.uint8]
"""Path or content of a file, a PIL image, or an (h, w, 3) uint8 RGB array."""

_BATCH = 16  # images per batch on a CPU


def listed(images: Sequence[Embeddable] | Embeddable) -> Sequence[Embeddable]:
    """Return a single image as a list of one; an (n, h, w, 3) array counts as n images."""
    if isinstance(images, str | os.PathLike | bytes | Image.Image):
        return [images]
    if isinstance(images, np.ndarray):
        return list(images) if images.ndim == 4 else [images]
    return images


def embed_inputs(
    teacher: Teacher,
    images: Sequence[Embeddable],
    batch_size: int | None = None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> npt.NDArray[np.float32]:
    """Embed images: (n, dim) float32, L2-normalised.

    Threads decode the next images while the model computes.

    Args:
        batch_size: images per batch; by default 16 on a CPU and 128 elsewhere.
        progress: called with (done, total) after every batch.

    Raises:
        ImageError: an image cannot be read; the message names it.
    """
    look = partial(show, preprocess=teacher.preprocess)
    # A single query is faster without a thread.
    size = batch_size or (_BATCH if teacher.device_type == "cpu" else 8 * _BATCH)
    shown = ordered_map(look, images, ahead=2 * size) if len(images) > 1 else map(look, images)
    out = np.empty((len(images), teacher.dim), np.float32)
    for start in range(0, len(images), size):
        pixels = np.stack(list(islice(shown, size)))
        out[start : start + len(pixels)] = teacher.embed(pixels)
        progress(start + len(pixels), len(images))
    return out


def show(image: Embeddable, preprocess: Preprocess) -> npt.NDArray[np.uint8]:
    """Render the whole image as model input: (h, w, 3) uint8 RGB, not normalised.

    Raises:
        ImageError: the image cannot be read; the message names it.
    """
    if isinstance(image, Image.Image):
        return render(upright_rgb(image), View(), preprocess)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ImageError(
                f"an array must be (h, w, 3) uint8 RGB, not {image.shape} {image.dtype}"
            )
        return render(Image.fromarray(image), View(), preprocess)
    if isinstance(image, bytes):
        return render_bytes(image, ViewPlan(), "", 0, preprocess)
    path = os.fspath(image)
    try:  # rendered as for a store, so that a query equals its copy in a gallery
        return render_bytes(read_bytes(path), ViewPlan(), path, 0, preprocess)
    except ImageError as error:
        raise ImageError(f"cannot read {path}: {error}") from error
