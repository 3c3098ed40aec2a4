"""Load a published checkpoint into a network, accounting for every key.

A `Layout` maps the network's tensors to names in the file, and lists what else the file must and
may hold. Any difference is refused, under the name in the file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from whiten.errors import TeacherError

_NAMED = 8  # keys that an error names before it counts the rest


@dataclass(frozen=True)
class Layout:
    """The layout of a checkpoint.

    Attributes:
        holder: entry of the file that holds the tensors.
        rename: maps the network's key to the file's.
        unused: shapes of tensors in the file that do not affect the embedding, such as a learnt
            GeM power, which the chosen one replaces.
        may_have: pattern for the start of optional keys that are not read.
    """

    holder: str
    rename: Callable[[str], str]
    unused: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    may_have: str = r"(?!)"


def take_tensors(checkpoint: Any, holder: str, source: str) -> dict[str, Tensor]:
    """Return the tensors under an entry of a loaded checkpoint.

    Raises:
        TeacherError: the entry is missing, or holds anything other than tensors.
    """
    held = checkpoint.get(holder) if isinstance(checkpoint, dict) else None
    if not isinstance(held, dict):
        raise TeacherError(
            f"{source} has no {holder!r} with tensors, but {entries(checkpoint)}: take the file as "
            "it was published"
        )
    others = [str(key) for key, value in held.items() if not isinstance(value, Tensor)]
    if others:
        raise TeacherError(
            f"{source} holds no tensor at {some(others)}: take the file as it was published"
        )
    return {str(key): value for key, value in held.items()}


def fill(module: nn.Module, layout: Layout, tensors: Mapping[str, Tensor], source: str) -> None:
    """Load the tensors of a published file into a network built on the meta device.

    Raises:
        TeacherError: tensors are missing, unknown or misshapen; names their keys.
    """
    own = {name: layout.rename(name) for name in module.state_dict()}
    shapes = {own[name]: tuple(value.shape) for name, value in module.state_dict().items()}
    require_shapes(tensors, {**shapes, **layout.unused}, source, may_have=layout.may_have)
    state = {
        name: tensors[key].float() if tensors[key].is_floating_point() else tensors[key]
        for name, key in own.items()
    }
    module.load_state_dict(state, assign=True)


def require_shapes(
    tensors: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    source: str,
    *,
    may_have: str = r"(?!)",
) -> None:
    """Refuse tensors other than exactly those of `shapes`, apart from `may_have` as in `Layout`.

    Raises:
        TeacherError: one line with the missing, unknown or misshapen keys.
    """
    allowed = re.compile(may_have)
    missing = [key for key in shapes if key not in tensors]
    unknown = [key for key in tensors if key not in shapes and not allowed.match(key)]
    misshapen = [
        f"{key} {list(tensors[key].shape)} instead of {list(shape)}"
        for key, shape in shapes.items()
        if key in tensors and tuple(tensors[key].shape) != shape
    ]
    problems = [
        f"{what} {some(keys)}"
        for what, keys in (("lacks", missing), ("has unknown", unknown), ("has", misshapen))
        if keys
    ]
    if problems:
        raise TeacherError(
            f"{source} is not the published file, it {'; '.join(problems)}: get that file again"
        )


def entries(checkpoint: Any) -> str:
    """Describe the contents of a loaded checkpoint for a message."""
    if not isinstance(checkpoint, dict):
        return "no mapping"
    return some(list(map(str, checkpoint))) or "nothing"


def some(keys: Sequence[str]) -> str:
    """Return the first keys for a message, and the number of the others."""
    rest = len(keys) - _NAMED
    return ", ".join(keys[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")
