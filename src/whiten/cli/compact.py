"""The verb `compact`."""

from __future__ import annotations

from pathlib import Path

from whiten.cli.app import Cache, Device, Exclude, Include, Json, Model, Quiet, Runtime, app
from whiten.cli.terminal import list_skipped, print_json, say
from whiten.errors import ConfigError, counted
from whiten.models.choice import choose
from whiten.utils.progress import be_quiet


@app.command
def compact(
    images: Path,
    /,
    *,
    model: Model = None,
    kinds: list[str] | None = None,
    queries: Path | None = None,
    out: Path | None = None,
    cache: Cache = None,
    exclude: Exclude = (),
    include: Include = (),
    plot: Path | None = None,
    runtime: Runtime = "auto",
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure what embeddings lose when they are stored in fewer bytes.

    Args:
        images: a folder or table of images, or a store of embeddings.
        model: folder of a student, or URI of any model; not needed for a store.
        kinds: kinds to measure: float32 float16 int8 binary pca:K pq:M, with +float32 where full
            vectors re-rank the answers; by default some.
        queries: images to query with; by default each image queries all others.
        out: folder for an index that is stored in the one kind of --kinds.
        cache: folder for embeddings, to reuse them.
        plot: draw the table into this PNG.
    """
    be_quiet(quiet)
    from whiten.compact.running import costs_of, open_embedded, write_index
    from whiten.datasets.finding import require_items
    from whiten.embedding.opening import load
    from whiten.embedding.rows import require_source
    from whiten.index.local.storage.kinds import parse_storage

    choose(runtime, device)
    for kind in kinds or []:
        parse_storage(kind)  # before anything is embedded
    if out is not None and len(kinds or []) != 1:
        raise ConfigError("--out writes an index in one kind: name it with --kinds KIND")
    require_source(images, exclude, include)
    if queries is not None:
        require_items(queries, exclude, include)
    encoder = None if model is None else load(model)
    chosen = {"exclude": exclude, "include": include}
    with open_embedded(images, encoder, cache, **chosen, show_progress=True) as source:
        found = costs_of(source, kinds or [], queries, **chosen, show_progress=True)
        if plot is not None:
            from whiten.compact.plot import write_plot

            say(f"plot     {write_plot(found, plot)}")
        written = {}
        if out is not None and kinds:
            index = write_index(source, images, kinds[0], out, **chosen, show_progress=True)
            written = {"out": index.place, "count": len(index), "storage": index.storage}
        facts = found.to_json() | written | {"runtime": encoder and encoder.runtime}
        print_json(facts) if as_json else print(*found.lines(), sep="\n")
        if written and not as_json:
            count = counted(int(str(written["count"])), "image")
            print(f"{written['out']}: {count} stored as {written['storage']}")
        for remark in found.remarks:
            say(remark)
        list_skipped(source.skipped)
