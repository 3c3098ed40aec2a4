"""Write a student in each format and precision."""

from __future__ import annotations

import tempfile
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from whiten.errors import ConfigError, nearest
from whiten.export.graphs import to_fp16, write_onnx, write_openvino, write_torchscript
from whiten.export.images import Pixels
from whiten.export.quantisation import quantise
from whiten.models.exported import PRECISIONS, SUFFIXES, Manifest, Variant, file_metadata
from whiten.models.student import load_student
from whiten.models.tracing import Deployed, trace_onnx
from whiten.utils.hashing import hash_file

OFFERED = {
    "onnx": ("fp32", "fp16", "int8"),
    "openvino": ("fp32", "bf16", "fp16", "int8"),
    "torchscript": ("fp32", "bf16", "fp16"),
}

Wanted = tuple[str, str]
"""A format and a precision."""


def choose(formats: list[str], precisions: list[str]) -> tuple[list[Wanted], list[str]]:
    """Combine formats and precisions, with remarks on unsupported combinations.

    Raises:
        ConfigError: a name is wrong, or a format has none of the precisions.
    """
    for what, names, known in (
        ("format", formats, tuple(OFFERED)),
        ("precision", precisions, PRECISIONS),
    ):
        for name in names:
            if name not in known:
                hint = nearest(name, known)
                raise ConfigError(f"{what} must be one of {', '.join(known)}, not {name!r}{hint}")
        if not names:
            raise ConfigError(f"name at least one {what}: {', '.join(known)}")
    wanted: list[Wanted] = []
    left_out = []
    for name in dict.fromkeys(formats):
        has = [(name, precision) for precision in PRECISIONS if precision in precisions]
        there = [pair for pair in has if pair[1] in OFFERED[name]]
        if not there:
            raise ConfigError(
                f"{name} has no {' or '.join(dict.fromkeys(precisions))}: name one of "
                f"{', '.join(OFFERED[name])}"
            )
        wanted += there
        left_out += [f"{name} has no {p}: left out" for f, p in has if (f, p) not in there]
    return wanted, left_out


class Builder:
    """Writes variants; shared parts are created once.

    Args:
        student: folder of the student; it is loaded again, because tracing wraps its layers.
        manifest: metadata that the files record.
        calibration: (m, h, w, 3) uint8 images to measure the ranges of int8.
    """

    def __init__(self, student: Path, manifest: Manifest, calibration: Pixels) -> None:
        self._student = student
        self._manifest = manifest
        self._calibration = calibration
        self._scratch = tempfile.TemporaryDirectory(prefix="whiten-export-")
        self.scratch = Path(self._scratch.name)

    def __enter__(self) -> Builder:
        return self

    def __exit__(self, *_: object) -> None:
        self._scratch.cleanup()

    def write(self, folder: Path, name: str, precision: str) -> Variant:
        """Write the student's files in a format and a precision."""
        path = folder / f"student-{precision}{SUFFIXES[name]}"
        metadata = file_metadata(self._manifest, precision)
        if name == "torchscript":
            shape = self._manifest.preprocess.size
            files = write_torchscript(self._computing_in(precision), shape, path, metadata)
        else:
            graph = self._int8 if precision == "int8" else self._fp32
            if name == "openvino":
                # fp16 weights are more exact than bf16, which it computes with.
                halves = precision in ("fp16", "bf16")
                files = write_openvino(graph, path, metadata, halves=halves)
            else:
                graph = to_fp16(graph) if precision == "fp16" else graph
                files = write_onnx(graph, path, metadata)
        hashes = {file.name: hash_file(file) for file in files}
        size = sum(file.stat().st_size for file in files)
        return Variant(name, precision, hashes, size)

    def _computing_in(self, precision: str) -> Deployed:
        halves = {"bf16": torch.bfloat16, "fp16": torch.float16}
        if precision not in halves:
            return self._deployed
        return self._load().compute_in(halves[precision])

    @cached_property
    def _deployed(self) -> Deployed:
        return self._load()

    def _load(self) -> Deployed:
        net, config = load_student(self._student)
        return Deployed(net, config.preprocess, self._manifest.input == "pixels")

    @cached_property
    def _fp32(self) -> Any:
        return trace_onnx(self._deployed, self._deployed.example(2, self._manifest.preprocess.size))

    @cached_property
    def _int8(self) -> Any:
        preprocess = self._manifest.preprocess
        if self._manifest.input == "pixels":
            return quantise(self._fp32, list(self._calibration))
        return quantise(self._fp32, [preprocess.normalize(p[None])[0] for p in self._calibration])
