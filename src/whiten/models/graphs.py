"""Run a torch model as an fp32 ONNX graph in memory, with the same embeddings."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np

from whiten.errors import TeacherError, WhitenError, one_line
from whiten.models.runtimes import Run, run_graph
from whiten.models.teacher import ArrayTeacher, Identity, Teacher, drawn_pixels

_LEAST_COSINE = 0.9999  # to torch, as for exports in fp32
_MOST_PARAMS = 450_000_000  # an ONNX model of one file has less than 2 GB


class UntraceableError(TeacherError):
    """A model cannot be traced to a graph, or its embeddings differ from those of torch."""


def as_graph(teacher: Teacher, runtime: str = "onnx", device: str = "cpu") -> Teacher:
    """Trace a model of torch, and return it in another runtime, with the same fingerprint.

    Args:
        runtime: onnx or openvino.
        device: cpu, or for onnx cuda or cuda:1.

    Raises:
        UntraceableError: see there.
        MissingExtraError: the runtime is not installed.
    """
    if teacher.module is None:
        raise UntraceableError("it has no torch module")
    if (teacher.params or 0) > _MOST_PARAMS:
        raise UntraceableError("it is too large for one ONNX file")
    graph = _trace(teacher)
    same = {entry.name: getattr(teacher, entry.name) for entry in fields(Identity)}
    found = ArrayTeacher(
        **same,
        forward=open_graph(graph, runtime, device),
        macs_counter=teacher.count_macs,
        readout=teacher.readout,
        takes_pixels=teacher.takes_pixels,
        runtime=runtime,
        twin=lambda: teacher,
    )
    require_parity(teacher, found)
    return found


def _trace(teacher: Teacher) -> bytes:
    import torch

    from whiten.models.tracing import trace_onnx

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = teacher.module

        def forward(self, images: torch.Tensor) -> Any:
            return teacher.forward(images)

    blank = np.zeros((2, *teacher.preprocess.size, 3), np.uint8)
    shown = blank if teacher.takes_pixels else teacher.preprocess.normalize(blank)
    example = torch.from_numpy(np.ascontiguousarray(shown)).to(teacher.device)
    graph: bytes = trace_onnx(Network().eval(), example).SerializeToString()
    return graph


def open_graph(graph: bytes, runtime: str, device: str) -> Run:
    """Open a graph in a runtime.

    Raises:
        UntraceableError: the runtime refuses it.
        ConfigError, MissingExtraError: see `run_graph`.
    """
    try:
        return run_graph(graph, runtime, device)
    except WhitenError:
        raise
    except Exception as error:  # runtimes raise anything
        raise UntraceableError(f"{runtime} cannot open its graph ({one_line(error)})") from error


def require_parity(teacher: Teacher, graph: Teacher) -> None:
    """Refuse a graph whose embeddings of a few drawn images differ from those of torch.

    Raises:
        UntraceableError: the lowest cosine is below 0.9999.
    """
    pixels = drawn_pixels(teacher.preprocess, 5)
    expected = teacher.embed(pixels)
    try:  # batches of one and of several, as a traced graph may depend on their number
        found = np.concatenate([graph.embed(pixels[:4]), graph.embed(pixels[4:])])
    except Exception as error:  # runtimes raise anything
        raise UntraceableError(f"its graph cannot run ({one_line(error)})") from error
    lowest = float((expected * found).sum(axis=1).min())
    if not lowest >= _LEAST_COSINE:
        raise UntraceableError(
            f"the graph's lowest cosine to torch is {lowest:.5f}, below {_LEAST_COSINE}"
        )
