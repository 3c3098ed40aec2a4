"""Read numbers and plain containers from a pickle, and refuse everything else.

A pickle is a program: it may import and call anything. The ground truth of revisited Oxford and
Paris is published as one, with lists, dicts, texts, numbers and NumPy arrays. Here each name that a
pickle requests is looked up in one table, whose entries are not NumPy's code but functions that
check shape and type and build the arrays from their bytes.
"""

from __future__ import annotations

import io
import math
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from whiten.errors import ConfigError, one_line

_PLAIN = re.compile(r"[<>|=]?([biuf][1248]|U[0-9]{1,4})")
_MAX_DEPTH = 100  # nesting of containers


class _RefusedError(Exception):
    """The pickle requests a name that is not allowed."""


class _Type:
    """A NumPy type of numbers or texts, as described by a pickle."""

    def __init__(self, name: Any, *_: Any) -> None:
        if not isinstance(name, str) or not _PLAIN.fullmatch(name):
            raise _RefusedError(f"arrays of type {name!r}")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: Any) -> None:
        # (version, byte order, and fields that plain types lack)
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        if order not in ("<", ">", "|", "="):
            raise _RefusedError("a NumPy type of unknown form")
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """An announced array, its state still missing."""

    def __init__(self, *_: Any) -> None:
        self.value: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise _RefusedError("an array of unknown form")
        _, shape, kind, is_fortran, data = state
        self.value = _array(data, kind, shape, "F" if is_fortran else "C")


def _array(data: Any, kind: Any, shape: Any, order: Any = "C") -> np.ndarray:
    if not isinstance(kind, _Type) or not isinstance(data, bytes | bytearray):
        raise _RefusedError("an array of objects")
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise _RefusedError("an array of unknown form")
    if math.prod(shape) * kind.dtype.itemsize != len(data) or order not in ("C", "F"):
        raise _RefusedError("an array whose bytes do not fit its shape")
    return np.frombuffer(bytes(data), kind.dtype).reshape(shape, order=order).copy()


def _buffered(data: Any, kind: Any, shape: Any, order: Any) -> _Array:
    """Build an array of pickle protocol 5."""
    result = _Array()
    result.value = _array(data, kind, shape, order)
    return result


def _number(kind: Any, data: Any) -> Any:
    return _array(data, kind, ()).item()


def _bytes(text: Any, encoding: Any) -> bytes:
    """Decode bytes as written by protocols before the third."""
    if not isinstance(text, str) or encoding != "latin1":
        raise _RefusedError(f"an encoding {encoding!r}")
    return text.encode("latin1")


def _container(kind: type) -> Callable[..., Any]:
    def make(items: Any = ()) -> Any:
        if not isinstance(items, list | tuple | dict):
            raise _RefusedError(f"a {kind.__name__} of unknown form")
        if kind is bytes and items:
            raise _RefusedError("bytes of unknown form")
        return kind(items)

    return make


def _no_array(*_: Any) -> Any:
    """Replaces `numpy.ndarray`, which pickles name but never call."""
    raise _RefusedError("numpy.ndarray called")


class _Maker:
    """Stands for a name in a pickle: it can be called, but not changed."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *arguments: Any) -> Any:
        return self._make(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise _RefusedError("a change of what it was given")


# Both the old and the new module path of NumPy's core.
_ADMITTED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "dtype"): _Type,
    ("numpy", "ndarray"): _no_array,
    ("_codecs", "encode"): _bytes,
    **{
        (f"numpy.{core}.{module}", name): function
        for core in ("core", "_core")
        for module, name, function in (
            ("multiarray", "_reconstruct", _Array),
            ("multiarray", "scalar", _number),
            ("numeric", "_frombuffer", _buffered),
        )
    },
    **{
        (module, kind.__name__): _container(kind)
        for module in ("builtins", "__builtin__")
        for kind in (list, dict, tuple, set, frozenset, bytes)
    },
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise _RefusedError(f"{module}.{name}")
        return _Maker(_ADMITTED[module, name])

    def persistent_load(self, pid: Any) -> Any:
        raise _RefusedError("an object outside of the file")


def read_numbers(data: bytes, source: str) -> Any:
    """Read a pickle of plain containers, texts, numbers and arrays of numbers.

    Args:
        data: the pickle, of any protocol.
        source: its name in messages.

    Raises:
        ConfigError: the pickle is damaged, or holds anything else; the message names it.
    """
    try:
        return _finished(_Unpickler(io.BytesIO(data)).load(), 0, {})
    except _RefusedError as error:
        raise ConfigError(
            f"{source} is refused, it holds more than containers and arrays of numbers: {error}; "
            "get it from its publisher"
        ) from None
    except (Exception, RecursionError) as error:  # unpicklers raise almost anything
        raise ConfigError(f"{source} is damaged ({one_line(error)}): download it again") from None


def _finished(value: Any, depth: int, known: dict[int, Any]) -> Any:
    """Replace placeholders of arrays by the arrays.

    Args:
        known: results by identity, so that shared objects are converted once.
    """
    if depth > _MAX_DEPTH:
        raise _RefusedError("containers without end")
    if id(value) in known:
        return known[id(value)]
    if isinstance(value, _Array):
        if value.value is None:
            raise _RefusedError("an array without content")
        return value.value
    if isinstance(value, dict):
        if not all(isinstance(key, str | int) for key in value):
            raise _RefusedError("keys that are no texts")
        parts: Any = {key: _finished(part, depth + 1, known) for key, part in value.items()}
    elif isinstance(value, list | tuple):
        parts = type(value)(_finished(part, depth + 1, known) for part in value)
    elif value is None or isinstance(value, str | bytes | int | float | set | frozenset):
        return value
    else:
        raise _RefusedError("a name or a type in place of a value")
    known[id(value)] = parts
    return parts
