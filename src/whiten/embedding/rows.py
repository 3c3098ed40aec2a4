"""Embed a collection into a mapped file that is read by blocks.

Memory use does not depend on the number of images or the embedding dimension.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from whiten.datasets.collection import Item, Items
from whiten.datasets.finding import require_items
from whiten.datasets.patterns import Patterns
from whiten.embedding.encoder import Encoder, Part, embed_cached
from whiten.errors import ConfigError, NoImagesError
from whiten.media.formats import SUFFIXES
from whiten.media.reading import Skipped
from whiten.store.places import is_store
from whiten.store.store import Store, embedded_by_all
from whiten.utils.arrays import Vectors
from whiten.utils.files import temporary_folder
from whiten.utils.urls import as_path

if TYPE_CHECKING:
    from whiten.embedding.cluster import Cluster

_JOINED = 4096  # rows of several models' embeddings joined at once


def embed_rows(
    encoder: Encoder,
    items: Sequence[Item],
    *,
    cache: str | os.PathLike[str] | None = None,
    show_progress: bool = False,
    cluster: Cluster | None = None,
) -> tuple[Items, Vectors, list[Skipped]]:
    """Embed a collection, skipping unreadable images.

    Args:
        cache: folder for the stores, to reuse them; none by default.
        cluster: computes the embeddings; by default this process does.

    Returns:
        The items that all models embedded, their (n, dim) float32 embeddings, memory-mapped, and
        the skipped ones.

    Raises:
        NoImagesError: no image could be embedded by all models.
    """
    with temporary_folder() as temporary:
        folder = Path(cache or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        stores = [
            embed_cached(part.teacher, items, folder, show_progress=show_progress, cluster=cluster)
            for part in encoder.parts
        ]
        kept, skipped = embedded_by_all(Items.of(items), stores)
        if not kept:
            raise NoImagesError(
                f"none of {len(items)} images could be embedded by all {len(stores)} models: name "
                "images that each of them can read"
            )
        # The file has no name, so that a kill leaves nothing behind.
        with tempfile.TemporaryFile(dir=folder) as file:
            if len(stores) == 1 and encoder.rotation is None:
                _write_part(encoder.parts[0], stores[0], kept, file)
            else:
                _write_joined(encoder, stores, kept, file)
            file.flush()
            vectors: Vectors = np.memmap(file, np.float32, "r", shape=(len(kept), encoder.dim))
    return kept, vectors, skipped


def require_source(
    source: Path,
    exclude: Patterns = (),
    include: Patterns = (),
    suffixes: frozenset[str] = SUFFIXES,
) -> None:
    """Refuse a source that is no store and holds nothing to embed; see `require_items`."""
    if not is_store(as_path(source)):
        require_items(source, exclude, include, suffixes)


def open_store(source: Path, exclude: Patterns, include: Patterns) -> Store | None:
    """Open a source that is a store of embeddings; None if it is anything else.

    Raises:
        ConfigError: it is a store, and there are patterns.
    """
    if not is_store(as_path(source)):
        return None
    if exclude or include:
        raise ConfigError(
            f"{source} is a store: --exclude and --include choose among the images of a folder or "
            "a table"
        )
    store = Store.open(source)
    store.say_colours()
    return store


def require_embedded_by(store: Store, encoder: Encoder | None) -> None:
    """Refuse a store whose embeddings come from another model than the named one, if any.

    Raises:
        ConfigError: the models differ.
    """
    if encoder is None:
        return
    [first, *others] = encoder.parts
    is_it = first.teacher.made(store.origin.uri, store.origin.fingerprint)
    is_plain = not others and first.whitener is None
    if not is_plain or not is_it:
        named = first.teacher.uri if is_plain else encoder.name
        raise ConfigError(
            f"{store.folder} holds embeddings of {store.origin.uri}, not of {named}: name "
            "that model, or leave --model out"
        )


def _write_part(part: Part, store: Store, items: Items, file: IO[bytes]) -> None:
    """Write one model's embeddings of the items."""
    for names, _, vectors in store.blocks(view=0):
        to = items.by_id.rows(names)
        keep = np.flatnonzero(to >= 0)
        if len(keep) == 0:
            continue
        # Unlike assignments to a mapped file, writes raise when the disk is full.
        keep = keep[np.argsort(to[keep], kind="stable")]
        block = part.apply(vectors[keep]).astype(np.float32, copy=False)
        breaks = np.flatnonzero(np.diff(to[keep]) != 1) + 1
        for first, run in zip((0, *breaks), np.split(block, breaks), strict=True):
            file.seek(int(to[keep[first]]) * part.dim * block.itemsize)
            file.write(run.tobytes())


def _write_joined(encoder: Encoder, stores: Sequence[Store], items: Items, file: IO[bytes]) -> None:
    """Write the encoder's embeddings, joined from its parts'."""
    with ExitStack() as open_files:
        files = [open_files.enter_context(tempfile.TemporaryFile()) for _ in stores]
        for part, store, own in zip(encoder.parts, stores, files, strict=True):
            _write_part(part, store, items, own)
            own.seek(0)
        for start in range(0, len(items), _JOINED):
            n = min(_JOINED, len(items) - start)
            blocks = [
                np.frombuffer(own.read(4 * n * part.dim), np.float32).reshape(n, part.dim)
                for part, own in zip(encoder.parts, files, strict=True)
            ]
            file.write(encoder.join(blocks).tobytes())
