"""Published benchmarks by name: which one a folder is for, and how it is run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from whiten.datasets.revisited import NAMES, set_folder
from whiten.datasets.svd import is_svd
from whiten.embedding.encoder import Encoder
from whiten.errors import ConfigError, nearest
from whiten.evaluation.videos import VIDEO_PROTOCOLS, VideoProtocol, evaluate_videos
from whiten.media.reading import Skipped


@dataclass(frozen=True)
class Options:
    """Options of the benchmarks; each takes those that it knows.

    Attributes:
        multi_scale: average the embeddings at three sizes.
        distractors: a folder of distractors, or a store of their embeddings.
        similarity: of two videos.
        omit_normalisation: feed pixels as they are, as SVD's published evaluation does.
        report: where a page of what was found is written.
    """

    multi_scale: bool = False
    distractors: Path | None = None
    similarity: str = "cf"
    omit_normalisation: bool = False
    report: Path | None = None

    def foreign(self, known: Iterable[str]) -> list[str]:
        """Options that were given and are not among the known ones, as they are written."""
        own = [f.name for f in fields(self) if getattr(self, f.name) != f.default]
        return [f"--{name.replace('_', '-')}" for name in own if name not in known]


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
    from whiten.evaluation.revisited import evaluate_revisited_set

    return evaluate_revisited_set(
        encoder,
        root,
        name,
        multi_scale=options.multi_scale,
        distractors=options.distractors,
        cache=cache,
        show_progress=show,
    )


def _videos(
    name: VideoProtocol,
    encoder: Encoder,
    root: Path,
    options: Options,
    cache: Path | None,
    show: bool,
) -> Outcome:
    from whiten.evaluation.video_page import write_video_report

    with ExitStack() as stack:
        if options.report is not None and cache is None:  # which shows the frames
            cache = Path(stack.enter_context(TemporaryDirectory(prefix="whiten-")))
        found = evaluate_videos(
            encoder,
            root,
            protocol=name,
            similarity=options.similarity,
            omit_normalisation=options.omit_normalisation,
            examples=options.report is not None,
            cache=cache,
            show_progress=show,
        )
        if options.report is None:
            return found
        return replace(found, page=write_video_report(found, options.report))


PROTOCOLS: dict[str, Run] = {
    **{name: partial(_revisited, name) for name in NAMES},
    **{name: partial(_videos, name) for name in VIDEO_PROTOCOLS},
}
_OPTIONS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(NAMES, ("multi_scale", "distractors")),
    **dict.fromkeys(VIDEO_PROTOCOLS, ("similarity", "omit_normalisation", "report")),
}


def find_protocol(
    root: Path,
    wanted: str | None,
    options: Options,
    queries: Path | None,
    gallery_encoder: str | None = None,
) -> str | None:
    """Name the wanted benchmark, or the one that the folder is for; None for plain folders.

    Raises:
        ConfigError: there is no such benchmark, the folder is for several, or for none and options
            of one were given; or queries, of which benchmarks have their own, or an encoder of the
            gallery alone.
    """
    if wanted is not None and wanted not in PROTOCOLS:
        raise ConfigError(
            f"there is no protocol {wanted!r}, there are {', '.join(PROTOCOLS)}"
            f"{nearest(wanted, PROTOCOLS)}"
        )
    name = wanted or _recognise(root)
    if name is not None and queries is not None:
        raise ConfigError(f"{name} has queries of its own: leave out --queries")
    if name is not None and gallery_encoder is not None:
        raise ConfigError(f"{name} is measured with one encoder: leave out --gallery-model")
    if foreign := options.foreign(_OPTIONS[name] if name else ()):
        takers = [taker for taker in PROTOCOLS if not options.foreign(_OPTIONS[taker])]
        raise ConfigError(
            f"{', '.join(foreign)} belong to a benchmark: add --protocol {' or '.join(takers)}"
            if takers
            else f"{', '.join(foreign)} belong to no benchmark together: leave some of them out"
        )
    return name


def _recognise(root: Path) -> str | None:
    if is_svd(root):
        return "svd"
    found = [name for name in NAMES if set_folder(root, name) is not None]
    if len(found) > 1:
        raise ConfigError(f"{root} holds {' and '.join(found)}: add --protocol {found[0]}")
    return found[0] if found else None
