"""Ask a storage service again after errors that may pass, with growing pauses.

Errors name the kind of failure only: what services and libraries write into theirs may hold
credentials.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any, TypeVar

from whiten.errors import ChangedError, NotThereError, StorageError, WhitenError, causes

Value = TypeVar("Value")

ATTEMPTS = 6
FIRST_PAUSE = 0.2  # seconds; doubled after each attempt, up to LONGEST_PAUSE
LONGEST_PAUSE = 5.0
_PASSING = (408, 409, 425, 429)  # besides 500 and above
_DENIED = ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError")


class CutError(Exception):
    """Fewer bytes arrived than were requested."""


def retried(call: Callable[[], Value], place: str) -> Value:
    """Return what a request returns; tries again if the failure may pass.

    Args:
        place: URL for the message, without credentials.

    Raises:
        NotThereError: there is no such bucket or object.
        ChangedError: the object has changed since it was listed.
        StorageError: the service refuses, or failed at every attempt.
    """
    pause = FIRST_PAUSE
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return call()
        except (WhitenError, FileExistsError):
            raise
        except Exception as error:
            known = _final(error, place)
            if known is None and attempt == ATTEMPTS:
                known = StorageError(
                    f"{place}: {_kind(error)}, {ATTEMPTS} times: what is done is kept, run again "
                    "once the service answers"
                )
        if known is not None:
            raise known
        time.sleep(pause * random.uniform(0.5, 1.0))
        pause = min(2 * pause, LONGEST_PAUSE)
    raise AssertionError("the last attempt returns or raises")


def _final(error: Exception, place: str) -> StorageError | None:
    """Return what to raise at once; None if the failure may pass."""
    status = status_of(error)
    if status in (412, 416) or type(error).__name__ == "FileExpired":
        return ChangedError(
            f"{place} has changed since it was listed: what is done is kept, run again"
        )
    is_missing = isinstance(error, FileNotFoundError) and not _hides_a_failure(error, status)
    if is_missing or status in (404, 410):
        return NotThereError(f"{place} does not exist: check its name, and the bucket's")
    is_denied = type(error).__name__ in _DENIED
    if is_denied or isinstance(error, PermissionError) or status in (401, 403):
        why = "no credentials" if is_denied else "access denied"
        return StorageError(
            f"{place}: {why}: set credentials where the service's own tools look for them "
            "(environment, configuration file, role of the machine)"
        )
    is_passing = status is None or status in _PASSING or status >= 500
    # Mistakes of ours, and what a service's file system says it cannot do.
    is_ours = isinstance(error, TypeError | ValueError | ImportError | NotImplementedError)
    if is_passing and not is_ours:
        return None
    return StorageError(f"{place} cannot be reached ({_kind(error)}): check the URL")


def _hides_a_failure(error: FileNotFoundError, status: int | None) -> bool:
    """Return whether an object may be there: fsspec calls it missing whenever HTTP fails."""
    if status is not None:
        return status in _PASSING or status >= 500
    return any(
        (isinstance(cause, OSError) or type(cause).__module__.startswith("aiohttp."))
        and not isinstance(cause, FileNotFoundError | ValueError)  # a URL that cannot be one
        for cause in causes(error)
    )


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status behind an error of any client library; None if it has none."""
    for cause in causes(error):
        if type(cause).__module__ == "aiohttp.http_exceptions":  # an answer that breaks off
            return None
        response: Any = getattr(cause, "response", None)
        if isinstance(response, dict):  # botocore
            found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        else:
            found = getattr(response, "status_code", None)
        for name in ("status", "status_code", "code"):
            found = found if found is not None else getattr(cause, name, None)
        if isinstance(found, int) and 100 <= found < 600:
            return found
        if isinstance(found, str) and found.isdecimal():
            return int(found)
    return None


def _kind(error: BaseException) -> str:
    """Describe a failure without its message."""
    if isinstance(error, CutError):
        return "the answer was cut off"
    status = status_of(error)
    if status is not None:
        return f"error {status}"
    found = (cause for cause in causes(error) if not isinstance(cause, FileNotFoundError))
    return f"no answer ({type(next(found, error)).__name__})"
