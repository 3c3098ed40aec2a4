"""What a service allows."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from whiten.errors import ConfigError, one_line
from whiten.media.decoding import MAX_PIXELS

LOOPBACK_NAMES = ("localhost",)


@dataclass(frozen=True)
class Settings:
    """Limits of a service, and to whom and what it is open.

    Attributes:
        roots: folders below which a client may name files; symbolic links in them are followed
            only to where these folders reach. Beside them nothing but indexed images is read.
        hosts: names that a client may reach the service by, beside IP addresses and localhost.
        token: that a client must show; None is open to everyone who reaches the port.
        max_upload: bytes of a request.
        max_pixels: of an uploaded image, whatever its file's size.
        max_hits: the largest k.
        waiting: requests that may wait for the model; others are told to come back.
        batch: images that pass through the model at once, where so many wait.
        timeout: seconds that a request may take, its upload included.
    """

    roots: tuple[Path, ...] = ()
    hosts: tuple[str, ...] = LOOPBACK_NAMES
    token: str | None = field(default=None, repr=False)
    max_upload: int = 20 << 20
    max_pixels: int = 50_000_000
    max_hits: int = 1000
    waiting: int = 64
    batch: int = 8
    timeout: float = 30.0

    def __post_init__(self) -> None:
        """Raises ConfigError for what cannot be meant."""
        for name in ("max_upload", "max_pixels", "max_hits", "waiting", "batch", "timeout"):
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise ConfigError(f"{name} must be above 0, not {value}")
        if self.max_pixels > MAX_PIXELS:
            raise ConfigError(f"max_pixels must be at most {MAX_PIXELS:,}, not {self.max_pixels:,}")
        if self.token is not None:
            _refuse_weak(self.token)
        for root in self.roots:
            if not root.is_dir():
                raise ConfigError(f"{root} is not a folder: name one whose files clients may name")

    @property
    def real_roots(self) -> tuple[Path, ...]:
        """The roots without symbolic links."""
        return tuple(Path(os.path.realpath(root)) for root in self.roots)


def _refuse_weak(token: str) -> None:
    """A header cannot carry spaces at its ends or what is not ASCII; an empty one opens nothing."""
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(
            "the token must be printable ASCII without spaces, and not empty: make one with "
            "`openssl rand -hex 24`"
        )


def allowed_names(host: str, more: Sequence[str]) -> tuple[str, ...]:
    """Names that a service on `host` may be called by: this machine's own, and what is added."""
    return (*LOOPBACK_NAMES, host, socket.gethostname(), *more)


def read_token(file: Path | None) -> str | None:
    """The token, from a file or from the environment; None where there is none.

    Raises:
        ConfigError: the file cannot be read.
    """
    if file is None:
        return os.environ.get("WHITEN_TOKEN")
    try:
        return file.read_text("ascii").strip()
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the token in {file}: {one_line(error)}") from error
