"""Read an ONNX graph with the weights that it stores in other files, hash it and cut it."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from whiten.errors import TeacherError
from whiten.models.runtimes import Arrays, Provider, import_onnx
from whiten.utils.hashing import content_hash

_AT_ONCE = 1 << 30  # a serialised graph is limited to 2 GiB: larger weights stay in their files


def libraries() -> tuple[Any, Any]:
    return import_onnx("reading an ONNX model")


class Graph(NamedTuple):
    """A graph on disk.

    Attributes:
        path: its file.
        model: its content, a `ModelProto`.
        weights_hash: the same wherever its files are and whatever those of its weights are called.
        folder: folder of the weights that were left in their files; "" if all were read.
    """

    path: Path
    model: Any
    weights_hash: str
    folder: str = ""


def read_graph(path: Path) -> Graph:
    """Read a graph with its weights, wherever they are stored, and every file once.

    Weights of more than 1 GiB in other files are hashed and left there.

    Raises:
        TeacherError: the file is missing or no graph, or one that holds its weights is missing,
            too short, or outside of its folder.
    """
    onnx, _ = libraries()
    if not path.is_file():
        raise TeacherError(f"{path} does not exist: write onnx:PATH/TO/model.onnx")
    try:
        data = path.read_bytes()
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's errors have no common base
        raise TeacherError(f"{path} is not an ONNX model: export it again") from error
    if not model.graph.output:  # an empty file is read as a message without fields
        raise TeacherError(f"{path} is not an ONNX model, it has no output: export it again")
    stored = [tensor for tensor in _tensors(model) if tensor.data_location == _EXTERNAL]
    if not stored:
        return Graph(path, model, content_hash(data))
    parts = [_Part(tensor, path) for tensor in stored]
    bare = type(model)()
    bare.CopyFrom(model)
    for tensor in _tensors(bare):
        tensor.ClearField("external_data")
    digest = hashlib.blake2b(bare.SerializeToString(deterministic=True), digest_size=16)
    is_small = sum(part.length for part in parts) <= _AT_ONCE
    for part in parts:
        digest.update(f"{part.length}|".encode())
        read = []
        for piece in part.pieces():
            digest.update(piece)
            if is_small:
                read.append(piece)
        if is_small:
            part.tensor.raw_data = b"".join(read)
            part.tensor.ClearField("external_data")
            part.tensor.ClearField("data_location")
    folder = "" if is_small else _name_real_files(parts)
    return Graph(path, model, digest.hexdigest(), folder)


_EXTERNAL = 1  # TensorProto.EXTERNAL


class _Part:
    """The part of a file that holds the values of a tensor."""

    def __init__(self, tensor: Any, graph: Path) -> None:
        facts = {entry.key: entry.value for entry in tensor.external_data}
        location = facts.get("location", "")
        inner = PurePosixPath(location)
        if not location or inner.is_absolute() or ".." in inner.parts:
            raise TeacherError(
                f"{graph} names weights outside of its folder, {location!r}: export it again"
            )
        self.tensor = tensor
        self.path = graph.parent / inner
        if not self.path.is_file():
            raise TeacherError(
                f"{graph} has weights in {location}, which is not there: copy {self.path.name} to "
                f"{self.path.parent}"
            )
        size = self.path.stat().st_size
        try:
            self.offset = int(facts.get("offset", 0))
            self.length = int(facts.get("length", size - self.offset))
        except ValueError as error:
            raise TeacherError(
                f"{graph} does not say where in {location} its weights are: export it again"
            ) from error
        if self.length < 0 or self.offset < 0 or self.offset + self.length > size:
            raise TeacherError(f"{self.path} is cut short, {graph} needs more of it: copy it again")

    def pieces(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            file.seek(self.offset)
            left = self.length
            while left and (piece := file.read(min(left, 1 << 24))):
                left -= len(piece)
                yield piece


def _name_real_files(parts: list[_Part]) -> str:
    """Let tensors name files that are no links, below the returned folder.

    ONNX Runtime refuses links that lead out of its folder, as those in the cache of a hub do.
    """
    files = [part.path.resolve() for part in parts]
    folder = os.path.commonpath([file.parent for file in files])
    for part, file in zip(parts, files, strict=True):
        for entry in part.tensor.external_data:
            if entry.key == "location":
                entry.value = file.relative_to(folder).as_posix()
    return folder


def _tensors(model: Any) -> Iterator[Any]:
    """Yield every tensor that a model holds, in subgraphs and functions, too."""
    yield from _of_graph(model.graph)
    for function in model.functions:
        yield from _of_nodes(function.node)


def _of_graph(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: Any) -> Iterator[Any]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            for graph in _subgraphs(attribute):
                yield from _of_graph(graph)


def _subgraphs(attribute: Any) -> list[Any]:
    return [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]


# --- cutting ----------------------------------------------------------------------------


def producers(graph: Any) -> dict[str, Any]:
    """Return the node that makes each tensor."""
    return {name: node for node in graph.node for name in node.output if name}


def needed_for(graph: Any, output: str) -> set[str]:
    """Return the tensors that an output is computed from, with itself."""
    makers = producers(graph)
    needed: set[str] = set()
    todo = [output]
    while todo:
        name = todo.pop()
        if name not in needed:
            needed.add(name)
            if name in makers:
                todo.extend(_read_by(makers[name]))
    return needed


def _read_by(node: Any) -> Iterator[str]:
    """Yield the tensors that a node reads, in its subgraphs, too; some may be their own."""
    yield from node.input
    for attribute in node.attribute:
        for graph in _subgraphs(attribute):
            for inner in graph.node:
                yield from _read_by(inner)
            yield from (output.name for output in graph.output)


def cut(graph: Any, output: str) -> None:
    """Keep what an output is computed from: other outputs may need inputs that no image gives."""
    onnx, _ = libraries()
    needed = needed_for(graph, output)
    for node in [node for node in graph.node if needed.isdisjoint(node.output)]:
        graph.node.remove(node)
    for given in [given for given in graph.input if given.name not in needed]:
        graph.input.remove(given)
    known = [made for made in graph.output if made.name == output]
    made = known[0] if known else onnx.helper.make_tensor_value_info(output, 1, None)
    if not known:
        made.ClearField("type")  # the runtime infers it
    del graph.output[:]
    graph.output.append(made)


def feeds(graph: Any) -> list[Any]:
    """Return the inputs without default value, which must be fed."""
    defaults = {tensor.name for tensor in graph.initializer}
    defaults |= {sparse.values.name for sparse in graph.sparse_initializer}
    return [given for given in graph.input if given.name not in defaults]


def fold_subtractions(graph: Any) -> None:
    """Rewrite `x - constant` as `x + (-constant)`, which ONNX Runtime folds into convolutions.

    Batch normalisation is often exported as subtraction, product and sum; folded, such networks run
    faster.
    """
    onnx, _ = libraries()
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        subtrahend = constants.get(node.input[1]) if node.op_type == "Sub" else None
        if subtrahend is None or subtrahend.data_type != onnx.TensorProto.FLOAT:
            continue
        if subtrahend.data_location == _EXTERNAL:
            continue
        name = f"{subtrahend.name}/negative"
        if name not in constants:
            values = -onnx.numpy_helper.to_array(subtrahend)
            constants[name] = onnx.numpy_helper.from_array(values, name)
            graph.initializer.append(constants[name])
        node.op_type, node.input[1] = "Add", name


# --- counting ---------------------------------------------------------------------------


def count_params(graph: Any) -> int:
    return sum(math.prod(tensor.dims) for tensor in graph.initializer)


def count_macs(graph: Graph, output: str, blank: Arrays) -> int:
    """Count multiply-accumulates per image, over the Conv, Gemm and MatMul nodes of `output`.

    Shapes come from a run on blank images: shape inference fails on graphs that compute sizes
    themselves.

    Args:
        blank: (n, …) input of one batch.
    """
    onnx, ort = libraries()
    model = graph.model
    weights = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    needed = needed_for(model.graph, output)
    products = [
        node
        for node in model.graph.node
        if node.op_type in ("Conv", "Gemm", "MatMul") and not needed.isdisjoint(node.output)
    ]
    if not products:
        return 0
    seen = {name for n in products for name in (n.output[0], n.input[1]) if name not in weights}
    probe = type(model)()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    for name in sorted(seen):
        probe.graph.output.append(onnx.ValueInfoProto(name=name))
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = open_session(graph._replace(model=probe), options, ["CPUExecutionProvider"])
    arrays = session.run(sorted(seen), {session.get_inputs()[0].name: np.ascontiguousarray(blank)})
    shapes = weights | {n: list(a.shape) for n, a in zip(sorted(seen), arrays, strict=True)}
    total = 0
    for node in products:
        out, weight = shapes[node.output[0]], shapes[node.input[1]]
        is_transposed = any(a.name == "transB" and a.i for a in node.attribute)
        reduced = weight[1:] if node.op_type == "Conv" else [weight[-1 if is_transposed else -2]]
        total += math.prod(out) * math.prod(reduced)
    return total // len(blank)


def open_session(graph: Graph, options: Any, providers: list[Provider]) -> Any:
    """Open a graph with ONNX Runtime."""
    _, ort = libraries()
    if graph.folder:
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", graph.folder
        )
    return ort.InferenceSession(graph.model.SerializeToString(), options, providers=providers)
