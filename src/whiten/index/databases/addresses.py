"""Addresses of indexes in a database: read `ADDRESS#NAME`, and hide passwords.

The name of the collection or table is the fragment of the address, because the part before it
may have its own query, `postgresql://host/db?sslmode=require#photos`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl

from whiten.errors import ConfigError

DEFAULT_NAME = "whiten"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,39}")
_SECRET = re.compile(r"((?:password|token|secret)[^=&#\s]*=)[^&#\s]+", re.IGNORECASE)


@dataclass(frozen=True)
class Address:
    """Address of an index in a database.

    Attributes:
        server: address that the client connects to.
        name: collection or table.
        index: `flat`, which is exact, or `hnsw`.
        place: the whole address, without a password.
    """

    server: str
    name: str
    index: str
    place: str


def read_address(text: str, scheme: str) -> Address:
    """Read `ADDRESS`, `ADDRESS#NAME` or `ADDRESS#NAME?index=hnsw`.

    Raises:
        ConfigError: the name or the option is invalid.
    """
    server, _, fragment = text.partition("#")
    name, _, query = fragment.partition("?")
    place = f"{scheme}:{hide_password(text)}"
    if fragment and not _NAME.fullmatch(name):
        raise ConfigError(
            f"{place}: after # comes the name of a collection or table, at most 40 letters, digits "
            f"and _, not {name!r}; write a # that belongs to the address as %23"
        )
    options = dict(parse_qsl(query, keep_blank_values=True))
    index = options.pop("index", "flat")
    if options or index not in ("flat", "hnsw"):
        raise ConfigError(f"{place}: after the name may come ?index=flat or ?index=hnsw only")
    if not server:
        raise ConfigError(f"{place} names no database: write {scheme}:ADDRESS")
    return Address(server, name or DEFAULT_NAME, index, place)


def hide_password(text: str) -> str:
    """Return an address for display; hides too much rather than too little."""
    text = _SECRET.sub(r"\1***", text)
    return re.sub(r"(//[^/:@]*):.*@", r"\1:***@", text, flags=re.DOTALL)
