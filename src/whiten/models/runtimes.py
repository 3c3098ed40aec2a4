"""Run ONNX Runtime, OpenVINO and TorchScript through one function from arrays to embeddings.

The first two need no torch. Each uses as many threads as torch would.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from whiten.errors import ConfigError, MissingExtraError, TeacherError
from whiten.models.choice import chosen
from whiten.utils.threads import cores

Arrays = npt.NDArray[Any]
Run = Callable[[Arrays], Arrays]
"""Maps (n, …) normalised float32 input, or uint8 pixels -> (n, dim) float32."""

Provider = str | tuple[str, dict[str, str]]
"""An execution provider of ONNX Runtime, with its options."""

_log = logging.getLogger("whiten.models")

_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"

CPU_BATCH = 4  # images per batch; more do not fit into the CPU's caches


def open_onnx(path: Path, precision: str) -> Run:
    """Open a graph with ONNX Runtime; its first output is the embedding."""
    ort = import_onnxruntime("running an exported ONNX model")
    return _run_onnx(ort, str(path), providers(ort, str(path)))


def providers(ort: Any, name: str) -> list[Provider]:
    """Return the execution providers for the chosen device; `auto` is all there are.

    Args:
        name: of the graph, to log that it runs on the CPU though a GPU was chosen.
    """
    known: list[str] = ort.get_available_providers()
    device = chosen().device
    if device == "auto":
        return [*known]
    if device.startswith("cuda") and _CUDA in known:
        return _on_cuda(device)
    if device != "cpu":
        _log.warning("%s runs on the CPU: this ONNX Runtime does not compute on %s", name, device)
    return [_CPU]


def _on_cuda(device: str) -> list[Provider]:
    number = device.partition(":")[2]
    return [(_CUDA, {"device_id": number}) if number else _CUDA, _CPU]


def open_openvino(path: Path, precision: str) -> Run:
    """Open an OpenVINO model on the CPU."""
    return _run_openvino(str(path), precision)


def run_graph(graph: bytes, runtime: str, device: str = "cpu") -> Run:
    """Run an fp32 ONNX graph in memory.

    Args:
        runtime: onnx or openvino.
        device: cpu, or for onnx cuda or cuda:1.

    Raises:
        ConfigError: ONNX Runtime cannot compute on this device.
        MissingExtraError: the runtime is not installed.
    """
    if runtime == "openvino":
        return _run_openvino(graph, "fp32")
    ort = import_onnxruntime("running a model as an ONNX graph")
    if device == "cpu":
        return _run_onnx(ort, graph, [_CPU])
    if _CUDA not in ort.get_available_providers():
        raise ConfigError(
            "this ONNX Runtime has no CUDA: pip install onnxruntime-gpu, or leave out --runtime"
        )
    return _run_onnx(ort, graph, _on_cuda(device))


def _run_onnx(ort: Any, graph: str | bytes, providers: list[Provider]) -> Run:
    session = ort.InferenceSession(graph, session_options(ort), providers=providers)
    output = session.get_outputs()[0].name
    return lambda inputs: run_session(session, output, inputs)


def _run_openvino(graph: str | bytes, precision: str) -> Run:
    ov = import_openvino()
    core = ov.Core()
    compiled = core.compile_model(
        core.read_model(graph),
        "CPU",
        {
            # Otherwise some CPUs compute in bf16 whatever the file holds.
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
            "INFERENCE_NUM_THREADS": threads(),
            "PERFORMANCE_HINT": "LATENCY",
        },
    )
    own = threading.local()  # infer requests are not thread-safe

    def run(inputs: Arrays) -> Arrays:
        if not hasattr(own, "request"):
            own.request = compiled.create_infer_request()
        found: Arrays = own.request.infer([np.ascontiguousarray(inputs)])[0]
        return found.copy()  # the next call overwrites it

    return run


def open_torchscript(path: Path, precision: str) -> Run:
    """Open a TorchScript archive on the CPU; the only format that needs torch."""
    try:
        import torch
    except ImportError:
        raise TeacherError("running TorchScript needs torch: pip install torch") from None
    jit: Any = torch.jit  # its functions are untyped
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, but still widely deployed
        network = jit.load(str(path), map_location="cpu")

    def run(inputs: Arrays) -> Arrays:
        with torch.inference_mode():
            found: Arrays = network(torch.from_numpy(inputs)).float().numpy()
        return found

    return run


RUNTIMES: dict[str, Callable[[Path, str], Run]] = {
    "onnx": open_onnx,
    "openvino": open_openvino,
    "torchscript": open_torchscript,
}


def session_options(ort: Any) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads()
    options.log_severity_level = 4  # its errors are raised, too; hide notes on unused tensors
    # By default its threads spin for a millisecond, on cores that the next batch is decoded on:
    # then embedding from files takes 1.3 to 1.5 times as long.
    options.add_session_config_entry("session.intra_op.spin_duration_us", "100")
    return options


def run_session(session: Any, output: str, inputs: Arrays) -> Arrays:
    """Run an ONNX Runtime graph on any number of images, in batches of a fast size."""
    feed = session.get_inputs()[0]
    fixed = fixed_batch(session)
    on_cpu = session.get_providers()[0] == _CPU
    array = np.ascontiguousarray(inputs)
    size = fixed or (CPU_BATCH if on_cpu else len(array))
    parts = []
    for start in range(0, len(array), size):
        part = array[start : start + size]
        if fixed:  # a graph with fixed batch size: pad the last batch
            part = np.resize(part, (fixed, *part.shape[1:]))
        out = session.run([output], {feed.name: part})[0]
        parts.append(out[: len(array) - start])
    return np.concatenate(parts)


def fixed_batch(session: Any) -> int:
    """Return the only batch size that an ONNX Runtime graph takes; 0 if it takes any."""
    shape = session.get_inputs()[0].shape  # empty if even the number of axes is open
    return shape[0] if shape and isinstance(shape[0], int) else 0


def import_onnx(purpose: str) -> tuple[Any, Any]:
    """Import `onnx` and `onnxruntime`.

    Raises:
        MissingExtraError: they are not installed.
    """
    ort = import_onnxruntime(purpose)
    try:
        import onnx
    except ImportError:
        raise MissingExtraError(purpose, "onnx") from None
    return onnx, ort


def import_onnxruntime(purpose: str) -> Any:
    """Import ONNX Runtime without telemetry, which would write to the home folder and the network.

    Raises:
        MissingExtraError: ONNX Runtime is not installed.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when it is imported
    try:
        import onnxruntime
    except ImportError:
        raise MissingExtraError(purpose, "onnx") from None
    return onnxruntime


def import_openvino() -> Any:
    """Import OpenVINO without telemetry, which would write to the home folder and the network.

    Raises:
        MissingExtraError: OpenVINO is not installed.
    """
    name = "openvino_telemetry"
    before = sys.modules.get(name)
    if "openvino" not in sys.modules and before is None:
        sys.modules[name] = None  # type: ignore[assignment]  # which Python takes as missing
    try:
        import openvino
    except ImportError:
        raise MissingExtraError("an OpenVINO model", "openvino") from None
    finally:
        if before is None and name in sys.modules:
            del sys.modules[name]
    return openvino


def threads() -> int:
    """Return the number of threads that torch uses, or would use if it were installed."""
    if "torch" in sys.modules:
        return int(sys.modules["torch"].get_num_threads())
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdigit() and int(wanted):
        return int(wanted)
    return cores()
