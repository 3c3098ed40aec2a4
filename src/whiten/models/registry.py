"""From a URI to a teacher."""

from __future__ import annotations

from importlib import import_module

from whiten.errors import TeacherError
from whiten.models.teacher import Teacher
from whiten.models.uri import TeacherURI, parse_uri

# Sources are imported when they are asked for: each pulls in a heavy library. `open_uri` of the
# module takes the parsed URI. A student and what is exported of it are teachers too, but stand on
# higher floors, hence by name.
SOURCES = {
    "demo": "whiten.models.sources.demo_weights",
    "timm": "whiten.models.sources.timm_models",
    "torchvision": "whiten.models.sources.torchvision_models",
    "openclip": "whiten.models.sources.openclip",
    "hf": "whiten.models.sources.huggingface",
    "paper": "whiten.models.sources.paper",
    "onnx": "whiten.models.exported",
    "openvino": "whiten.models.exported",
    "torchscript": "whiten.models.exported",
    "python": "whiten.models.sources.python_factory",
    "store": "whiten.models.sources.stored",
    "whiten": "whiten.models.student",
}


def open_teacher(uri: str | TeacherURI) -> Teacher:
    """Load the model that a URI names; see `whiten.models.uri.SCHEMES`.

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
