"""Open the collection to compare: images of a folder, its videos, or the contents of a store."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from whiten.datasets.collection import Item, Items, video_of
from whiten.datasets.finding import find_items
from whiten.datasets.frames import find_or_extract
from whiten.datasets.patterns import Patterns
from whiten.datasets.svd import FRAMES_TABLE
from whiten.dedup.pair_similarity import (
    PairSimilarity,
    Rows,
    SetSimilarity,
    VectorSimilarity,
    usable_rows,
)
from whiten.dedup.turned import Also, TurnedSimilarity, embed_turned
from whiten.embedding.encoder import Encoder, embed_cached
from whiten.embedding.rows import embed_rows, open_store, require_embedded_by
from whiten.errors import ConfigError, NoImagesError
from whiten.evaluation.video_task import count_frames
from whiten.media.reading import Skipped
from whiten.storage.places import is_plain
from whiten.store.rows import stored_items, stored_rows
from whiten.store.store import Store
from whiten.utils.arrays import Vectors
from whiten.utils.files import temporary_folder
from whiten.utils.hashing import fingerprint
from whiten.utils.names import name_codes, real_path
from whiten.utils.progress import announce, progress
from whiten.utils.urls import absolute, as_path


@dataclass(frozen=True)
class Collection:
    """Images or videos, and the similarity of those with different content.

    Attributes:
        what: `image` or `video`.
        names: (n,) ids of the members.
        paths: (n,) files of the members.
        groups: (n,) label of each, if known.
        pictures: (n,) image that shows each.
        copy_of: (n,) index of its content among `similarity`'s items.
        hashes: (n,) content hashes; "" for videos, whose files are hashed on demand.
        similarity: similarity of the items of different content.
        items: images or frames that these items' embeddings were made from.
        skipped: files that could not be used, with the reason.
        folder: folder of the embeddings while the collection is open.
        reference: names of the members in the reference folder, which are never removed.
        seconds: (n,) lengths of the videos by their frames; empty for images.
    """

    what: str
    names: list[str]
    paths: list[str]
    groups: list[str | None]
    pictures: list[str]
    copy_of: Rows
    hashes: list[str]
    similarity: PairSimilarity
    items: Items
    skipped: list[Skipped]
    folder: Path
    reference: frozenset[str] = frozenset()
    seconds: Sequence[float] = ()

    @property
    def first(self) -> Rows:
        """First member of each of `similarity`'s items, (m,)."""
        return np.unique(self.copy_of, return_index=True)[1]


@contextmanager
def open_collection(
    source: Path,
    encoder: Encoder | None,
    cache: Path | None,
    *,
    exclude: Patterns = (),
    include: Patterns = (),
    reference: Path | None = None,
    also: Sequence[Also] = (),
    show_progress: bool = False,
) -> Iterator[Collection]:
    """Embed missing items; without a cache, embeddings are deleted on exit.

    Args:
        source: a folder or table of images or of videos, or a store.
        encoder: embeds them; for a store None, or the store's own encoder.
        cache: folder that keeps embeddings and frames; none by default.
        exclude, include: patterns that choose among the files, also of the reference, see
            `whiten.datasets.patterns`.
        reference: a folder whose files are compared with those of the source and never removed; for
            videos and stores a part of the source.
        also: also find copies that are `mirrored` (left to right or upside down) or `rotated` by
            quarter turns; each way embeds the images again. Images only.

    Raises:
        ConfigError: the reference holds nothing to compare; `also` for videos or stores; the
            encoder is missing, or differs from the store's; or the store holds frames of videos.
        NoImagesError: nothing can be read.
    """
    with temporary_folder() as temporary:
        folder = cache or temporary
        folder.mkdir(parents=True, exist_ok=True)
        if (store := open_store(source, exclude, include)) is not None:
            if also:
                raise ConfigError(
                    f"{source} holds embeddings of upright images only: name the images and "
                    "--model, or leave --also out"
                )
            yield marked(_of_store(store, encoder, folder), reference)
            return
        if encoder is None:
            raise ConfigError(f"{source} has no embeddings yet: add --model MODEL")
        source = as_path(source)
        place = source.resolve()
        frames = folder / f"frames-{place.stem}-{fingerprint(str(place))[:8]}"
        with progress("frames", enabled=show_progress, unit="videos") as update:
            items, skipped = find_or_extract(
                source,
                frames,
                exclude=exclude,
                include=include,
                progress=update,
                tell=announce if show_progress else None,
            )
        if items.frame_ms is None:
            items = (
                items if reference is None else with_reference(items, reference, exclude, include)
            )
            collection = _of_images(items, encoder, folder, show_progress)
            if also:
                assert isinstance(collection.similarity, VectorSimilarity)
                turns = embed_turned(encoder, collection.items, also, folder, show_progress)
                similarity = TurnedSimilarity(collection.similarity.vectors, turns)
                collection = replace(collection, similarity=similarity)
            yield marked(collection, reference)
        else:
            if also:
                raise ConfigError("--also is for images: leave it out for videos")
            is_made = (source / FRAMES_TABLE).is_file()
            table = (source if is_made else frames) / FRAMES_TABLE
            videos = _of_videos(items, skipped, table, encoder, folder, show_progress)
            yield marked(videos, reference)


