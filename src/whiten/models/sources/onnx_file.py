"""`onnx:` a graph on disk, run by ONNX Runtime."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np

from whiten.errors import ConfigError, MissingExtraError, TeacherError
from whiten.models.runtimes import Arrays, run_session, session_options
from whiten.models.teacher import UNKNOWN_LICENCE, ArrayTeacher, Teacher, probe_arrays
from whiten.models.uri import TeacherURI
from whiten.utils.hashing import hash_file
from whiten.utils.validation import check_types
from whiten.views.rendering import IMAGENET_MEAN, IMAGENET_STD, Preprocess


def list_names() -> list[str]:
    return []  # the user's own files cannot be listed


def open_uri(uri: TeacherURI) -> Teacher:
    """Open a graph. Options: `output` (a tensor in it), `size`, `channels`, `layout`, `fit`,
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
    if (recorded := _recorded(graph, path)) is not None:
        return _open_recorded(uri, path, graph, recorded)
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


def _recorded(graph: Any, path: Path) -> dict[str, str] | None:
    """Return the metadata of a graph that `whiten export` wrote; None for others.

    Raises:
        TeacherError: the graph is of a later version.
    """
    facts = {entry.key: entry.value for entry in graph.metadata_props}
    if "whiten.preprocess" not in facts:
        return None
    if facts.get("whiten.format") != "1":
        raise TeacherError(
            f"{path} has export format {facts.get('whiten.format')}, this version reads 1: upgrade "
            "whiten, or export it again"
        )
    return facts


def _open_recorded(uri: TeacherURI, path: Path, graph: Any, facts: dict[str, str]) -> Teacher:
    """Open an exported student that is separated from its folder."""
    told = [name for name, _ in uri.options if name not in ("output", "licence")]
    if told:
        raise ConfigError(
            f"{path} says itself how images are shown to it: leave out {', '.join(told)}"
        )
    if facts.get("whiten.input") != "normalised":
        raise TeacherError(
            f"{path} normalises pixels itself: name the folder that it was exported to"
        )
    try:
        preprocess = Preprocess.from_mapping(json.loads(facts["whiten.preprocess"]))
        check_types(preprocess)
    except (ValueError, TypeError, AttributeError, ConfigError) as error:
        raise TeacherError(
            f"{path} is damaged, what it says of its input cannot be read: export it again"
        ) from error
    options = dict(uri.options)
    return open_graph(
        path,
        uri=str(uri),
        name=path.stem,
        output=options.get("output"),
        preprocess=preprocess,
        licence=options.get("licence", facts.get("whiten.licence", UNKNOWN_LICENCE)),
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
    """Run a graph up to a named tensor, by default its first output.

    Raises:
        TeacherError: the file is no ONNX graph, lacks the tensor, or ends in class scores and no
            `output` is given.
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
    params = sum(math.prod(tensor.dims) for tensor in graph.graph.initializer)
    _fold_subtractions(graph)
    session = ort.InferenceSession(
        graph.SerializeToString(), session_options(ort), providers=ort.get_available_providers()
    )

    def forward(inputs: Arrays) -> Arrays:
        return run_session(session, output, inputs)

    return ArrayTeacher(
        uri=uri,
        name=name,
        dim=probe_arrays(forward, preprocess, uri),
        preprocess=preprocess,
        weights_hash=hash_file(path),
        forward=forward,
        licence=licence,
        macs_counter=lambda: _count_macs(graph, output, preprocess),
        params=params,
        readout=output,
    )


def _fold_subtractions(graph: Any) -> None:
    """Rewrite `x - constant` as `x + (-constant)`, which ONNX Runtime folds into convolutions.

    Batch normalisation is often exported as subtraction, product and sum; folded, such networks run
    faster.
    """
    onnx, _ = _libraries()
    constants = {tensor.name: tensor for tensor in graph.graph.initializer}
    for node in graph.graph.node:
        subtrahend = constants.get(node.input[1]) if node.op_type == "Sub" else None
        if subtrahend is None or subtrahend.data_type != onnx.TensorProto.FLOAT:
            continue
        name = f"{subtrahend.name}/negative"
        if name not in constants:
            values = -onnx.numpy_helper.to_array(subtrahend)
            constants[name] = onnx.numpy_helper.from_array(values, name)
            graph.graph.initializer.append(constants[name])
        node.op_type, node.input[1] = "Add", name


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
    """Return the four input sizes, 0 for those left open."""
    weights = {t.name for t in graph.graph.initializer}
    feeds = [i for i in graph.graph.input if i.name not in weights]
    shape = [d.dim_value for d in feeds[0].type.tensor_type.shape.dim] if feeds else []
    if len(shape) != 4:
        raise TeacherError(f"the graph's input has shape {shape}: it must take a batch of images")
    return shape


def _refuse_classifier(graph: Any, output: str, path: Path) -> None:
    """Refuse a graph that ends in a softmax: class probabilities are no embedding."""
    makers = {tensor: node for node in graph.graph.node for tensor in node.output}
    node = makers.get(output)
    while node is not None and node.op_type in ("Cast", "Identity", "Reshape", "Flatten"):
        node = makers.get(node.input[0])
    if node is not None and node.op_type in ("Softmax", "LogSoftmax", "Sigmoid"):
        raise TeacherError(
            f"{path} ends in class probabilities ({node.op_type}), not an embedding: "
            "name the features with ?output=TENSOR"
        )


def _count_macs(graph: Any, output: str, preprocess: Preprocess) -> int:
    """Count multiply-accumulates per image, over the Conv, Gemm and MatMul nodes of `output`.

    Shapes come from a run on blank images: shape inference fails on graphs that compute sizes
    themselves.
    """
    onnx, ort = _libraries()
    weights = {tensor.name: list(tensor.dims) for tensor in graph.graph.initializer}
    makers = {tensor: node for node in graph.graph.node for tensor in node.output}
    needed: dict[str, Any] = {}
    todo = [output]
    while todo:
        node = makers.get(todo.pop())
        if node is not None and node.output[0] not in needed:
            needed[node.output[0]] = node
            todo.extend(node.input)
    products = [n for n in needed.values() if n.op_type in ("Conv", "Gemm", "MatMul")]
    if not products:
        return 0
    seen = {name for n in products for name in (n.output[0], n.input[1]) if name not in weights}
    probe = type(graph)()
    probe.CopyFrom(graph)
    del probe.graph.output[:]
    probe.graph.output.extend(onnx.helper.make_tensor_value_info(n, 1, None) for n in sorted(seen))
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(probe.SerializeToString(), options, ["CPUExecutionProvider"])
    feed = session.get_inputs()[0]
    count = feed.shape[0] if isinstance(feed.shape[0], int) else 1
    blank = preprocess.normalize(np.zeros((count, *preprocess.size, 3), np.uint8))
    arrays = session.run(sorted(seen), {feed.name: np.ascontiguousarray(blank)})
    shapes = weights | {n: list(a.shape) for n, a in zip(sorted(seen), arrays, strict=True)}
    total = 0
    for node in products:
        out, weight = shapes[node.output[0]], shapes[node.input[1]]
        is_transposed = any(a.name == "transB" and a.i for a in node.attribute)
        reduced = weight[1:] if node.op_type == "Conv" else [weight[-1 if is_transposed else -2]]
        total += math.prod(out) * math.prod(reduced)
    return total // count
