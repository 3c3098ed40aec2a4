"""Static int8: ranges of activations are measured once, on the user's images."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from whiten.models.tracing import BACKBONE, INPUT, onnx_libraries

# Operators with int8 instructions on CPUs, and those between them: converting to fp32 and back
# costs more than it gains.
_TYPES = [
    *("Conv", "Gemm", "MatMul", "Add", "Mul", "Clip", "Relu", "Concat"),
    *("MaxPool", "AveragePool", "GlobalAveragePool"),
]
_BATCH = 16


def quantise(model: Any, inputs: Sequence[npt.NDArray[Any]]) -> Any:
    """Quantise weights per channel to int8 and activations to uint8, in QDQ form.

    Pooling, projection and normalisation stay in fp32: they take little time and determine the
    directions of the embeddings, which 8 bits would degrade.

    Args:
        model: a traced student.
        inputs: images in the graph's input format, each without the batch axis.
    """
    onnx, _ = onnx_libraries()
    from onnxruntime.quantization import (
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quant_pre_process,
        quantize_static,
    )

    with tempfile.TemporaryDirectory(prefix="whiten-") as folder:
        plain, prepared, done = (Path(folder) / f"{n}.onnx" for n in ("plain", "prepared", "done"))
        onnx.save(model, plain)
        with contextlib.redirect_stdout(io.StringIO()):
            quant_pre_process(plain, prepared, skip_symbolic_shape=True)
            nodes = onnx.load(prepared).graph.node
            quantize_static(
                prepared,
                done,
                _Reader(inputs),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                op_types_to_quantize=_TYPES,
                nodes_to_exclude=[n.name for n in nodes if not n.name.startswith(BACKBONE)],
                weight_type=QuantType.QInt8,
                activation_type=QuantType.QUInt8,
                calibrate_method=CalibrationMethod.MinMax,
            )
        return onnx.load(done)


class _Reader:
    """Feeds batches of images to ONNX Runtime's calibration."""

    def __init__(self, inputs: Sequence[npt.NDArray[Any]]) -> None:
        self._batches = self._stacked(inputs)

    @staticmethod
    def _stacked(inputs: Sequence[npt.NDArray[Any]]) -> Iterator[dict[str, npt.NDArray[Any]]]:
        for start in range(0, len(inputs), _BATCH):
            yield {INPUT: np.stack(inputs[start : start + _BATCH])}

    def get_next(self) -> dict[str, npt.NDArray[Any]] | None:
        return next(self._batches, None)
