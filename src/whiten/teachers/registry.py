"""From a URI to a teacher."""

from __future__ import annotations

from importlib import import_module

from whiten.errors import TeacherError
from whiten.spec import TeacherURI, parse_uri
from whiten.teachers.base import Teacher

# Sources are imported when they are asked for: each pulls in a heavy library. `open_uri` of the
# module takes the parsed URI. A student and what is exported of it are teachers too, but stand on
# higher floors, hence by name.
SOURCES = {
    "demo": "whiten.teachers.demo_weights",
    "timm": "whiten.teachers.timm_models",
    "torchvision": "whiten.teachers.torchvision_models",
    "openclip": "whiten.teachers.openclip",
    "hf": "whiten.teachers.huggingface",
    "paper": "whiten.teachers.paper",
    "onnx": "whiten.exported",
    "openvino": "whiten.exported",
    "torchscript": "whiten.exported",
    "python": "whiten.teachers.python_factory",
    "store": "whiten.teachers.stored",
    "whiten": "whiten.student",
}


def open_teacher(uri: str | TeacherURI) -> Teacher:
    """Load the model that a URI names; see `whiten.spec.SCHEMES`.

    Raises:
        ConfigError: the URI is wrong; the message lists the nearest right ones.
        TeacherError: the model or its weights cannot be loaded.
        MissingExtraError: its library is not installed.
    """
    parsed = parse_uri(uri) if isinstance(uri, str) else uri
    try:
        source = import_module(SOURCES[parsed.scheme])
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("whiten"):
            raise
        raise TeacherError(
            f"{parsed} needs {error.name}, which is not installed: pip install {error.name}"
        ) from error
    teacher: Teacher = source.open_uri(parsed)
    return teacher