def with_reference(items: Items, reference: Path, exclude: Patterns, include: Patterns) -> Items:
    """Add the images of a reference folder that are not among the items.

    Raises:
        ConfigError: it is no folder.
    """
    require_folder(reference)
    known = {_place(item.path) for item in items}
    names = set(items.ids.to_pylist())
    added = []
    for item in find_items(reference, None, exclude, include):
        if _place(item.path) in known:
            continue
        name = f"{reference.name}/{item.id}"
        while name in names:
            name = f"reference/{name}"
        names.add(name)
        added.append(Item(name, item.path, None))
    return Items.of([*items, *added])


def require_folder(reference: Path) -> None:
    """Refuse a reference that is no folder."""
    if not reference.is_dir():
        raise ConfigError(f"the reference {reference} is no folder: name a folder of images")


def marked(collection: Collection, reference: Path | None) -> Collection:
    """Mark the members in the reference folder.

    Raises:
        ConfigError: there are none.
    """
    if reference is None:
        return collection
    root = os.path.join(os.path.realpath(reference), "")
    inside = frozenset(
        name
        for name, path in zip(collection.names, collection.paths, strict=True)
        if _place(path).startswith(root)
    )
    if not inside:
        raise ConfigError(
            f"none of the {collection.what}s compared is in the reference {reference}: name a "
            f"folder of {collection.what}s"
            + ("" if collection.what == "image" else " inside the collection")
        )
    return replace(collection, reference=inside)


def _place(path: str) -> str:
    """Return where a file is, however its folder was named; a link is where the link is."""
    if not is_plain(path):
        return absolute(path)
    folder, name = os.path.split(os.path.abspath(path))  # noqa: PTH100 - links stay links
    return os.path.join(os.path.realpath(folder), name)


def _of_images(items: Items, encoder: Encoder, cache: Path, show_progress: bool) -> Collection:
    # The first model's store has the content hashes; equal contents are compared once.
    store = embed_cached(encoder.parts[0].teacher, items, cache, show_progress=show_progress)
    has_one = store.has(items.by_id, [0])[:, 0]
    known = items.take(has_one)
    if not len(known):
        raise NoImagesError("none of the images could be read: name a folder with readable images")
    hashes, code, first = _contents(store, known)
    kept, vectors, skipped = embed_rows(
        encoder, known.take(first), cache=cache, show_progress=show_progress
    )
    # Another model may fail on an image that the first one could embed.
    at = kept.by_id.rows(known.take(first).ids.to_pylist())
    skipped = [*store.skipped_of(items.by_id), *skipped]
    return _compared(known, hashes, at[code], kept, vectors, skipped, cache)


