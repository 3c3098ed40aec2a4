"""Find the weights of a network in a checkpoint, whatever its trainer wrapped them in."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from whiten.errors import TeacherError, nearest

if TYPE_CHECKING:
    from torch import Tensor

# What wrappers of compiled, sharded and checkpointed modules put into names, at any depth.
_WRAPPERS = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\."
)
_ROOT = "root"  # label of weights at the top of a file


@dataclass(frozen=True)
class Candidate:
    """Weights in a checkpoint that may be those of the network.

    Attributes:
        label: the entries and the prefix that lead to them, `state_dict.teacher.backbone`.
        state: the tensors by name, without the prefix.
        found: how many of the network's tensors are among them, in the same shape.
        is_whole: whether they are all tensors of an entry.
    """

    label: str
    state: dict[str, Tensor]
    found: int
    is_whole: bool


def choose_state(
    loaded: Any, wanted: Mapping[str, Tensor], source: str, choice: str = ""
) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint that fit a network best.

    Args:
        loaded: content of the file: nested mappings, with tensors somewhere; a list or tuple is
            taken as a mapping by position.
        wanted: the network's own state dict.
        source: the file, for messages.
        choice: part of a label, such as `teacher`; needed if a file holds several.

    Returns:
        All tensors of the entry and prefix with the most of the wanted tensors; they may be
        incomplete, or hold more. If fewer than half are there, the layout is foreign: the entry
        with the most tensors.

    Raises:
        TeacherError: the file holds no tensors, several sets of weights that fit alike, or not the
            chosen one.
    """
    if isinstance(loaded, list | tuple):
        loaded = {str(position): entry for position, entry in enumerate(loaded)}
    candidates = _candidates(loaded, wanted)
    if not candidates:
        raise TeacherError(f"{source} holds no state dict: save the model's state_dict()")
    if choice:
        chosen = [c for c in candidates if f".{choice}." in f".{c.label}."]
        if not chosen:
            labels = list(dict.fromkeys(c.label for c in candidates))
            raise TeacherError(
                f"{source} has no weights {choice!r}{nearest(choice, labels)}: it has "
                f"{', '.join(labels[:6])}"
            )
        candidates = chosen
    best = max(candidate.found for candidate in candidates)
    if 2 * best > sum(map(_is_needed, wanted)):
        alike = [candidate for candidate in candidates if candidate.found == best]
        names = set(wanted)
    else:  # it may need its source's conversion first
        whole = [candidate for candidate in candidates if candidate.is_whole]
        names = set(max(whole or candidates, key=lambda c: len(c.state)).state)
        alike = [candidate for candidate in whole or candidates if set(candidate.state) == names]
    differing = [alike[0], *(c for c in alike[1:] if _differ(alike[0], c, names))]
    if len(differing) > 1:
        ways = " or ".join(f"?state={candidate.label}" for candidate in differing)
        raise TeacherError(
            f"{source} holds {len(differing)} sets of weights that fit: choose with {ways}"
        )
    return alike[0].state


def _candidates(loaded: Any, wanted: Mapping[str, Tensor]) -> list[Candidate]:
    return [
        candidate
        for path, tensors in _mappings(loaded, ())
        for candidate in _prefixed(path, tensors, wanted)
    ]


def _mappings(
    loaded: Any, path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Yield every mapping that holds tensors by name, the outermost first."""
    from torch import Tensor

    if not isinstance(loaded, Mapping):
        return
    named = {key: value for key, value in loaded.items() if isinstance(key, str)}
    tensors = {_WRAPPERS.sub("", k): v for k, v in named.items() if isinstance(v, Tensor)}
    if tensors:
        yield path, tensors
    for key, value in named.items():
        yield from _mappings(value, (*path, key))


def _prefixed(
    path: tuple[str, ...], tensors: dict[str, Tensor], wanted: Mapping[str, Tensor]
) -> Iterator[Candidate]:
    """Yield the tensors below each prefix after which names are the network's."""
    found: Counter[str] = Counter()
    for key, tensor in tensors.items():
        parts = key.split(".")
        for start in range(len(parts)):
            name = ".".join(parts[start:])
            if _is_needed(name) and name in wanted and wanted[name].shape == tensor.shape:
                found[".".join(parts[:start])] += 1
    common = "module" if all(key.startswith("module.") for key in tensors) else ""
    for prefix in dict.fromkeys([common, *found]):
        outer = f"{prefix}." if prefix else ""
        state = {k.removeprefix(outer): v for k, v in tensors.items() if k.startswith(outer)}
        label = ".".join([*path, *([prefix] if prefix else [])])
        yield Candidate(label or _ROOT, state, found[prefix], prefix == common)


def _is_needed(name: str) -> bool:
    return not name.endswith(".num_batches_tracked")  # no embedding depends on it


def _differ(one: Candidate, other: Candidate, names: set[str]) -> bool:
    """Return whether two sets of weights differ in what the network wants."""
    import torch

    both = [name for name in names & one.state.keys() & other.state.keys() if _is_needed(name)]
    return not both or any(not torch.equal(one.state[n], other.state[n]) for n in both)
