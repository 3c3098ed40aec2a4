"""A traced student in the formats and precisions of an export."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from whiten.models.runtimes import import_openvino
from whiten.models.tracing import (
    BACKBONE,
    METADATA,
    Deployed,
    onnx_libraries,
    quiet,
    record_metadata,
    traceable,
)


def to_fp16(model: Any) -> Any:
    """Convert the backbone's weights and computation to half precision.

    Pooling stays in fp32: it takes powers, which overflow in fp16.
    """
    onnx, _ = onnx_libraries()
    from onnxruntime.transformers.float16 import convert_float_to_float16

    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    with quiet():
        halves = convert_float_to_float16(
            copied,
            keep_io_types=True,
            node_block_list=[n.name for n in model.graph.node if not n.name.startswith(BACKBONE)],
        )
    _join_singles(halves.graph, onnx.TensorProto)
    return halves


def _join_singles(graph: Any, types: Any) -> None:
    """Connect fp32 nodes directly: the converter passes what they compute through fp16."""
    to = {
        node.output[0]: (node.input[0], node.attribute[0].i)
        for node in graph.node
        if node.op_type == "Cast"
    }
    exact = {
        output: to[source][0]
        for output, (source, kind) in to.items()
        if kind == types.FLOAT and source in to and to[source][1] == types.FLOAT16
    }
    for node in graph.node:
        node.input[:] = [exact.get(name, name) for name in node.input]
        if node.output[0] in exact:  # one of these makes the graph's output
            node.input[0] = exact[node.output[0]]
    used = {name for node in graph.node for name in node.input} | {o.name for o in graph.output}
    while unused := [n for n in graph.node if n.op_type == "Cast" and n.output[0] not in used]:
        for node in unused:
            graph.node.remove(node)
        used = {name for node in graph.node for name in node.input} | {o.name for o in graph.output}


# --- files ------------------------------------------------------------------------------


def write_onnx(model: Any, path: Path, metadata: Mapping[str, str]) -> list[Path]:
    onnx, _ = onnx_libraries()
    record_metadata(model, metadata)
    onnx.save(model, path)
    return [path]


def write_openvino(
    model: Any, path: Path, metadata: Mapping[str, str], *, halves: bool
) -> list[Path]:
    """Write `path` and its weights file; `halves` stores the weights as fp16."""
    ov = import_openvino()
    found = ov.Core().read_model(model.SerializeToString())
    for number, node in enumerate(found.get_ordered_ops()):
        # Nodes without a name are numbered across all nodes of the process: the same student would
        # get another file, and so another fingerprint, each time.
        if node.get_friendly_name().startswith(f"{node.get_type_name()}_"):
            node.set_friendly_name(f"{node.get_type_name()}_{number}")
    for name, value in metadata.items():
        found.set_rt_info(value, [METADATA, name])
    ov.save_model(found, str(path), compress_to_fp16=halves)
    return [path, path.with_suffix(".bin")]


def write_torchscript(
    deployed: Deployed, size: tuple[int, int], path: Path, metadata: Mapping[str, str]
) -> list[Path]:
    extra = {f"{METADATA}.{name}": value for name, value in metadata.items()}
    jit: Any = torch.jit  # its functions are untyped
    with traceable(), torch.no_grad():
        traced = jit.trace(deployed, deployed.example(2, size))
        jit.save(jit.freeze(traced), str(path), _extra_files=extra)
    return [path]
