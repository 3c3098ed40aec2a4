"""The verbs `index` and `search`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from whiten.cli.app import (
    Device,
    Exclude,
    Include,
    Json,
    Model,
    OnCluster,
    Patterns,
    Quiet,
    Runtime,
    app,
)
from whiten.cli.terminal import list_skipped, print_json, say
from whiten.errors import ConfigError, counted
from whiten.models.choice import choose
from whiten.storage.places import is_member
from whiten.utils.progress import be_quiet
from whiten.utils.urls import as_url

if TYPE_CHECKING:
    from whiten.index import Index


@app.command
def index(
    images: Path | None = None,
    /,
    *,
    model: Model = None,
    out: str | None = None,
    store: str | None = None,
    metadata: Path | None = None,
    add: bool = False,
    collection: str | None = None,
    remove_missing: bool = False,
    remove: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    kind: Literal["auto", "exact", "int8", "ivf", "hnsw"] | None = None,
    recall: float | None = None,
    storage: str | None = None,
    exclude: Exclude = (),
    include: Include = (),
    drop_columns: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    cluster: OnCluster = None,
    runtime: Runtime = "auto",
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Build an index, or bring it up to date: only new and changed images are embedded.

    Args:
        images: a folder, tar shards, Parquet with images, a table of paths, a URL of any of these,
            or a store of embeddings.
        model: folder of a student, or URI of any model; not needed for a store, nor to update.
        out: folder of the index.
        store: vector database to use instead of a folder: milvus:URI or pgvector:DSN.
        metadata: CSV or Parquet with columns to filter by, and id or path; by default the other
            columns of the table of images. They replace the columns of the index, or are added to
            them with --add; without a table these stay.
        add: add these images to the index, and remove none.
        collection: name that the ids of these images begin with, so that they are not those of
            another collection; by default unchanged, none for a new collection.
        remove_missing: without --add, remove missing images even if they are more than half of a
            collection.
        remove: ids of images to remove.
        kind: search kind: exact, int8 (also exact), ivf, hnsw, or auto, which measures which is
            fast; by default unchanged, auto for a new index.
        recall: minimum recall@10 against exact search, for kinds that are not exact; 0.95 for a new
            index.
        storage: how to store vectors: float32 float16 int8 binary pca:K pq:M, with +float32 to keep
            full vectors that re-rank the hits; by default unchanged, float32 for a new index.
        drop_columns: columns of the index to drop.
    """
    be_quiet(quiet)
    choose(runtime, device)
    from whiten.embedding.cluster import connected
    from whiten.index import Index
    from whiten.index.collections import is_store

    where = place(out, store, "--out")
    if images is None and not remove:
        raise ConfigError("say what to do: name images to index, or --remove ids")
    if images is None:
        ignored = {
            "--model": model,
            "--metadata": metadata,
            "--add": add,
            "--collection": collection,
            "--remove-missing": remove_missing,
            "--kind": kind,
            "--recall": recall is not None,
            "--storage": storage,
            "--exclude": exclude,
            "--include": include,
            "--drop-columns": drop_columns,
            "--cluster": cluster,
        }
        if given := [option for option, value in ignored.items() if value]:
            raise ConfigError(
                f"{', '.join(given)}: only for images that are indexed: name them, or leave it out "
                "with --remove"
            )
        changed = Index.open(where)
        changed.remove(remove or [])
    elif remove:
        raise ConfigError("images are indexed, or removed with --remove: do one after the other")
    else:
        if cluster and is_store(images):
            raise ConfigError(f"{images} holds embeddings already: leave out --cluster")
        if model is None and not is_store(images):
            model = Index.open(where).facts.uri or None  # its error says how to start
        with connected(cluster) as on:
            changed = Index.build(
                model,
                images,
                where,
                metadata=metadata,
                keep=add,
                collection=collection,
                remove_missing=remove_missing,
                kind=kind,
                recall=recall,
                storage=storage,
                exclude=exclude,
                include=include,
                drop_columns=drop_columns or (),
                show_progress=True,
                cluster=on,
            )
    _print_changed(changed, as_json)


def _print_changed(changed: Index, as_json: bool) -> None:
    """Print what an index holds now, and what has changed."""
    done, tuning, loss = changed.changes, changed.tuning, changed.loss
    if as_json:
        how = None if tuning is None else asdict(tuning)
        facts = {"place": changed.place, "images": len(changed), **asdict(done)}
        kept = {"storage": changed.storage, "loss": None if loss is None else asdict(loss)}
        print_json(facts | {"search": how} | kept | {"runtime": changed.runtime})
        return
    print(
        f"{changed.place}: {counted(len(changed), 'image')}; {done.added:,} added "
        f"({counted(done.embedded, 'image')} embedded), {done.updated:,} updated, "
        f"{done.removed:,} removed"
    )
    lines = [] if loss is None else [loss.line()]
    for line in [*lines, *(tuning.lines() if tuning is not None else ())]:
        print(line)
    if done.dropped:
        print(f"columns dropped: {', '.join(done.dropped)}")
    for note in done.notes:
        say(f"note     {note}")
    list_skipped(done.skipped)


