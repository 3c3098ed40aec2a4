"""Published benchmarks by name: which one a folder is for, and how it is run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from whiten.encoder import Encoder
from whiten.errors import ConfigError, nearest
from whiten.media import Skipped
from whiten.protocols.revisited import NAMES, set_folder


@dataclass(frozen=True)
class Options:
    """What a benchmark may be asked for; each takes what it knows.

    Attributes:
        multi_scale: average the embeddings at three sizes.
        distractors: a folder of distractors, or a store of their embeddings.
    """

    multi_scale: bool = False
    distractors: Path | None = None


class Outcome(Protocol):
    """What an evaluation found: JSON, lines for people, and remarks beside the result."""

    @property
    def skipped(self) -> Sequence[Skipped]: ...
    @property
    def remarks(self) -> Sequence[str]: ...
    def to_json(self) -> dict[str, Any]: ...
    def lines(self) -> Iterable[str]: ...


Run = Callable[[Encoder, Path, Options, Path | None, bool], Outcome]
"""Called with the encoder, the root, the options, the cache and whether to show progress."""


def _revisited(
    name: str, encoder: Encoder, root: Path, options: Options, cache: Path | None, show: bool
) -> Outcome:
    from whiten.evaluate_revisited import evaluate_revisited_set

    return evaluate_revisited_set(
        encoder,
        root,
        name,
        multi_scale=options.multi_scale,
        distractors=options.distractors,
        cache=cache,
        show_progress=show,
    )


PROTOCOLS: dict[str, Run] = {name: partial(_revisited, name) for name in NAMES}


def find_protocol(
    root: Path, asked: str | None, options: Options, queries: Path | None
) -> str | None:
    """The benchmark that was asked for, or that the folder is for; None for plain folders.

    Raises:
        ConfigError: there is no such benchmark, the folder is for several, or for none and options
            of one were given; or queries, of which benchmarks have their own.
    """
    if asked is not None and asked not in PROTOCOLS:
        raise ConfigError(
            f"there is no protocol {asked!r}, there are {', '.join(PROTOCOLS)}"
            f"{nearest(asked, PROTOCOLS)}"
        )
    name = asked or _recognise(root)
    if name is not None and queries is not None:
        raise ConfigError(f"{name} has queries of its own: leave out --queries")
    if name is None and options != Options():
        raise ConfigError(
            "--multi-scale and --distractors belong to a benchmark: add --protocol "
            f"{' or '.join(NAMES)}"
        )
    return name


def _recognise(root: Path) -> str | None:
    found = [name for name in NAMES if set_folder(root, name) is not None]
    if len(found) > 1:
        raise ConfigError(f"{root} holds {' and '.join(found)}: add --protocol {found[0]}")
    return found[0] if found else None
