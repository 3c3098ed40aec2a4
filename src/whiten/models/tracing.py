"""Trace a network of torch to an ONNX graph."""

from __future__ import annotations

import contextlib
import io
import tempfile
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from whiten.models.graphs import UntraceableError
from whiten.models.runtimes import import_onnx
from whiten.models.student import StudentNet
from whiten.models.teacher import first_line
from whiten.views.rendering import Preprocess

OPSET = 17
INPUT, OUTPUT = "images", "embeddings"
METADATA = "whiten"  # the key in each format
BACKBONE = "/net/backbone/"  # prefix of the backbone's nodes in the graph


class Deployed(nn.Module):
    """The module to trace: a student with L2-normalised embeddings.

    Args:
        net: the student; its backbone is wrapped, so it can no longer be trained.
        preprocess: preprocessing of its input.
        takes_pixels: take (n, h, w, 3) uint8 RGB instead of normalised (n, 3, h, w) float32.
    """

    def __init__(self, net: StudentNet, preprocess: Preprocess, takes_pixels: bool) -> None:
        super().__init__()
        net.backbone = _Scoped(net.backbone)
        self.net = net.requires_grad_(False)
        self.takes_pixels = takes_pixels
        self.is_bgr = preprocess.channels == "bgr"
        mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in (preprocess.mean, preprocess.std))
        self.scale: Tensor
        self.shift: Tensor
        self.register_buffer("scale", preprocess.white / 255 / std)
        self.register_buffer("shift", mean / std)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        if self.takes_pixels:
            planes = images.permute(0, 3, 1, 2).to(self.scale.dtype)
            if self.is_bgr:
                planes = planes.flip(1)
            images = planes * self.scale - self.shift
        return F.normalize(self.net(images), dim=1)

    def compute_in(self, dtype: torch.dtype) -> Deployed:
        """Convert only the backbone's precision: pooling takes powers, which overflow in fp16."""
        backbone: Any = self.net.backbone
        backbone.to(dtype).dtype = dtype
        return self

    def example(self, count: int, size: tuple[int, int]) -> Tensor:
        """Return a blank input."""
        height, width = size
        if self.takes_pixels:
            return torch.zeros(count, height, width, 3, dtype=torch.uint8)
        return torch.zeros(count, 3, height, width)


class _Scoped(nn.Module):
    """Wraps a backbone in a module, so that tracing gives its nodes a prefix."""

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone = backbone
        self.num_features = backbone.num_features
        self.num_prefix_tokens = getattr(backbone, "num_prefix_tokens", 0)
        self.dtype = torch.float32

    def forward(self, images: Tensor, indices: Sequence[int] | None = None) -> Any:
        """Compute the last maps, and with `indices` also the maps of these stages."""
        given = images if self.dtype == torch.float32 else images.to(self.dtype)
        if indices is None:
            return self.backbone.forward_features(given)
        return self.backbone.forward_intermediates(given, indices=indices)

    def forward_features(self, images: Tensor) -> Any:
        return self(images)

    def forward_intermediates(self, images: Tensor, *, indices: Sequence[int]) -> Any:
        return self(images, indices)


# --- ONNX -------------------------------------------------------------------------------


def onnx_libraries() -> tuple[Any, Any]:
    return import_onnx("exporting")


def trace_onnx(module: nn.Module, example: Tensor) -> Any:
    """Trace a module to an ONNX model with a dynamic batch size.

    Args:
        example: (2, …) input.

    Raises:
        UntraceableError: the network cannot be traced.
    """
    onnx, _ = onnx_libraries()
    with traceable(), tempfile.TemporaryDirectory(prefix="whiten-") as folder:
        path = Path(folder) / "traced.onnx"
        torch.onnx.export(
            module,
            (example,),
            path,
            dynamo=False,  # the other exporter needs two more libraries
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: {0: "n"}, OUTPUT: {0: "n"}},
        )
        return fold_sizes(onnx.load(path))


def record_metadata(model: Any, metadata: Mapping[str, str]) -> None:
    """Write metadata into an ONNX model."""
    onnx, _ = onnx_libraries()
    onnx.helper.set_model_props(model, {f"{METADATA}.{k}": v for k, v in metadata.items()})


def fold_sizes(model: Any) -> Any:
    """Replace sizes that the graph computes from its input by constants if they are fixed.

    Traced "same" padding reads the size of each feature map. All sizes except the batch size are
    known, so these become constants, and paddings then fold into convolutions: up to twice as fast.
    """
    onnx, ort = onnx_libraries()
    while _fold_known_sizes(onnx, model):
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.log_severity_level = 3
        model = _optimised(onnx, ort, model, options)
    _drop_unused(model.graph)
    used = {node.domain for node in model.graph.node}
    for opset in [o for o in model.opset_import if o.domain and o.domain not in used]:
        model.opset_import.remove(opset)
    return model


def _optimised(onnx: Any, ort: Any, model: Any, options: Any) -> Any:
    with tempfile.TemporaryDirectory(prefix="whiten-") as folder:
        options.optimized_model_filepath = str(Path(folder) / "folded.onnx")
        ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath)


def _drop_unused(graph: Any) -> None:
    """Remove nodes that nothing reads, such as sizes that became constants."""
    read = {name.name for name in graph.output}
    for node in reversed(list(graph.node)):  # consumers come after producers
        if read.isdisjoint(node.output):
            graph.node.remove(node)
        else:
            read.update(node.input)


def _fold_known_sizes(onnx: Any, model: Any) -> bool:
    """Turn each `Gather(Shape(x), i)` of a known size into a constant; return whether any was."""
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    sizes = {
        value.name: [d.dim_value or None for d in value.type.tensor_type.shape.dim]
        for value in (*graph.value_info, *graph.input, *graph.output)
        if value.type.tensor_type.HasField("shape")
    }
    constants = {t.name: t for t in model.graph.initializer} | {
        n.output[0]: n.attribute[0].t for n in model.graph.node if n.op_type == "Constant"
    }
    measured = {n.output[0]: n.input[0] for n in model.graph.node if n.op_type == "Shape"}
    is_changed = False
    for node in model.graph.node:
        if node.op_type != "Gather" or node.input[1] not in constants:
            continue
        dims = sizes.get(measured.get(node.input[0], ""))
        which = onnx.numpy_helper.to_array(constants[node.input[1]])
        if not dims or any(dims[i] is None for i in which.ravel()):
            continue
        known = np.asarray([dims[i] for i in which.ravel()], np.int64).reshape(which.shape)
        node.op_type = "Constant"
        del node.input[:], node.attribute[:]
        value = onnx.numpy_helper.from_array(known)
        node.attribute.append(onnx.helper.make_attribute("value", value))
        is_changed = True
    return is_changed


_turns = threading.RLock()  # torch traces for one thread of a process at a time


@contextlib.contextmanager
def traceable() -> Iterator[None]:
    """Turn tracing errors, such as missing operators and control flow, into one line."""
    try:
        with _turns, quiet():
            yield
    except OSError:
        raise
    except Exception as error:
        raise UntraceableError(
            f"this model cannot be traced ({first_line(error)}): choose a convolutional backbone"
        ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence messages of the exporters that a user cannot act on."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
