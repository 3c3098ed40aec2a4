"""The settings of a service: limits and access."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from whiten.errors import ConfigError, one_line
from whiten.media.decoding import MAX_PIXELS
from whiten.utils.names import several


@dataclass(frozen=True)
class Settings:
    """Limits of a service, and access to it.

    Attributes:
        roots: folders in which clients may name files; symbolic links are followed only to targets
            within these folders. Otherwise, only indexed images are read.
        hosts: names that clients may use besides IP addresses and localhost.
        token: required from clients; None allows everyone who reaches the port.
        max_upload: maximum bytes per request.
        max_pixels: maximum pixels per uploaded image, whatever its file size.
        max_hits: maximum k.
        waiting: maximum requests waiting for the model; further ones are told to retry.
        batch: maximum images per batch of the model.
        timeout: maximum seconds per request, including the upload.
        writable: whether clients may add and remove images; needs a token.
        uploads: folder that keeps uploaded images; by default `NAME-uploads` next to the folder
            NAME of the index, none for a database.
    """

    roots: tuple[Path, ...] = ()
    hosts: tuple[str, ...] = ()
    token: str | None = field(default=None, repr=False)
    max_upload: int = 20_000_000
    max_pixels: int = 50_000_000
    max_hits: int = 1000
    waiting: int = 64
    batch: int = 8
    timeout: float = 30.0
    writable: bool = False
    uploads: Path | None = None

    def __post_init__(self) -> None:
        """Validate; raises ConfigError for settings that make no sense."""
        object.__setattr__(self, "hosts", tuple(several(self.hosts)))
        object.__setattr__(self, "roots", tuple(map(Path, several(self.roots))))
        for name in ("max_upload", "max_pixels", "max_hits", "waiting", "batch", "timeout"):
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise ConfigError(f"{name} must be above 0, not {value}")
        if self.max_pixels > MAX_PIXELS:
            raise ConfigError(f"max_pixels must be at most {MAX_PIXELS:,}, not {self.max_pixels:,}")
        if self.token is not None:
            _refuse_weak(self.token)
        elif self.writable:
            raise ConfigError(
                "writing needs a token that clients must send: set WHITEN_TOKEN, or name a file "
                "with --token-file"
            )
        if self.uploads is not None and not self.writable:
            raise ConfigError("--uploads keeps the images of clients that write: add --writable")
        if self.uploads is not None and self.uploads.exists() and not self.uploads.is_dir():
            raise ConfigError(f"{self.uploads} is a file: name a folder for uploads")
        for root in self.roots:
            if not root.is_dir():
                raise ConfigError(f"{root} is not a folder: name one whose files clients may name")

    @property
    def real_roots(self) -> tuple[Path, ...]:
        """The roots, with symbolic links resolved."""
        return tuple(Path(os.path.realpath(root)) for root in self.roots)


def _refuse_weak(token: str) -> None:
    """Refuse tokens that a header cannot carry (outer spaces, not ASCII), and empty ones."""
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(
            "the token must be printable ASCII without spaces, and not empty: make one with "
            "`openssl rand -hex 24`"
        )


def allowed_names(host: str, more: Sequence[str]) -> tuple[str, ...]:
    """Return the names of a service on `host` besides localhost: this machine's, and `more`."""
    return (host, socket.gethostname(), *more)


def read_token(file: Path | None) -> str | None:
    """Return the token from a file or from the environment; None if there is none.

    Raises:
        ConfigError: the file cannot be read.
    """
    if file is None:
        return os.environ.get("WHITEN_TOKEN")
    try:
        return file.read_text("ascii").strip()
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the token in {file}: {one_line(error)}") from error
