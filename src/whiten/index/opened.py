"""Open the index that the command line names, or update the index of a collection."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np

from whiten.datasets.patterns import Patterns
from whiten.embedding.opening import load
from whiten.embedding.rows import require_source
from whiten.errors import ConfigError, StoreError
from whiten.index.colours import ignored_profiles
from whiten.index.index import Index
from whiten.index.places import Place, Places
from whiten.index.query import Query
from whiten.runs.folder import RunFolder
from whiten.utils.arrays import Vectors
from whiten.utils.hashing import fingerprint

_log = logging.getLogger(__name__)


def open_for_query(
    query: Query,
    *,
    model: str | None = None,
    images: Path | None = None,
    place: Places | None = None,
    exclude: Patterns = (),
    include: Patterns = (),
    show_progress: bool = False,
) -> tuple[Index, Vectors]:
    """Open or build an index, and return it with the vectors of a query.

    Args:
        model: model that embeds the query; by default the model of the index.
        images: a collection that is indexed first; needs a model.
        place: place of the index, or several; with `images` one place, by default `RUN/index/…`
            next to the student, one index per collection.
        exclude, include: patterns that choose among `images`, see `whiten.datasets.patterns`.

    Raises:
        ConfigError: neither images nor a place is named, or there is no default place.
        ImageError: a query image cannot be read; nothing is indexed then.
        StoreError: an id is not in the index.
    """
    if images is None and (exclude or include):
        raise ConfigError("--exclude and --include choose among the images of --in: name them")
    query.require_files()
    if images is None:
        if not place:
            raise ConfigError("nothing to search: add --in IMAGES, or --index FOLDER")
        index = Index.open(place, None if model is None else load(model))
        if ignored_profiles(index.facts):
            _log.warning(
                "%s was made when colour profiles were ignored: bring it up to date with `whiten "
                "index`, which embeds images with a profile other than sRGB again",
                index.place,
            )
        vectors = query.embed(index.encoder) if query.images else None
    else:
        if model is None:
            raise ConfigError("images need a model that embeds them: name it with --model")
        require_source(images, exclude, include)
        encoder = load(model)
        vectors = query.embed(encoder) if query.images else None
        where = _one(place) or _default_place(model, images)
        index = Index.build(
            encoder,
            images,
            where,
            exclude=exclude,
            include=include,
            show_progress=show_progress,
        )
    if not len(index):
        raise StoreError(f"{index.place} is empty: index images first, `whiten index`")
    parts = [] if vectors is None else [vectors]
    if query.ids:
        parts.append(query.indexed(index))
    return index, query.combined(np.concatenate(parts))


def _one(place: Places | None) -> Place | None:
    if place is None or isinstance(place, str | os.PathLike):
        return place
    if len(place) > 1:
        raise ConfigError("the images of --in are kept in one index: name one place")
    return place[0] if place else None


def _default_place(model: str, images: Path) -> Path:
    folder = Path(model.removeprefix("whiten:"))
    if not folder.is_dir():
        raise ConfigError(f"{model} has no folder to keep its index in: add --index FOLDER")
    run = folder if RunFolder(folder).config.is_file() else folder.parent
    place = images.resolve()
    return run / "index" / f"{place.name}-{fingerprint(str(place))[:8]}"