def _of_store(store: Store, encoder: Encoder | None, cache: Path) -> Collection:
    require_embedded_by(store, encoder)
    items = stored_items(store)
    if items.frame_ms is not None:
        raise ConfigError(
            f"{store.folder} holds frames of videos: name the folder of videos, or of frames, that "
            "it was made from"
        )
    hashes, code, first = _contents(store, items)
    wanted = items.take(first)
    vectors = stored_rows(store, wanted, cache)
    return _compared(items, hashes, code, wanted, vectors, store.skipped, cache)


def _compared(
    known: Items,
    hashes: pa.Array,
    row_of: Rows,
    kept: Items,
    vectors: Vectors,
    skipped: Sequence[Skipped],
    cache: Path,
) -> Collection:
    """Return a collection of images, without those that have no embedding.

    Args:
        known: the images.
        hashes: (n,) their content hashes.
        row_of: (n,) row of each among `kept`; -1 if it has none.
        kept: images of different content.
        vectors: (m, d) embeddings of `kept`.
    """
    usable = usable_rows(vectors)
    if not usable.all():  # stores of earlier versions hold embeddings of zeros
        lost = kept.take(~usable).ids.to_pylist()
        skipped = [
            *skipped,
            *(Skipped(name, "its embedding is zero or not finite") for name in lost),
        ]
        new_row = np.where(usable, np.cumsum(usable) - 1, -1)
        row_of = np.where(row_of < 0, -1, new_row[row_of])
        kept, vectors = kept.take(usable), vectors[usable]
    is_left = row_of >= 0
    known = known.take(is_left)
    paths = [os.fsdecode(path) for path in known.paths.to_pylist()]
    return Collection(
        what="image",
        names=known.ids.to_pylist(),
        paths=paths,
        groups=known.groups.to_pylist(),
        pictures=paths,
        copy_of=row_of[is_left],
        hashes=hashes.filter(pa.array(is_left)).to_pylist(),
        similarity=VectorSimilarity(vectors),
        items=kept,
        skipped=list({skip.id: skip for skip in skipped}.values()),
        folder=cache,
    )


def _of_videos(
    frames: Items,
    skipped: list[Skipped],
    table: Path,
    encoder: Encoder,
    cache: Path,
    show_progress: bool,
) -> Collection:
    kept, vectors, unread = embed_rows(
        encoder, frames.sorted(), cache=cache, show_progress=show_progress
    )
    counts = count_frames(kept)
    lengths = np.fromiter(counts.values(), np.int64)
    middles = np.cumsum(lengths) - lengths + lengths // 2
    shown = kept.take(middles)
    sources = {
        row["video"]: real_path(row["source"])
        for row in pq.read_table(table, columns=["video", "source"]).to_pylist()
    }
    last = {video_of(frame.id): frame.frame_ms or 0 for frame in kept}
    lost = sorted({video_of(frame.id) for frame in frames} - set(counts))
    return Collection(
        what="video",
        names=list(counts),
        paths=[sources[name] for name in counts],
        groups=shown.groups.to_pylist(),
        pictures=[os.fsdecode(path) for path in shown.paths.to_pylist()],
        copy_of=np.arange(len(counts)),
        hashes=[""] * len(counts),
        similarity=SetSimilarity(vectors, lengths),
        items=kept,
        skipped=[
            *skipped,
            *unread,
            *(Skipped(name, "none of its frames can be read") for name in lost),
        ],
        folder=cache,
        seconds=[last[name] / 1000 + 1 for name in counts],
    )


def _contents(store: Store, items: Items) -> tuple[pa.Array, Rows, Rows]:
    """Return content hashes, their numbers, and the first image of each number."""
    hashes = store.content_hashes(items.by_id)
    code = name_codes(hashes)
    return hashes, code, np.unique(code, return_index=True)[1]
