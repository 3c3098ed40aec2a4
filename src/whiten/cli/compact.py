"""Compact embeddings: what each kind costs, and one of them written."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from whiten.cli.app import Json, app
from whiten.cli.terminal import list_skipped, print_json, say
from whiten.errors import ConfigError


@app.command
def compact(
    images: Path,
    /,
    *,
    student: str | None = None,
    kinds: list[str] | None = None,
    queries: Path | None = None,
    write: Annotated[str | None, Parameter("--write")] = None,
    out: Path | None = None,
    embeddings: Path | None = None,
    plot: Path | None = None,
    as_json: Json = False,
) -> None:
    """Say what embeddings lose in fewer bytes, in one table; or write them so.

    Args:
        images: a folder or table of images, or a store of embeddings.
        student: the student's folder, or any model's URI; a store needs none.
        kinds: which: float32 float16 int8 binary hamming pca:K pq:M; by default a spread of them.
        queries: images that search; by default each image searches all the others.
        write: write this kind into OUT instead of measuring: float16 as a store, others as a folder
            of codes.
        out: the new folder for --write.
        embeddings: where embeddings are kept between calls.
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
    encoder = None if student is None else load(student)
    with open_embedded(images, encoder, embeddings, show_progress=True) as source:
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
