"""Check values from callers and files: those of dataclasses against their annotations."""

from __future__ import annotations

import operator
from contextlib import suppress
from numbers import Real
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from whiten.errors import ConfigError, nearest


def check_types(values: Any) -> None:
    """Refuse a dataclass whose fields do not have the types of their annotations.

    For values from files and from callers without a type checker.

    Raises:
        ConfigError: names the first wrong field, and what it must be.
    """
    for name, kind in get_type_hints(type(values)).items():
        value = getattr(values, name)
        if not _is_of(value, kind):
            hint = nearest(value, _choices(kind))
            raise ConfigError(f"{name} must be {describe(kind)}, not {value!r}{hint}")


def as_whole(name: str, value: Any) -> int:
    """Return a whole number, also one of NumPy.

    Raises:
        ConfigError: it is none.
    """
    if not isinstance(value, bool):
        with suppress(TypeError):
            return operator.index(value)
    raise ConfigError(f"{name} must be a whole number, not {value!r}")


def as_number(name: str, value: Any) -> float:
    """Return a number, also one of NumPy.

    Raises:
        ConfigError: it is none.
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        raise ConfigError(f"{name} must be a number, not {value!r}")
    return float(value)


def _is_of(value: Any, kind: Any) -> bool:
    origin, parts = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin is Literal:
        return isinstance(value, str) and value in parts
    if origin in (Union, UnionType):
        return any(_is_of(value, part) for part in parts)
    if origin is list:
        return isinstance(value, list) and all(_is_of(v, parts[0]) for v in value)
    if origin is tuple:
        return (
            isinstance(value, tuple) and len(value) == len(parts) and all(map(_is_of, value, parts))
        )
    if origin is dict:
        return isinstance(value, dict) and all(
            _is_of(k, parts[0]) and _is_of(v, parts[1]) for k, v in value.items()
        )
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and value == value
    return isinstance(value, kind) and not (kind is int and isinstance(value, bool))


def _choices(kind: Any) -> list[str]:
    """List the texts that a type allows."""
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    return [choice for part in get_args(kind) for choice in _choices(part)]


def describe(kind: Any) -> str:
    """Describe the type of an option in plain words."""
    origin, parts = get_origin(kind), get_args(kind)
    plain = {int: "an integer", float: "a number", str: "a text", bool: "true or false"}
    if kind in plain:
        return plain[kind]
    if origin is Literal:
        return " or ".join(map(str, parts))
    if origin in (Union, UnionType):
        return " or ".join(describe(part) for part in parts if part is not type(None))
    if origin is list and parts == (str,):
        return "a list of texts"
    return {list: "a list", tuple: f"{len(parts)} values", dict: "a mapping"}.get(
        origin, getattr(kind, "__name__", "of another type")
    )
