"""Find what a run names relatively, whatever the current folder is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from whiten.models.uri import lasting
from whiten.utils.urls import absolute, as_url, joined


def begun_in(options: Mapping[str, Any]) -> str | None:
    """Return where relative paths of a `config.yaml` lead from, if not from the current folder.

    That is where the run was begun, unless all has moved since: then it is the current folder.
    """
    folder, images = options.get("folder"), options.get("images")
    if not isinstance(folder, str) or not isinstance(images, str) or folder == absolute("."):
        return None
    there = folder if as_url(images) else joined(folder, images)
    return folder if Path(there).exists() else None


def located(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a `config.yaml` with its images and models as named from the current
    folder."""
    found = {name: value for name, value in options.items() if name != "folder"}
    if (folder := begun_in(options)) is None:
        return found
    found["images"] = absolute(joined(folder, options["images"]))
    if isinstance(others := options.get("unlabelled"), list):
        found["unlabelled"] = [absolute(joined(folder, str(other))) for other in others]
    if isinstance(teachers := options.get("teachers"), list):
        found["teachers"] = [lasting(str(uri), folder) for uri in teachers]
    if isinstance(student := options.get("student"), str):
        found["student"] = lasting(student, folder)
    return found
