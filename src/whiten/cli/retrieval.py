"""Retrieval: measure it, and search."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from whiten.cli.app import Json, app
from whiten.terminal import list_skipped, print_json, say


@app.command
def evaluate(
    encoder: str,
    gallery: Path,
    /,
    *,
    queries: Path | None = None,
    whiten_on: Path | None = None,
    whiten_dim: int = 256,
    shrinkage: float = 0.1,
    embeddings: Path | None = None,
    as_json: Json = False,
) -> None:
    """Measure retrieval: images of a group should find each other.

    Args:
        encoder: a teacher's URI, a student's folder, or fuse:raw:URI,URI and
            fuse:whitened:URI,URI or fuse:whitened:RUN.
        gallery: a folder with a subfolder a group, or a table with columns path,group.
        queries: likewise; by default each image searches all the others.
        whiten_on: images to fit the whitening of fuse:whitened:URI,URI on.
        whiten_dim: dimensions that this whitening keeps.
        shrinkage: of this whitening.
        embeddings: where embeddings are kept between calls.
        as_json: print JSON.
    """
    from whiten.encoder import load
    from whiten.evaluate import evaluate as run

    model = load(
        encoder,
        whiten_on=whiten_on,
        whiten_dim=whiten_dim,
        shrinkage=shrinkage,
        cache=embeddings,
    )
    result = run(model, gallery, queries=queries, cache=embeddings, show_progress=True)
    if as_json:
        print_json(result.to_json())
        return
    print(f"{result.name}: {len(result.query_ids):,} queries, {result.gallery_size:,} images")
    for name, figure in result.figures.items():
        print(f"  {name:10} {figure.value:.4f}  [{figure.low:.4f}, {figure.high:.4f}]")
    if result.without_positives:
        say(f"{result.without_positives} queries left out: nothing else of their group is there")
    list_skipped(result.skipped)


@app.command
def search(
    query: Path,
    /,
    *,
    student: str,
    images: Annotated[Path, Parameter("--in")],
    index: Path | None = None,
    k: int = 10,
    as_json: Json = False,
    paths_only: bool = False,
    open_page: Annotated[bool, Parameter("--open")] = False,
) -> None:
    """Search a folder of images by an image.

    Args:
        query: the image to look for.
        student: the student's folder, or any model's URI.
        images: where to search: a folder or a table of paths.
        index: where the index is kept; by default beside the student's run, one for each folder.
        k: how many hits.
        as_json: print JSON.
        paths_only: print the paths alone, one a line.
        open_page: write a page of the hits and open it in the browser.
    """
    from whiten.searching import search_folder, write_hits_page

    found = search_folder(query, student, images, index=index, k=k, show_progress=True)
    if as_json:
        print_json([asdict(match) for match in found.matches])
    else:
        for match in found.matches:
            print(match.path if paths_only else f"{match.score:.4f}  {match.path}")
    if open_page:
        import webbrowser

        page = write_hits_page(query, found)
        say(f"page     {page}")
        webbrowser.open(page.as_uri())
    list_skipped(found.skipped)
