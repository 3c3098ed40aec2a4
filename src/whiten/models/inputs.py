"""Read the images that a model is given, and pass them to it whole, in batches."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from whiten.errors import ConfigError, ImageError, one_line
from whiten.media.decoding import upright_rgb
from whiten.media.reading import naming, read_bytes
from whiten.models.teacher import Teacher
from whiten.utils.threads import ordered_map
from whiten.utils.urls import named_place
from whiten.utils.validation import as_whole
from whiten.views.plan import ViewPlan
from whiten.views.rendering import Preprocess, View, render, render_bytes

if TYPE_CHECKING:
    from torch import Tensor

Embeddable: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image"
    " | npt.NDArray[np.uint8] | Tensor | ImageError"
)
"""Path or content of a file, an open binary file, a PIL image, an (h, w, 3) uint8 RGB array, or a
(3, h, w) torch tensor, uint8 or float in 0..1. An `ImageError` is an image that failed already."""

Errors = Literal["raise", "skip"]
Failed = dict[int, ImageError]
"""Images that could not be read, by position."""

_BATCH = 16  # images per batch on a CPU
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


class SkippedInput(NamedTuple):
    """An image that was left out: its position among the images, and why."""

    position: int
    reason: str


class Embedded(NamedTuple):
    """Embeddings of the images that could be read, and the others.

    Attributes:
        vectors: (m, dim) float32, L2-normalised, in the order of the images.
        skipped: the images that have no row, with the reason.
    """

    vectors: npt.NDArray[np.float32]
    skipped: list[SkippedInput]

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        """(m,) position of each embedding's image among all images."""
        gone = [skip.position for skip in self.skipped]
        return np.setdiff1d(np.arange(len(self.vectors) + len(gone)), gone)

    @classmethod
    def of(cls, vectors: npt.NDArray[np.float32], failed: Failed) -> Embedded:
        """Drop the rows of failed images."""
        skipped = [SkippedInput(n, str(error)) for n, error in sorted(failed.items())]
        return cls(np.delete(vectors, sorted(failed), axis=0), skipped)


def require_errors(errors: str) -> None:
    if errors not in ("raise", "skip"):
        raise ConfigError(f"errors must be 'raise' or 'skip', not {errors!r}")


def require_batch_size(batch_size: int | None) -> None:
    if batch_size is not None and as_whole("batch_size", batch_size) < 1:
        raise ConfigError(f"batch_size must be at least 1, not {batch_size}")


def listed(images: Iterable[Embeddable] | Embeddable) -> Sequence[Embeddable]:
    """Return the images as a list; open files are read, as several models may look at them.

    A single image is a list of one, an (n, h, w, 3) array or (n, 3, h, w) tensor n images, and a
    data frame the images of its column `path`.
    """
    given: Any = images
    if _is_one(given):
        return [_taken(given)]
    if hasattr(given, "columns"):  # a data frame, whose own items are its columns
        if "path" not in getattr(given, "column_names", given.columns):
            raise ConfigError("a table of images needs a column 'path'")
        given = given["path"]
    if hasattr(given, "to_pylist"):  # an Arrow column
        given = given.to_pylist()
    if _is_tensor(given) or (isinstance(given, np.ndarray) and given.dtype.kind not in "OUS"):
        return list(given) if given.ndim == 4 else [given]
    if isinstance(given, np.ndarray):
        given = np.atleast_1d(given)
    if not isinstance(given, Iterable):
        return [given]  # refused by name where it is read
    return [_taken(image) for image in given]


def _is_one(images: Any) -> bool:
    kinds = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image)
    return isinstance(images, kinds) or hasattr(images, "read")


def _is_tensor(image: Any) -> bool:
    # Also of a subclass, such as torchvision's images; without importing torch.
    names = [(kind.__module__, kind.__name__) for kind in type(image).__mro__]
    return ("torch", "Tensor") in names


def _taken(image: Any) -> Embeddable:
    if isinstance(image, Image.Image) or not hasattr(image, "read"):
        return bytes(image) if isinstance(image, bytearray | memoryview) else image
    try:
        if image.seekable():
            image.seek(0)  # just written, for example
        data = image.read()
    except (OSError, ValueError) as error:
        return ImageError(f"an open file cannot be read ({one_line(error)}): open it again")
    if not isinstance(data, bytes):
        return ImageError("a file is open as text: open it with mode 'rb'")
    return data if data else ImageError("an open file is empty")


