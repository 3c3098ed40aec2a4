"""Places that are paths or URLs of a storage service; imports little, for exported students."""

from __future__ import annotations

import os
import re
from pathlib import Path, PosixPath

_URL = re.compile(r"(s3|gs|gcs|az|hf|https?):/+(?=[^/])", re.IGNORECASE)
_SCHEMES = {"gcs": "gs"}


def as_url(place: str | os.PathLike[str]) -> str | None:
    """Return the URL of a storage service, also one whose slashes a `Path` has joined.

    None for a path.
    """
    text = os.fspath(place)
    found = _URL.match(text)
    if found is None:
        return None
    scheme = found[1].lower()
    return f"{_SCHEMES.get(scheme, scheme)}://{text[found.end() :]}"


class UrlPath(PosixPath):
    """A URL where code expects a path: it has a name, a suffix and a parent, and is no folder."""

    def __str__(self) -> str:
        text = super().__str__()
        return as_url(text) or text

    def __fspath__(self) -> str:
        return str(self)

    def resolve(self, strict: bool = False) -> UrlPath:
        return self

    def absolute(self) -> UrlPath:
        return self


def as_path(place: str | os.PathLike[str]) -> Path:
    """Return a path; a URL as one that shows itself as it is."""
    url = as_url(place)
    return Path(place) if url is None else UrlPath(url)


def named_place(place: str | os.PathLike[str]) -> str:
    """Return a path or a URL as the user named it."""
    return as_url(place) or os.fspath(place)


def absolute(path: str) -> str:
    """Return the absolute path, with links as they are named; a URL is absolute."""
    return as_url(path) or os.path.abspath(path)  # noqa: PTH100


def joined(folder: str, path: str) -> str:
    """Return where a path leads that starts at a folder; either may be a URL."""
    if as_url(path) is not None:
        return as_url(path) or path
    if (url := as_url(folder)) is not None:
        return f"{url.rstrip('/')}/{path}"
    return os.path.join(folder, path)


def listed(folder: str, path: str) -> str:
    """Return where a path of a table leads that starts at a folder.

    A path that was written on Windows leads where its backslashes are slashes, if only that exists.
    """
    place = joined(folder, path)
    if "\\" in path and as_url(place) is None and not os.path.lexists(place):
        turned = joined(folder, path.replace("\\", "/"))
        if os.path.lexists(turned):
            return turned
    return place
