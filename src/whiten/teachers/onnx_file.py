"""`onnx:` a graph on disk, run by ONNX Runtime."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from whiten.errors import ConfigError, MissingExtraError, TeacherError
from whiten.spec import TeacherURI
from whiten.teachers.base import UNKNOWN_LICENCE, Teacher, hash_file, probe_dim
from whiten.views import IMAGENET_MEAN, IMAGENET_STD, Preprocess


def list_names() -> list[str]:
    return []  # files are the user's own


def open_uri(uri: TeacherURI) -> Teacher:
    """Options: `output` (a tensor inside the graph), `size`, `channels`, `layout`, `fit`,
    `interpolation`, `crop`, `mean` and `std` (three numbers with commas), `white` (1 or 255).
    """
    options = uri.take(
        output=(str, ""),
        size=(int, 0),
        fit=(str, "crop"),
        crop=(float, 1.0),
        interpolation=(str, "bicubic"),
        mean=(_triple, IMAGENET_MEAN),
        std=(_triple, IMAGENET_STD),
        white=(float, 1.0),
        channels=(str, "rgb"),
        layout=(str, ""),
        licence=(str, UNKNOWN_LICENCE),
    )
    for name, allowed in (
        ("fit", ("crop", "squash")),
        ("channels", ("rgb", "bgr")),
        ("layout", ("", "nchw", "nhwc")),
        ("interpolation", ("nearest", "bilinear", "bicubic", "lanczos")),
    ):
        if options[name] not in allowed:
            raise ConfigError(f"{name}={options[name]!r} must be one of {', '.join(allowed)}")
    path = Path(uri.target)
    graph = _read(path)
    shape = _input_shape(graph)
    layout: Literal["nchw", "nhwc"] = options["layout"] or (
        "nhwc" if shape[3] == 3 and shape[1] != 3 else "nchw"
    )
    fixed = shape[1:3] if layout == "nhwc" else shape[2:4]
    side = options["size"]
    size = (side, side) if side else (fixed[0] or 224, fixed[1] or 224)
    if side and any(f and f != side for f in fixed):
        raise ConfigError(f"{path} takes {fixed[0]}x{fixed[1]} px only: leave out ?size=")
    return open_graph(
        path,
        uri=str(uri),
        name=path.stem,
        output=options["output"] or None,
        preprocess=Preprocess(
            size=size,
            fit=options["fit"],
            crop_fraction=options["crop"],
            interpolation=options["interpolation"],
            mean=options["mean"],
            std=options["std"],
            white=options["white"],
            channels=options["channels"],
            layout=layout,
        ),
        licence=options["licence"],
    )


def _triple(text: str) -> tuple[float, float, float]:
    values = tuple(float(part) for part in text.split(","))
    if len(values) != 3:
        raise ValueError(text)
    return values


def open_graph(
    path: Path,
    *,
    uri: str,
    name: str,
    output: str | None,
    preprocess: Preprocess,
    licence: str,
) -> Teacher:
    """Run a graph up to a named tensor (by default its first output).

    Raises:
        TeacherError: the file is no ONNX graph, has no such tensor, or ends in class scores
            that no `output` replaces.
    """
    onnx, ort = _libraries()
    graph = _read(path)
    produced = {tensor for node in graph.graph.node for tensor in node.output}
    if output is None:
        output = graph.graph.output[0].name
        _refuse_classifier(graph, output, path)
    elif output not in produced:
        raise TeacherError(f"{path} has no tensor {output!r}: list its nodes with Netron")
    if output not in {o.name for o in graph.graph.output}:
        graph.graph.output.append(onnx.helper.make_tensor_value_info(output, 1, None))
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # its remarks on unused tensors are no concern of ours
    session = ort.InferenceSession(
        graph.SerializeToString(), options, providers=ort.get_available_providers()
    )
    feed = session.get_inputs()[0]

    def forward(inputs: Tensor) -> Tensor:
        array = np.ascontiguousarray(inputs.numpy())
        if isinstance(feed.shape[0], int) and feed.shape[0] == 1:  # exported for single images
            rows = [session.run([output], {feed.name: row[None]})[0] for row in array]
            out = np.concatenate(rows)
        else:
            out = session.run([output], {feed.name: array})[0]
        return torch.from_numpy(out).reshape(len(array), -1)

    return Teacher(
        uri=uri,
        name=name,
        dim=probe_dim(forward, preprocess, uri),
        preprocess=preprocess,
        weights_hash=hash_file(path),
        forward=forward,
        licence=licence,
        macs=_count_macs(graph, output, (1, *preprocess.size)),
        params=sum(math.prod(t.dims) for t in graph.graph.initializer),
        readout=output,
    )


def _libraries() -> tuple[Any, Any]:
    try:
        import onnx
        import onnxruntime
    except ImportError:
        raise MissingExtraError("reading an ONNX model", "onnx") from None
    return onnx, onnxruntime


def _read(path: Path) -> Any:
    onnx, _ = _libraries()
    if not path.is_file():
        raise TeacherError(f"{path} does not exist: write onnx:PATH/TO/model.onnx")
    try:
        return onnx.load(path)
    except Exception as error:  # protobuf's errors have no common base
        raise TeacherError(f"{path} is not an ONNX model: export it again") from error


def _input_shape(graph: Any) -> list[int]:
    """Four sizes, 0 where the graph leaves one open."""
    weights = {t.name for t in graph.graph.initializer}
    feeds = [i for i in graph.graph.input if i.name not in weights]
    shape = [d.dim_value for d in feeds[0].type.tensor_type.shape.dim] if feeds else []
    if len(shape) != 4:
        raise TeacherError(f"the graph's input has shape {shape}: it must take a batch of images")
    return shape


def _refuse_classifier(graph: Any, output: str, path: Path) -> None:
    """A softmax at the end means class probabilities, which are no embedding."""
    makers = {tensor: node for node in graph.graph.node for tensor in node.output}
    node = makers.get(output)
    while node is not None and node.op_type in ("Cast", "Identity", "Reshape", "Flatten"):
        node = makers.get(node.input[0])
    if node is not None and node.op_type in ("Softmax", "LogSoftmax", "Sigmoid"):
        raise TeacherError(
            f"{path} ends in class probabilities ({node.op_type}), not an embedding: "
            "name the features with ?output=TENSOR"
        )


def _count_macs(graph: Any, output: str, size: tuple[int, int, int]) -> int | None:
    """Multiply-accumulates of the Conv, Gemm and MatMul nodes that `output` needs."""
    onnx, _ = _libraries()
    model = type(graph)()
    model.CopyFrom(graph)
    feed = model.graph.input[0].type.tensor_type.shape.dim
    is_nhwc = feed[3].dim_value == 3
    spatial = (1, 2) if is_nhwc else (2, 3)
    for axis, value in zip((0, *spatial), size, strict=True):
        feed[axis].dim_value = value
    try:
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception:  # an exotic graph: its cost stays unknown
        return None
    shapes = {
        value.name: [d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*model.graph.value_info, *model.graph.output)
    }
    shapes |= {t.name: list(t.dims) for t in model.graph.initializer}
    makers = {tensor: node for node in model.graph.node for tensor in node.output}
    total, todo, seen = 0, [output], set()
    while todo:
        node = makers.get(todo.pop())
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        todo.extend(node.input)
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        out, weight = shapes.get(node.output[0]), shapes.get(node.input[1])
        if not out or not weight or not all(out[1:]):
            return None
        reduced = weight[1:] if node.op_type == "Conv" else [weight[-2]]
        if node.op_type == "Gemm" and any(a.name == "transB" and a.i for a in node.attribute):
            reduced = [weight[1]]
        total += math.prod(out[1:]) * math.prod(reduced)
    return total
