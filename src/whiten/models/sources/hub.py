"""Load models that may need a download: online, offline, or with random weights."""

from __future__ import annotations

import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from whiten.errors import TeacherError, WhitenError, causes
from whiten.models.teacher import first_line
from whiten.models.uri import TeacherURI


@contextmanager
def seeded() -> Iterator[None]:
    """Draw the same random weights every time, and leave the caller's random state unchanged."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        yield


@contextmanager
def hub_access(
    uri: TeacherURI, remedy: str, *, server: str = "", is_local: bool = False
) -> Iterator[bool]:
    """Let a library load a model that it may download; yields whether the server responds.

    The Hugging Face client retries for over a minute. Without a network it is switched offline
    temporarily: cached models still load, others fail at once.

    Args:
        remedy: how to do without the hub; ends the error message.
        server: address of the download; by default the Hugging Face hub.
        is_local: the model is a file, so no server is contacted.

    Raises:
        TeacherError: the model cannot be downloaded or loaded.
    """
    from huggingface_hub import constants

    was_offline = constants.HF_HUB_OFFLINE
    is_online = not (is_local or was_offline) and answers(server or constants.ENDPOINT)
    constants.HF_HUB_OFFLINE = not is_online
    try:
        yield is_online
    except WhitenError:
        raise
    except Exception as error:  # libraries raise errors without a common base
        problem = f"cannot load {uri} ({first_line(error)})"
        is_io = any(isinstance(cause, OSError) for cause in causes(error, contexts=True))
        if not is_online and not is_local and is_io:
            why = "HF_HUB_OFFLINE is set" if was_offline else "no network"
            problem = f"cannot download {uri} ({why})"
        raise TeacherError(f"{problem}: {remedy}") from error
    finally:
        constants.HF_HUB_OFFLINE = was_offline


def answers(server: str, seconds: float = 5.0) -> bool:
    """Return whether a server can be reached, within `seconds`."""
    reached = threading.Event()

    def contact() -> None:
        try:
            request = urllib.request.Request(server, method="HEAD")
            with urllib.request.urlopen(request, timeout=seconds):
                reached.set()
        except urllib.error.HTTPError as answer:  # an error response is a response
            answer.close()
            reached.set()
        except OSError as error:  # the hub's client may trust more certificates than Python
            if isinstance(getattr(error, "reason", error), ssl.SSLError):
                reached.set()

    # In a thread, because name resolution has no timeout.
    thread = threading.Thread(target=contact, daemon=True)
    thread.start()
    thread.join(seconds)
    return reached.is_set()
