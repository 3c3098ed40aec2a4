"""The input and the outputs of an ONNX graph: which takes images, and which may be an embedding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from whiten.errors import ConfigError, TeacherError
from whiten.models.runtimes import Arrays
from whiten.models.sources.onnx_graph import feeds, libraries, needed_for, producers
from whiten.views.rendering import Preprocess

Layout = Literal["nchw", "nhwc"]

_FLOATS = ("float16", "float32", "float64")
_PIXELS = ("uint8", "uint16", "int16", "int32", "int64")  # take 0 to 255


@dataclass(frozen=True)
class ImageInput:
    """The input of a graph that takes images.

    Attributes:
        dtype: NumPy name of its type.
        shape: its four sizes, 0 for those left open.
    """

    dtype: str
    shape: list[int]

    @property
    def is_pixels(self) -> bool:
        return self.dtype in _PIXELS

    def layouts(self, wanted: str, path: Path) -> list[Layout]:
        """Return the layouts that the shape leaves possible, the likelier one first."""
        possible: list[Layout] = ["nchw", "nhwc"]
        possible = [one for one in possible if self.shape[_axis(one)] in (0, 3)]
        if not possible:
            raise TeacherError(f"{path} takes images of shape {self.shape[1:]}, not of 3 channels")
        if wanted:
            if wanted not in possible:
                raise ConfigError(f"{path} takes {possible[0]}: leave out ?layout=")
            return [one for one in possible if one == wanted]
        fixed = [one for one in possible if self.shape[_axis(one)] == 3]
        if fixed:
            return fixed[:1]
        return possible[::-1] if self.is_pixels else possible

    def size(self, layout: Layout, side: int, path: Path) -> tuple[int, int]:
        """Return height and width in pixels; `side` is the user's, or 0."""
        height, width = self.shape[1:3] if layout == "nhwc" else self.shape[2:4]
        if side and any(fixed not in (0, side) for fixed in (height, width)):
            raise ConfigError(f"{path} takes {height}x{width} px only: leave out ?size=")
        return (side, side) if side else (height or 224, width or 224)

    def blank(self, preprocess: Preprocess, count: int) -> Arrays:
        """Return black images as a teacher gets them, see `feed`."""
        pixels = np.zeros((count, *preprocess.size, 3), np.uint8)
        return pixels if self.is_pixels else preprocess.normalize(pixels)

    def feed(self, preprocess: Preprocess) -> Callable[[Arrays], Arrays]:
        """Return the function from a teacher's input to that of the graph."""

        def cast(images: Arrays) -> Arrays:
            if not self.is_pixels:
                return images.astype(self.dtype, copy=False)
            if images.dtype != np.uint8:  # prepared as if to be normalised
                return images.round().clip(0, 255).astype(self.dtype)
            if preprocess.channels == "bgr":
                images = images[..., ::-1]
            if preprocess.layout == "nchw":
                images = images.transpose(0, 3, 1, 2)
            return images.astype(self.dtype, copy=False)

        return cast


def _axis(layout: str) -> int:
    """Return the axis of the channels."""
    return 1 if layout == "nchw" else 3


def read_input(graph: Any, output: str, path: Path) -> ImageInput:
    """Read the input that takes images; refuse a graph that also needs something else.

    Raises:
        TeacherError: no input takes images, or the output needs others without default.
    """
    onnx, _ = libraries()
    needed = needed_for(graph, output)
    given = [one for one in feeds(graph) if one.name in needed]
    images = [one for one in given if len(_shape(one)) == 4]
    if not images:
        shape = _shape(given[0]) if given else []
        raise TeacherError(f"{path} has an input of shape {shape}: it must take a batch of images")
    others = [one for one in given if one is not images[0]]
    if others:
        names = [made.name for made in graph.output if not _needs(graph, made.name, others)]
        way = f", or choose an output without it, {_choices(names)}" if names else ""
        raise TeacherError(
            f"{path} needs {' and '.join(repr(one.name) for one in others)} besides the images "
            f"{images[0].name!r}: export it with a default value, an initializer of that name{way}"
        )
    dtype = onnx.helper.tensor_dtype_to_np_dtype(images[0].type.tensor_type.elem_type).name
    if dtype not in (*_FLOATS, *_PIXELS):
        known = ", ".join((*_FLOATS, *_PIXELS))
        raise TeacherError(f"{path} takes images of {dtype}: export it for one of {known}")
    return ImageInput(dtype, _shape(images[0]))


def _shape(given: Any) -> list[int]:
    """Return the sizes of an input, 0 for those left open; 4 of them if even that is open."""
    if not given.type.HasField("tensor_type"):
        return []
    kind = given.type.tensor_type
    return [d.dim_value for d in kind.shape.dim] if kind.HasField("shape") else [0] * 4


def _needs(graph: Any, output: str, inputs: list[Any]) -> bool:
    return not needed_for(graph, output).isdisjoint(one.name for one in inputs)


# --- the output -------------------------------------------------------------------------


def choose_output(graph: Any, wanted: str, path: Path) -> str:
    """Return the requested tensor, by default the first output.

    Raises:
        TeacherError: the graph lacks it, or ends in a softmax: class probabilities are no
            embedding.
    """
    makers = producers(graph)
    if wanted:
        if wanted not in makers:
            others = other_outputs(graph, "")
            raise TeacherError(f"{path} has no tensor {wanted!r}: look at it with Netron{others}")
        return wanted
    output: str = graph.output[0].name
    node = makers.get(output)
    while node is not None and node.op_type in _RESHAPING:
        node = makers.get(node.input[0])
    if node is not None and node.op_type in ("Softmax", "LogSoftmax", "Sigmoid"):
        raise TeacherError(
            f"{path} ends in class probabilities ({node.op_type}), not an embedding: "
            f"name the features with ?output=TENSOR{other_outputs(graph, output)}"
        )
    return output


_RESHAPING = ("Cast", "Identity", "Reshape", "Flatten", "Squeeze")


def other_outputs(graph: Any, output: str) -> str:
    """Name the other outputs for a message, and the tensor before the last layer."""
    names = [made.name for made in graph.output if made.name != output]
    told = f"; other outputs are {_choices(names)}" if names else ""
    makers = producers(graph)
    node = makers.get(output)
    while node is not None and node.op_type not in ("Gemm", "MatMul", "Conv"):
        node = makers.get(next((name for name in node.input if name in makers), ""))
    if node is not None and node.input[0] in makers:
        told += f"; its last layer reads {node.input[0]!r}"
    return told


def _choices(names: list[str]) -> str:
    return ", ".join(f"?output={name}" for name in names[:5]) + (" …" if len(names) > 5 else "")
