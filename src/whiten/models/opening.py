"""Open a model in the chosen runtime: torch, or without it ONNX Runtime or OpenVINO."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from whiten.errors import ConfigError, MissingExtraError, TeacherError
from whiten.models.choice import Choice, choice_restored, choose, chosen
from whiten.models.graphs import UntraceableError, as_graph
from whiten.models.registry import open_teacher
from whiten.models.stored_model import Model
from whiten.models.student_graph import open_student
from whiten.models.teacher import ArrayTeacher, Teacher
from whiten.models.uri import TeacherURI, parse_uri

_FEWEST = 128  # images; tracing a model takes as long as torch takes for about these

_log = logging.getLogger("whiten.models")


def open_model(
    uri: str | TeacherURI, *, runtime: str | None = None, device: str | None = None
) -> Model:
    """Open the model that a URI names, to embed with it.

    A student runs as its graph where the runtime is not torch. Other models of torch open in torch,
    and `for_many` traces them where that pays, unless a runtime is named. Models of other runtimes
    (`onnx:`, `openvino:`, `torchscript:`) keep theirs, and `store:` computes nothing.

    Args:
        runtime: auto, torch, onnx or openvino; by default that of the command line. `auto` is torch
            on a GPU, and ONNX Runtime on a CPU if the model can be traced.
        device: auto, cpu, cuda or mps; likewise.

    Raises:
        ConfigError: the runtime or the device is unknown or not there; see also `open_teacher`.
        TeacherError: the model cannot be opened, or cannot be traced for the named runtime.
        MissingExtraError: a library is not installed.
    """
    choice = _asked(runtime, device)
    parsed = parse_uri(uri) if isinstance(uri, str) else uri
    wanted = choice.resolved
    if parsed.scheme == "whiten" and wanted != "torch":
        try:
            return open_student(parsed, wanted, choice.graph_device)
        except _UNAVAILABLE as error:
            _stay_in_torch(choice, str(parsed), error)
    with choice_restored():
        choose(choice.runtime, choice.device)  # which models of other runtimes look at
        model = open_teacher(parsed)
    if isinstance(model, Teacher) and model.runtime == "torch":
        if wanted != "torch" and not choice.is_auto:
            return _traced(model, choice)
        if choice.runtime == "torch":
            model.traced = model
        return model.to(choice.torch_device)
    return model


_UNAVAILABLE = (UntraceableError, MissingExtraError, OSError)


def _asked(runtime: str | None, device: str | None) -> Choice:
    if runtime is None and device is None:
        return chosen()
    named: dict[str, Any] = {"runtime": runtime, "device": device}
    choice = replace(chosen(), **{name: value for name, value in named.items() if value})
    choice.check()
    return choice


def _stay_in_torch(choice: Choice, name: str, error: Exception) -> None:
    """Log why a model runs in torch; refuse that if another runtime is named."""
    if not choice.is_auto:
        if isinstance(error, UntraceableError):
            raise TeacherError(
                f"{name} cannot run in {choice.runtime} ({error}): use --runtime torch"
            ) from error
        raise error
    _log.warning("%s runs in torch: %s", name, error)


def _traced(model: Teacher, choice: Choice) -> Teacher:
    try:
        return as_graph(model, choice.resolved, choice.graph_device)
    except _UNAVAILABLE as error:
        _stay_in_torch(choice, model.uri, error)
        return model


def for_many(model: Teacher, images: int) -> Teacher:
    """Return the model in the runtime that embeds this many images fastest.

    A model of torch on a CPU is traced, once per process, if the images are worth it and the
    command line did not choose torch.
    """
    if (
        model.runtime != "torch"
        or model.module is None
        or model.device_type != "cpu"
        or chosen().runtime == "torch"
    ):
        return model
    if model.traced is None and images >= _FEWEST:
        model.traced = _traced(model, replace(chosen(), device="cpu"))
    return model.traced or model


def takes_bf16(model: Model) -> bool:
    """Return whether torch computes the model; a graph or a store decides its own precision."""
    return isinstance(model, Teacher) and not (
        isinstance(model, ArrayTeacher) and model.twin is None
    )


def require_bf16(model: Model, runtime: str | None) -> None:
    """Refuse to embed in bfloat16 with what computes in a precision of its own.

    Raises:
        ConfigError: the embeddings are stored, or a graph computes them.
    """
    if not isinstance(model, Teacher):
        raise ConfigError(f"{model.uri} is stored as it is: leave out --precision bf16")
    if not takes_bf16(model) or runtime in ("onnx", "openvino"):
        raise ConfigError(
            f"{model.runtime} computes {model.uri} in the precision of its graph: leave out "
            "--precision bf16"
        )


def runtime_of(model: Model, *, bf16: bool = False) -> str:
    """Return the runtime of a model; `none` if its embeddings are stored.

    Args:
        bf16: whether it embeds in bfloat16, which the graph of a model of torch cannot.
    """
    if not isinstance(model, Teacher):
        return "none"
    if bf16 and model.twin is not None:
        return "torch"
    return (model.traced or model).runtime
