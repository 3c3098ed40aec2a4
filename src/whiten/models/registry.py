"""Open a model by its URI."""

from __future__ import annotations

from importlib import import_module

from whiten.errors import ConfigError, TeacherError
from whiten.models.stored_model import Model, require_network
from whiten.models.teacher import Teacher
from whiten.models.uri import TeacherURI, parse_uri

# Sources are imported on demand, because each needs a heavy library. Their `open_uri` takes the
# parsed URI.
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


def open_teacher(uri: str | TeacherURI) -> Model:
    """Load the model that a URI names; see `whiten.models.uri.SCHEMES`.

    Raises:
        ConfigError: the URI is invalid; the message lists the nearest valid ones.
        TeacherError: the model or its weights cannot be loaded.
        MissingExtraError: its library is not installed.
    """
    parsed = parse_uri(uri) if isinstance(uri, str) else uri
    if parsed.scheme == "fuse":
        raise ConfigError(
            f"{parsed} is several models and a single one is needed here: name one; evaluate, "
            "index, search, dedup, compact, serve and whiten.load take several"
        )
    try:
        source = import_module(SOURCES[parsed.scheme])
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("whiten"):
            raise
        raise TeacherError(
            f"{parsed} needs {error.name}, which is not installed: pip install {error.name}"
        ) from error
    model: Model = source.open_uri(parsed)
    return model


def open_network(uri: str | TeacherURI) -> Teacher:
    """Load a model that computes embeddings of pixels; see `open_teacher`.

    Raises:
        TeacherError: the model only holds stored embeddings.
    """
    return require_network(open_teacher(uri))
