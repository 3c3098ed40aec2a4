"""Open the storage service of a URL through fsspec; each service has an extra.

Credentials come from where each service's own tools look for them. A URL that holds one is refused:
it would be stored with the images' paths.
"""

from __future__ import annotations

import logging
import os
import re
from functools import cache
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from whiten.errors import ConfigError, MissingExtraError, StorageError
from whiten.utils.urls import as_url

_SERVICES = {
    "s3": ("s3fs", "s3", "S3 (s3://)"),
    "gs": ("gcsfs", "gcs", "Google Cloud Storage (gs://)"),
    "az": ("adlfs", "azure", "Azure Blob Storage (az://)"),
    "hf": ("huggingface_hub", "hf", "the Hugging Face Hub (hf://)"),
    "http": ("aiohttp", "http", "reading over HTTP"),
    "https": ("aiohttp", "http", "reading over HTTP"),
}
"""Module, extra and name by scheme."""

_LOGGERS = {"gcsfs": "gcsfs", "adlfs": "azure", "huggingface_hub": "huggingface_hub"}
"""Loggers by module."""

_SECRET = re.compile(
    r"^(sig|signature|.*[-_.]sig(nature)?|x-amz-.*|x-goog-.*|awsaccesskeyid|googleaccessid|"
    r".*(token|secret|passw|credential|api-?_?key|auth).*|key)$",
    re.IGNORECASE,
)


def scheme_of(url: str) -> str:
    return url.partition(":")[0]


def refuse_credentials(url: str) -> None:
    """Refuse a URL with a user, a password, a signature or a token in it.

    Raises:
        ConfigError: it has one; the message does not show it.
    """
    parts = urlsplit(url)
    shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    is_http = parts.scheme in ("http", "https")
    has_user = "@" in parts.netloc
    names = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True)]
    if has_user or any(map(_SECRET.match, names)):
        raise ConfigError(
            f"the URL of {shown} holds a credential, which would be stored with the paths of the "
            "images: leave it out, and set it where the service's own tools look for it"
        )
    if names and not is_http:
        raise ConfigError(f"{shown} has options after `?`: leave them out")


@cache
def filesystem(scheme: str) -> Any:
    """Return the fsspec file system of a scheme; libraries' own retries are off, see `retrying`.

    Raises:
        MissingExtraError: the library of the service is not installed.
        StorageError: no account or credentials are set, or wrong ones.
    """
    module, extra, name = _SERVICES[scheme]
    try:
        __import__(module)
        import fsspec
    except ImportError:
        raise MissingExtraError(name, extra) from None
    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    if scheme == "s3":
        options["config_kwargs"] = {
            "retries": {"max_attempts": 0},
            "connect_timeout": _seconds(10),
            "read_timeout": _seconds(60),
        }
    elif module == "aiohttp":
        import aiohttp

        limit = aiohttp.ClientTimeout(sock_connect=_seconds(10), sock_read=_seconds(60))
        options["client_kwargs"] = {"timeout": limit}
    if module in _LOGGERS:  # what fails is told by our errors, without traceback
        logging.getLogger(_LOGGERS[module]).setLevel(logging.CRITICAL)
    try:
        made = fsspec.filesystem(scheme, **options)
    except Exception as error:  # each library has its own; their messages may hold credentials
        raise StorageError(
            f"{name} cannot be opened ({type(error).__name__}): set account and credentials where "
            "the service's own tools look for them (environment, configuration file, role of the "
            "machine)"
        ) from error
    _ask_once(made)
    return made


def _ask_once(files: Any) -> None:
    """Turn off the retries of a library: six times theirs would be minutes without a word.

    Where a version has no such switch, they stay.
    """
    if hasattr(files, "retries"):
        files.retries = 1  # s3fs
    client = getattr(files, "service_client", None)  # adlfs
    policy: Any = getattr(getattr(client, "_config", None), "retry_policy", None)
    if hasattr(policy, "total_retries"):
        policy.total_retries = 0
    request = getattr(getattr(type(files), "_request", None), "__wrapped__", None)  # gcsfs
    if request is not None:
        files._request = request.__get__(files)


if hasattr(os, "register_at_fork"):  # a client's thread does not outlive a fork
    os.register_at_fork(after_in_child=filesystem.cache_clear)


def refuse_as_output(place: str | os.PathLike[str], what: str) -> None:
    """Refuse a URL for what is written in place, with locks and renames, that no service has.

    Raises:
        ConfigError: it is one.
    """
    _refuse_url(
        place,
        f"{what} cannot be written to",
        "name a folder on a disk, and copy it there when it is done (stores of embeddings can be "
        "written there, `whiten embed`)",
    )


def refuse_as_index(place: str | os.PathLike[str]) -> None:
    """Refuse a URL as the place of an index that is read: its files are mapped.

    Raises:
        ConfigError: it is one.
    """
    _refuse_url(
        place,
        "an index is read from a disk or a database, not from",
        "copy it to a folder, and name that",
    )


def _refuse_url(place: str | os.PathLike[str], refusal: str, remedy: str) -> None:
    if (url := as_url(place)) is not None:
        raise ConfigError(f"{refusal} {scheme_of(url)}://: {remedy}")


def _seconds(usual: float) -> float:
    """Return a time limit; `WHITEN_STORAGE_TIMEOUT` sets another for slow services."""
    return float(os.environ.get("WHITEN_STORAGE_TIMEOUT", usual))
