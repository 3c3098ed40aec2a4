"""The verb `compact`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from whiten.cli.app import Cache, Json, Model, app
from whiten.cli.terminal import list_skipped, print_json, say
from whiten.errors import ConfigError


@app.command
def compact(
    images: Path,
    /,
    *,
    model: Model = None,
    kinds: list[str] | None = None,
    queries: Path | None = None,
    write: Annotated[str | None, Parameter("--write")] = None,
    out: Path | None = None,
    cache: Cache = None,
    plot: Path | None = None,
    as_json: Json = False,
) -> None:
    """Measure what embeddings lose when they are stored in fewer bytes; or store them so.

    Args:
        images: a folder or table of images, or a store of embeddings.
        model: folder of a student, or URI of any model; not needed for a store.
        kinds: kinds to measure: float32 float16 int8 binary hamming pca:K pq:M; by default some.
        queries: images to query with; by default each image queries all others.
        write: write this kind into OUT instead of measuring: float16 as a store, others as a folder
            of codes.
        out: the new folder for --write.
        cache: folder for embeddings, to reuse them.
        plot: draw the table into this PNG.
        as_json: print JSON.
    """
    from whiten.compact.kinds import parse_kind
    from whiten.compact.running import costs_of, open_embedded, write_kind
    from whiten.embedding.opening import load

    for kind in [*(kinds or []), *([] if write is None else [write])]:
        parse_kind(kind)  # before anything is embedded
    if (write is None) != (out is None):
        raise ConfigError("--write KIND and --out FOLDER belong together: give both or neither")
    encoder = None if model is None else load(model)
    with open_embedded(images, encoder, cache, show_progress=True) as source:
        if write is not None and out is not None:
            count = write_kind(source, write, out)
            size = sum(path.stat().st_size for path in out.iterdir())
            if as_json:
                print_json({"out": str(out), "kind": write, "count": count, "bytes": size})
            else:
                print(f"{out}: {count:,} vectors as {write}, {size / 1e6:,.1f} MB")
        else:
            found = costs_of(source, kinds or [], queries, show_progress=True)
            if plot is not None:
                from whiten.compact.plot import write_plot

                say(f"plot     {write_plot(found, plot)}")
            print_json(found.to_json()) if as_json else print(*found.lines(), sep="\n")
            for remark in found.remarks:
                say(remark)
        list_skipped(source.skipped)
