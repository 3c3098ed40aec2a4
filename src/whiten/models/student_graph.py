"""The fp32 ONNX graph of a student, stored next to its weights, which embeds without torch.

It ends in a seal: a hash of the graph and of the weights and settings that it was traced from. A
graph of other weights, or a damaged one, is never used. The seal is an entry of the graph's own
metadata, so that the file stays a valid ONNX model.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from whiten.errors import MissingExtraError, one_line
from whiten.models.card import model_card
from whiten.models.exported import Manifest, file_metadata
from whiten.models.graphs import UntraceableError, open_graph, require_parity
from whiten.models.student_folder import CARD, WEIGHTS, StudentFiles, read_student, student_name
from whiten.models.teacher import ArrayTeacher, Teacher
from whiten.models.uri import TeacherURI
from whiten.utils.files import write_atomically
from whiten.utils.hashing import fingerprint
from whiten.utils.memory import is_out_of_memory

GRAPH, REASON = "model.onnx", "no-graph.txt"
_FORMAT = 1
_KEY = b"whiten.seal"


@dataclass(frozen=True)
class StudentGraph:
    """A graph in memory.

    Attributes:
        model: the ONNX model, with its seal.
        params: number of parameters.
        macs: multiply-accumulates per image.
    """

    model: bytes
    params: int
    macs: int


def open_student(uri: TeacherURI, runtime: str, device: str = "cpu") -> Teacher:
    """Open `whiten:FOLDER` by its graph; a missing or foreign graph is traced first.

    The fingerprint is that of the student in torch. The graph is stored in the folder if that is
    writable.

    Args:
        runtime: onnx or openvino.
        device: cpu, or for onnx cuda or cuda:1.

    Raises:
        TeacherError: the folder is damaged.
        UntraceableError: the student has no graph; it opens in torch.
    """
    uri.take()
    files = read_student(Path(uri.target))
    graph = _read_graph(files) or add_graph(files)
    return _as_teacher(files, graph, str(uri), runtime, device)


def _as_teacher(
    files: StudentFiles, graph: StudentGraph, uri: str, runtime: str, device: str
) -> Teacher:
    from whiten.models.registry import open_network

    config, macs = files.config, graph.macs
    return ArrayTeacher(
        uri=uri,
        name=student_name(files.folder),
        dim=config.dim,
        preprocess=config.preprocess,
        weights_hash=files.weights_hash,
        forward=open_graph(graph.model, runtime, device),
        licence=config.licence,
        params=graph.params,
        compatible_with=config.galleries,
        macs_counter=lambda: macs,
        runtime=runtime,
        twin=partial(open_network, uri),
    )


# --- the file ---------------------------------------------------------------------------


def _read_graph(files: StudentFiles) -> StudentGraph | None:
    """Read the graph of these weights; None if there is none.

    Raises:
        UntraceableError: tracing these weights with these libraries failed before.
    """
    made_from = _source(files)
    with contextlib.suppress(OSError):
        model = (files.folder / GRAPH).read_bytes()
        size = len(model) - len(_seal(b"", made_from, 0, 0))
        numbers = model[-_NUMBERS:]
        if size > 0 and numbers.isdigit():
            params, macs = int(numbers[:_DIGITS]), int(numbers[_DIGITS:])
            if model[size:] == _seal(memoryview(model)[:size], made_from, params, macs):
                return StudentGraph(model, params, macs)
    with contextlib.suppress(OSError, ValueError):
        reason, source = (files.folder / REASON).read_text("utf-8").splitlines()
        if source == _attempt(made_from):
            raise UntraceableError(reason)
    return None


def _source(files: StudentFiles) -> str:
    """Return a fingerprint of all that a graph is traced from."""
    config = files.config
    facts = [config.architecture, config.pool, config.dim, dataclasses.asdict(config.preprocess)]
    return fingerprint([_FORMAT, files.weights_hash, *facts])


def _attempt(made_from: str) -> str:
    """Return a fingerprint of all that decides whether tracing fails."""
    return fingerprint([made_from, *map(_version, ("torch", "timm", "onnx", "onnxruntime"))])


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:  # perhaps another build, such as onnxruntime-gpu
        return ""


_DIGITS = 16
_NUMBERS = 2 * _DIGITS


def _seal(graph: bytes | memoryview, made_from: str, params: int, macs: int) -> bytes:
    """Return an entry of `ModelProto.metadata_props`, which may be appended to a serialised model.

    Protocol buffers: field 14 of the model is an entry of key (field 1) and value (field 2), each
    with its length in one byte.
    """
    numbers = f"{params:0{_DIGITS}d}{macs:0{_DIGITS}d}".encode()
    digest = hashlib.blake2b(graph, digest_size=16)
    digest.update(made_from.encode() + numbers)
    value = digest.hexdigest().encode() + numbers
    entry = b"\x0a" + bytes([len(_KEY)]) + _KEY + b"\x12" + bytes([len(value)]) + value
    return b"\x72" + bytes([len(entry)]) + entry


def _write(folder: Path, name: str, content: bytes) -> None:
    """Write a file next to the weights, if the folder is writable.

    Several processes may do this at once: each has its own temporary file, and all write the same.
    """
    try:
        handle, partial_name = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
    except OSError:  # the graph stays in memory
        return
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        shutil.copymode(folder / WEIGHTS, partial_name)
        os.replace(partial_name, folder / name)
    except OSError:
        Path(partial_name).unlink(missing_ok=True)
    except BaseException:
        Path(partial_name).unlink(missing_ok=True)
        raise


# --- tracing ----------------------------------------------------------------------------


def add_graph(files: StudentFiles) -> StudentGraph:
    """Trace a student, compare its graph with torch, and store it in the student's folder.

    Raises:
        UntraceableError: it cannot be traced, or its embeddings differ. The folder records this,
            unless memory ran out.
        TeacherError: its weights and configuration do not fit.
    """
    try:
        graph = _trace(files)
    except UntraceableError as error:
        if not is_out_of_memory(error):  # which says nothing about the student
            reason = f"{one_line(error)}\n{_attempt(_source(files))}\n"
            _write(files.folder, REASON, reason.encode())
        raise
    _write(files.folder, GRAPH, graph.model)
    return graph


def finish_student(folder: Path) -> str:
    """Add the graph to a student that was just saved, and say in its card which runtime it has.

    Returns:
        Why it has no graph; "" if it has one. The student is whole without one.
    """
    files = read_student(folder)
    reason = ""
    try:
        add_graph(files)
    except (UntraceableError, MissingExtraError, OSError) as error:
        reason = one_line(error)
    runs = f"Runs without torch too: `{GRAPH}` is its ONNX graph in float32"
    card = model_card(files.config, f"Runs in torch alone: {reason}" if reason else runs)
    with contextlib.suppress(OSError):  # the earlier card stays
        write_atomically(folder / CARD, card.encode("utf-8", "backslashreplace"))
    return reason


def _trace(files: StudentFiles) -> StudentGraph:
    from whiten.models.student import as_teacher, build_network
    from whiten.models.tracing import Deployed, record_metadata, trace_onnx

    config = files.config
    uri = f"whiten:{files.folder}"
    teacher = as_teacher(build_network(files), config, uri)
    if teacher.weights_hash != files.weights_hash:
        raise UntraceableError("torch holds its weights in other types than its file")
    deployed = Deployed(build_network(files), config.preprocess, False)  # it wraps the backbone
    model = trace_onnx(deployed, deployed.example(2, config.preprocess.size))
    params, macs = teacher.params or 0, teacher.count_macs() or 0
    known = Manifest(
        name=config.architecture,  # equal weights give equal bytes, in any folder
        dim=config.dim,
        preprocess=config.preprocess,
        input="normalised",
        licence=config.licence,
        params=params,
        source_fingerprint=teacher.fingerprint(),
        variants=[],
    )
    record_metadata(model, file_metadata(known, "fp32"))
    traced: bytes = model.SerializeToString()
    graph = StudentGraph(traced + _seal(traced, _source(files), params, macs), params, macs)
    require_parity(teacher, _as_teacher(files, graph, uri, "onnx", "cpu"))
    return graph
