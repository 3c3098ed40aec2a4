"""Arrays and facts in one safetensors file that notices when a bit of it was flipped."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_HEADER, _OLD_HEADER = "whiten.2", "whiten"  # the old one had no checksum


def save_sealed(path: Path, arrays: Mapping[str, Array], facts: Mapping[str, Any]) -> None:
    """Write arrays and JSON-serialisable facts, atomically; equal content gives equal bytes."""
    from safetensors.numpy import save

    tensors = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    facts = {**facts, "checksum": _checksum(facts, tensors)}
    # One JSON value under one key: safetensors writes several keys in a random order.
    header = {_HEADER: json.dumps(facts, sort_keys=True)}
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(save(tensors, metadata=header))
    os.replace(partial, path)


def load_sealed(path: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    """Read the facts and the arrays.

    Raises:
        OSError: the file cannot be read.
        ValueError, KeyError: it is damaged, or something else.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(os.fspath(path), framework="numpy") as file:
            headers = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    is_sealed = _HEADER in headers
    facts = json.loads(headers[_HEADER if is_sealed else _OLD_HEADER])
    if not isinstance(facts, dict):
        raise ValueError("its header is no mapping")
    if is_sealed and facts.pop("checksum") != _checksum(facts, tensors):
        raise ValueError("its content does not have the checksum it was saved with")
    return facts, tensors


def _checksum(facts: Mapping[str, Any], tensors: Mapping[str, Array]) -> str:
    digest = hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}|{tensor.shape}|{tensor.dtype}|".encode())
        digest.update(np.ascontiguousarray(tensor).data)
    return digest.hexdigest()
