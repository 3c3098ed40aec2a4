"""The verb `evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from whiten.cli.app import Cache, Device, Json, Patterns, Quiet, Runtime, app
from whiten.cli.terminal import list_skipped, print_json, say
from whiten.models.choice import choose
from whiten.utils.progress import be_quiet


@app.command
def evaluate(
    images: Path,
    /,
    *,
    model: Annotated[str, Parameter(("--model", "--student"))],
    queries: Path | None = None,
    gallery_model: Annotated[
        str | None, Parameter(("--gallery-model", "--gallery-encoder"))
    ] = None,
    source_column: str | None = None,
    whitener: Path | None = None,
    whiten_on: Path | None = None,
    whiten_dim: int = 256,
    shrinkage: float = 0.1,
    protocol: str | None = None,
    multi_scale: bool = False,
    distractors: Path | None = None,
    similarity: str = "cf",
    omit_normalisation: bool = False,
    report: Path | None = None,
    cache: Cache = None,
    exclude: Patterns = (),
    include: Patterns = (),
    runtime: Runtime = "auto",
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Evaluate retrieval: images of a group should find each other; or run a benchmark.

    Args:
        images: a folder with one subfolder per group, a table with columns path,group, or the root
            of a published benchmark.
        model: folder of a student, URI of any model, fuse:raw:URI,URI, fuse:whitened:URI,URI,
            fuse:whitened:RUN or fuse:compatible:RUN.
        queries: images to query with, in the same form; by default each image queries all others. A
            query that is in the gallery does not search for itself.
        gallery_model: model that embeds the gallery, if it is not the model of the queries:
            fuse:compatible:RUN for the student of a run with --compatible.
        source_column: column of the images' table that names where each comes from (shop, camera,
            year): show the metrics per source, too. A folder has such a table directly in it.
        whitener: file of a whitening for the embeddings of a single model.
        whiten_on: images to fit the whitening of fuse:whitened:URI,URI on.
        whiten_dim: with --whiten-on, dimensions that this whitening keeps.
        shrinkage: with --whiten-on, regularisation of this whitening.
        protocol: roxford5k or rparis6k, needed if the folder holds several; svd, the benchmark of
            near-duplicate videos; videos, for groups of videos or of folders of frames.
        multi_scale: for landmarks, average embeddings at 1, 0.71 and 0.5 of the size.
        distractors: for landmarks, the folder of revisitop1m, or a store of its embeddings.
        similarity: similarity of videos: cf, sme, smx, fme or fmx.
        omit_normalisation: for svd, feed pixels without normalisation, as the published evaluation.
        report: write a page to this file: the metrics per source; for videos, the hits and how
            frames align.
        cache: folder for embeddings, to reuse them.
        exclude: leave out images whose path below a folder, or any part of it, matches this glob;
            repeatable.
        include: take only images that match this glob; repeatable.
    """
    be_quiet(quiet)
    from whiten.embedding.opening import load
    from whiten.evaluation.evaluate import Labelled, evaluate_labelled, find_labelled
    from whiten.evaluation.page import write_evaluation
    from whiten.evaluation.protocols import (
        Options,
        Outcome,
        find_protocol,
        open_benchmark,
    )

    choose(runtime, device)
    options = Options(
        multi_scale, distractors, similarity, omit_normalisation, report, exclude, include
    )
    name = find_protocol(images, protocol, options, queries, gallery_model, source_column)
    task = (
        find_labelled(images, queries, source_column, exclude, include, show_progress=True)
        if name is None
        else open_benchmark(name, images, options)
    )
    encoder = load(
        model,
        whitener=whitener,
        whiten_on=whiten_on,
        whiten_dim=whiten_dim,
        shrinkage=shrinkage,
        cache=cache,
    )
    outcome: Outcome
    if isinstance(task, Labelled):
        outcome = found = evaluate_labelled(
            encoder, task, gallery_encoder=gallery_model, cache=cache, show_progress=True
        )
        if report is not None:
            say(f"report   {write_evaluation(found, report)}")
    else:
        outcome = task(encoder, cache, True)
    if as_json:
        print_json(outcome.to_json() | {"runtime": encoder.runtime})
        return
    print(*outcome.lines(), sep="\n")
    for remark in outcome.remarks:
        say(remark)
    list_skipped(outcome.skipped)
