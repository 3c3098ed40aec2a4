"""List and describe teachers for `whiten teachers`."""

from __future__ import annotations

import fnmatch
import importlib.util
from importlib import import_module
from typing import Any

from whiten.errors import ConfigError
from whiten.models.registry import SOURCES, open_teacher

# Sources with model names, and the module that they need.
LISTED = {
    "demo": "timm",
    "timm": "timm",
    "torchvision": "torchvision",
    "openclip": "open_clip",
    "paper": "torchvision",
}


def list_teachers(pattern: str = "") -> list[str]:
    """Return URIs that contain the pattern or match it as a glob; without one, the demo models."""
    if not pattern:
        return _names("demo")
    glob = pattern if any(c in pattern for c in "*?[") else f"*{pattern}*"
    return [
        uri
        for scheme, module in LISTED.items()
        if importlib.util.find_spec(module) is not None
        for uri in _names(scheme)
        if fnmatch.fnmatch(uri.lower(), glob.lower())
    ]


def names_one(pattern: str, found: list[str]) -> bool:
    """Return whether a pattern is the URI of one model rather than a search.

    Args:
        found: the result of `list_teachers` for it.

    Raises:
        ConfigError: nothing was found, and the pattern is no URI either.
    """
    if pattern in found:
        return True
    if not found and ":" not in pattern:
        raise ConfigError(f"no model matches {pattern!r}: `whiten teachers` lists the sources")
    return not found


def describe(uri: str) -> dict[str, Any]:
    """Open a teacher and return its properties by name, JSON-serialisable."""
    teacher = open_teacher(uri)
    p = teacher.preprocess
    return {
        "uri": teacher.uri,
        "dim": teacher.dim,
        "input": f"{p.size[0]}x{p.size[1]} px, {p.fit}, {p.interpolation}, {p.channels} {p.layout}",
        "crop": p.crop_fraction,
        "mean": list(p.mean),
        "std": list(p.std),
        "white": p.white,
        "params": teacher.params,
        "macs": teacher.count_macs(),
        "licence": teacher.licence,
        "weights": teacher.weights_hash,
        "fingerprint": teacher.fingerprint(),
    }


def _names(scheme: str) -> list[str]:
    return [f"{scheme}:{name}" for name in import_module(SOURCES[scheme]).list_names()]
