"""Published benchmarks by name: find the one that a folder holds, and run it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from whiten.datasets.finding import require_items
from whiten.datasets.revisited import NAMES, RevisitedSet, set_folder
from whiten.datasets.svd import Svd, is_svd, read_svd
from whiten.embedding.encoder import Encoder
from whiten.errors import ConfigError, nearest
from whiten.evaluation.videos import VIDEO_PROTOCOLS, VideoProtocol, evaluate_videos
from whiten.media.formats import SUFFIXES
from whiten.media.reading import Skipped
from whiten.media.video import VIDEO_SUFFIXES
from whiten.utils.files import temporary_folder


@dataclass(frozen=True)
class Options:
    """Options of the benchmarks; each accepts those that it knows.

    Attributes:
        multi_scale: average the embeddings at three scales.
        distractors: folder of distractors, or a store of their embeddings.
        similarity: similarity of two videos.
        omit_normalisation: do not normalise pixels, as in SVD's published evaluation.
        report: where to write a page of results.
        exclude, include: patterns that choose among the videos.
    """

    multi_scale: bool = False
    distractors: Path | None = None
    similarity: str = "cf"
    omit_normalisation: bool = False
    report: Path | None = None
    exclude: tuple[str, ...] = ()
    include: tuple[str, ...] = ()

    def foreign(self, known: Iterable[str]) -> list[str]:
        """Return the given options that are not among the known ones, as users write them."""
        own = [f.name for f in fields(self) if getattr(self, f.name) != f.default]
        return [f"--{name.replace('_', '-')}" for name in own if name not in known]


class Outcome(Protocol):
    """Result of an evaluation: JSON, lines for display, and notes."""

    @property
    def skipped(self) -> Sequence[Skipped]: ...
    @property
    def remarks(self) -> Sequence[str]: ...
    def to_json(self) -> dict[str, Any]: ...
    def lines(self) -> Iterable[str]: ...


Run = Callable[[Encoder, Path | None, bool], Outcome]
"""Called with the encoder, the cache and whether to show progress."""


def open_benchmark(name: str, root: Path, options: Options) -> Run:
    """Read a benchmark's data, or refuse it, before a model is opened; return how to run it.

    Raises:
        ConfigError, NoImagesError: see `evaluate_revisited_set` and `evaluate_videos`.
    """
    if name in NAMES:
        from whiten.evaluation.revisited import require_set

        return partial(_revisited, require_set(root, name, options.distractors), options)
    if name == "svd":
        return partial(_videos, "svd", read_svd(root), options)
    require_items(root, options.exclude, options.include, SUFFIXES | VIDEO_SUFFIXES)
    return partial(_videos, "videos", root, options)


def _revisited(
    data: RevisitedSet, options: Options, encoder: Encoder, cache: Path | None, show: bool
) -> Outcome:
    from whiten.evaluation.revisited import evaluate_revisited_set

    return evaluate_revisited_set(
        encoder,
        data,
        multi_scale=options.multi_scale,
        distractors=options.distractors,
        cache=cache,
        show_progress=show,
    )


def _videos(
    name: VideoProtocol,
    data: Path | Svd,
    options: Options,
    encoder: Encoder,
    cache: Path | None,
    show: bool,
) -> Outcome:
    from whiten.evaluation.video_page import write_video_report

    with ExitStack() as stack:
        if options.report is not None and cache is None:  # the page shows the frames
            cache = stack.enter_context(temporary_folder())
        found = evaluate_videos(
            encoder,
            data,
            protocol=name,
            similarity=options.similarity,
            omit_normalisation=options.omit_normalisation,
            examples=options.report is not None,
            exclude=options.exclude,
            include=options.include,
            cache=cache,
            show_progress=show,
        )
        if options.report is None:
            return found
        return replace(found, page=write_video_report(found, options.report))


PROTOCOLS = (*NAMES, *VIDEO_PROTOCOLS)


_OPTIONS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(NAMES, ("multi_scale", "distractors")),
    "svd": ("similarity", "omit_normalisation", "report"),
    "videos": ("similarity", "report"),
}
_PATTERNS = ("exclude", "include")
_PLAIN = ("report", *_PATTERNS)  # options of an evaluation on groups of images


def find_protocol(
    root: Path,
    wanted: str | None,
    options: Options,
    queries: Path | None,
    gallery_encoder: str | None = None,
    source_column: str | None = None,
) -> str | None:
    """Return the requested benchmark, or the one that the folder holds; None for plain folders.

    Raises:
        ConfigError: the benchmark is unknown, the folder holds several, or holds none although
            options of one are given; or queries, a gallery encoder or a column of sources are
            given, which benchmarks do not take.
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
    if name is not None and source_column is not None:
        raise ConfigError(f"{name} has no sources: leave out --source-column")
    if name not in (None, "videos") and (options.exclude or options.include):
        raise ConfigError(f"{name} lists its own images: leave out --exclude and --include")
    if name is None and not options.foreign(_PLAIN):
        return None
    if foreign := options.foreign([*(_OPTIONS[name] if name else ()), *_PATTERNS]):
        known = {taker: (*own, *_PATTERNS) for taker, own in _OPTIONS.items()}
        takers = [taker for taker in PROTOCOLS if not options.foreign(known[taker])]
        raise ConfigError(
            f"{', '.join(foreign)}: only with --protocol {' or '.join(takers)}"
            if takers
            else f"{', '.join(foreign)}: no benchmark takes all of them: leave some of them out"
        )
    return name


def _recognise(root: Path) -> str | None:
    if is_svd(root):
        return "svd"
    found = [name for name in NAMES if set_folder(root, name) is not None]
    if len(found) > 1:
        raise ConfigError(f"{root} holds {' and '.join(found)}: add --protocol {found[0]}")
    return found[0] if found else None