def embed_inputs(
    teacher: Teacher,
    images: Sequence[Embeddable],
    batch_size: int | None = None,
    progress: Callable[[int, int], object] = lambda done, total: None,
    *,
    failed: Failed | None = None,
) -> npt.NDArray[np.float32]:
    """Embed images: (n, dim) float32, L2-normalised.

    Threads decode the next images while the model computes.

    Args:
        batch_size: images per batch; by default 16 on a CPU and 128 elsewhere.
        progress: called with (done, total) after every batch.
        failed: receives the images without an embedding, whose rows are NaN; None raises.

    Raises:
        ConfigError: the batch size is below 1.
        ImageError: an image cannot be read, or its embedding is zero or not finite; the message
            names it.
    """
    require_batch_size(batch_size)
    look = partial(show_or_fail, preprocess=teacher.preprocess)
    # A single query is faster without a thread.
    size = batch_size or (_BATCH if teacher.device_type == "cpu" else 8 * _BATCH)
    shown = ordered_map(look, images, ahead=2 * size) if len(images) > 1 else map(look, images)
    out = np.full((len(images), teacher.dim), np.nan, np.float32)
    for start in range(0, len(images), size):
        rows, pixels = [], []
        for row, seen in enumerate(islice(shown, size), start):
            if not isinstance(seen, ImageError):
                rows.append(row)
                pixels.append(seen)
            elif failed is None:
                raise _named(seen, row, images)
            else:
                failed[row] = _named(seen, row, images)
        if rows:
            out[rows], unusable = teacher.embed_usable(np.stack(pixels))
            for place, why in unusable.items():
                row = rows[place]
                error = _named(_no_embedding(images[row], why), row, images)
                if failed is None:
                    raise error
                failed[row] = error
                out[row] = np.nan
        progress(min(start + size, len(images)), len(images))
    return out


def _no_embedding(image: Embeddable, why: str) -> ImageError:
    name = named_place(image) if isinstance(image, str | os.PathLike) else "the image"
    return ImageError(f"cannot embed {name}: {why}")


def _named(error: ImageError, row: int, images: Sequence[Embeddable]) -> ImageError:
    """Name an image that has no path by its position."""
    if len(images) == 1 or isinstance(images[row], str | os.PathLike):
        return error
    named = ImageError(f"image {row} of {len(images)}, counted from 0: {error}")
    named.__cause__ = error.__cause__
    return named


def show_or_fail(image: Embeddable, preprocess: Preprocess) -> npt.NDArray[np.uint8] | ImageError:
    """Return what `show` returns, or the error that it raises."""
    try:
        return show(image, preprocess)
    except ImageError as error:
        return error


def show(image: Embeddable, preprocess: Preprocess) -> npt.NDArray[np.uint8]:
    """Render the whole image as model input: (h, w, 3) uint8 RGB, not normalised.

    Raises:
        ImageError: the image cannot be read; the message names it.
    """
    if isinstance(image, ImageError):
        raise image
    if isinstance(image, Image.Image):
        return _whole(_upright(image), preprocess)
    if _is_tensor(image):
        image = _pixels_of(image)
    if isinstance(image, np.ndarray):
        if np.ma.is_masked(image):
            raise ImageError("some pixels are masked: fill them (`filled`)")
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ImageError(
                f"an array must be (h, w, 3) uint8 RGB, not {image.shape} {image.dtype}"
            )
        return _whole(Image.fromarray(image), preprocess)
    if isinstance(image, Rendered) and preprocess in image.pixels:
        return image.pixels[preprocess]
    if isinstance(image, bytes):
        return render_bytes(image, ViewPlan(), "", 0, preprocess)
    path = path_of(image)
    with naming(path):  # rendered as for a store, so that a query equals its copy in a gallery
        return render_bytes(read_bytes(path), ViewPlan(), path, 0, preprocess)


class Rendered(bytes):
    """The content of a file that is rendered already, so that `show` does not decode it.

    Attributes:
        pixels: by preprocessing, as `show` returns them.
    """

    pixels: dict[Preprocess, npt.NDArray[np.uint8]]

    @classmethod
    def of(cls, data: bytes, preprocesses: Iterable[Preprocess]) -> Rendered:
        """Render a file's content; raises ImageError if it cannot be decoded."""
        rendered = cls(data)
        rendered.pixels = {each: show(data, each) for each in preprocesses}
        return rendered


def path_of(image: Any) -> str:
    """Return the path that an image is given as.

    Raises:
        ImageError: it is a URL, or no image at all.
    """
    if not isinstance(image, str | os.PathLike):
        raise ImageError(
            f"{type(image).__name__} is no image: give a path, a file's content, an open file, a "
            "PIL image, an array or a tensor"
        )
    path = os.fspath(image)
    if _URL.match(path):
        raise ImageError(f"{path} is a URL: download it, and give the path or the content")
    return path


def _whole(image: Image.Image, preprocess: Preprocess) -> npt.NDArray[np.uint8]:
    if 0 in image.size:
        raise ImageError("the image has no pixels")
    return render(image, View(), preprocess)


def _upright(image: Image.Image) -> Image.Image:
    try:
        return upright_rgb(image)
    except Exception as error:  # decoding may be left to this moment, and raises almost anything
        raise ImageError(f"an opened image is damaged ({one_line(error)})") from error


def _pixels_of(tensor: Any) -> npt.NDArray[np.uint8]:
    """Convert a (3, h, w) or (h, w, 3) tensor, uint8 or float in 0..1, to pixels."""
    if tensor.is_meta:
        raise ImageError("a tensor on the device meta has no pixels: give one on cpu or cuda")
    values = tensor.detach().cpu()
    if values.ndim == 3 and values.shape[0] == 3:
        values = values.permute(1, 2, 0)
    if values.is_floating_point():
        if values.numel() and not (values.min() >= 0 and values.max() <= 1):
            raise ImageError(
                "a float tensor must be pixels in 0..1, not normalised: the model does that itself"
            )
        values = (values.float() * 255).round().byte()
    pixels: npt.NDArray[np.uint8] = np.ascontiguousarray(values.numpy())
    return pixels