@app.command
def search(
    queries: Annotated[list[Path] | None, Parameter(consume_multiple=True)] = None,
    /,
    *,
    ids: Annotated[list[str] | None, Parameter("--id", consume_multiple=True)] = None,
    model: Model = None,
    images: Annotated[Path | None, Parameter("--in")] = None,
    index: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    store: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    k: Annotated[int, Parameter(("--k", "-k"))] = 10,
    threshold: float | None = None,
    where: str | None = None,
    box: str | None = None,
    combine: Literal["mean", "max"] | None = None,
    videos: bool = False,
    expand: int = 0,
    alpha: float = 3.0,
    background: str | None = None,
    exclude: Patterns = (),
    include: Patterns = (),
    runtime: Runtime = "auto",
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
    paths_only: bool = False,
    open_page: Annotated[bool, Parameter("--open")] = False,
) -> None:
    """Search an index, or a folder of images, by images.

    Args:
        queries: images that form one query, or a video.
        ids: ids of images in the index to query with.
        model: folder of a student, or URI of any model; by default the model of the index.
        images: a folder or a table of paths to search; its index is brought up to date first.
        index: folder of the index, or several that are searched as one; with --in by default next
            to the student's run.
        store: vector database to use instead of a folder: milvus:URI or pgvector:DSN; or several.
        k: number of hits.
        threshold: minimum score of a hit.
        where: filter on columns of the index: price < 10 and group in ['shoes', 'bags'], taken is
            None, name.startswith('a'), \\`my price\\` > 5.
        box: x,y,w,h in pixels: the region of the single image, or of the file of the single id.
        combine: how several images form one query: mean averages their embeddings, max takes the
            highest similarity to any of them; by default mean, and max for the frames of a video.
        videos: list videos instead of frames, each with its best frame.
        expand: query again with this many of the top hits added (α-query expansion).
        alpha: with --expand, exponent of the similarities that weight these hits.
        background: index of images that match no query; the query's similarity to them is
            subtracted from the scores, so that one threshold serves all queries.
        exclude: with --in, leave out images whose path below the folder, or any part of it,
            matches this glob; repeatable.
        include: with --in, take only images that match this glob; repeatable.
        paths_only: print only paths, one per line.
        open_page: write a page of the hits and open it in the browser.
    """
    be_quiet(quiet)
    from whiten.index import Index
    from whiten.index.opened import open_for_query
    from whiten.index.query import Query, SearchOptions
    from whiten.index.query import search as run
    from whiten.media.boxes import Box

    choose(runtime, device)
    if as_json and paths_only:
        raise ConfigError("--json prints JSON, and --paths-only paths: leave one out")
    if index and store:
        raise ConfigError("name the place of the index: --index FOLDER, or --store milvus:URI")
    places, files = _places_and_files(index or store or [])
    query = Query(
        (*(queries or ()), *files),
        tuple(ids or ()),
        None if box is None else Box.parse(box),
        combine,
    )
    wrong = None if background is None else Index.open(background)
    options = SearchOptions(k, threshold, where, videos, expand, alpha, wrong)
    opened, vectors = open_for_query(
        query,
        model=model,
        images=images,
        exclude=exclude,
        include=include,
        place=places,
        show_progress=True,
    )
    hits = run(opened, vectors, options)
    if as_json:
        print_json([hit.to_json() for hit in hits])
    else:
        for hit in hits:
            print(hit.path if paths_only else f"{hit.score:.4f}  {hit.path}")
    if open_page:
        import webbrowser

        from whiten.index.hits_page import write_hits_page

        page = write_hits_page(query.images, hits)
        say(f"page     {page}")
        webbrowser.open(page.as_uri())
    list_skipped(opened.changes.skipped)


def _places_and_files(named: Sequence[str]) -> tuple[list[str], list[Path]]:
    """Split what follows --index or --store: an index is no file, so that files are queries.

    So are the names of missing images, which are told as such where they are read.
    """
    from whiten.media.formats import SUFFIXES
    from whiten.media.video import VIDEO_SUFFIXES

    def is_query(name: str) -> bool:
        path = Path(name)
        is_missing = path.suffix.lower() in SUFFIXES | VIDEO_SUFFIXES and not path.exists()
        return path.is_file() or is_missing or as_url(name) is not None or is_member(name)

    files = [name for name in named if is_query(name)]
    return [name for name in named if name not in files], [Path(name) for name in files]


def place(folder: str | None, store: str | None, option: str) -> str:
    """Return the place of an index: a folder or a database; one of them must be given."""
    if (folder is None) == (store is None):
        raise ConfigError(f"name the place of the index: {option} FOLDER, or --store milvus:URI")
    return folder or store or ""
