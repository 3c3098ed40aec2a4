"""Measure retrieval."""

from __future__ import annotations

from pathlib import Path

from whiten.cli.app import Json, app
from whiten.cli.terminal import list_skipped, print_json, say


@app.command
def evaluate(
    encoder: str,
    gallery: Path,
    /,
    *,
    queries: Path | None = None,
    gallery_encoder: str | None = None,
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
    embeddings: Path | None = None,
    as_json: Json = False,
) -> None:
    """Measure retrieval: images of a group should find each other, or what a benchmark asks.

    Args:
        encoder: a teacher's URI, a student's folder, or fuse:raw:URI,URI and
            fuse:whitened:URI,URI or fuse:whitened:RUN, or fuse:compatible:RUN.
        gallery: a folder with a subfolder a group, a table with columns path,group, or the root
            of a published benchmark.
        queries: likewise; by default each image searches all the others.
        gallery_encoder: embeds the gallery, where queries have another encoder: fuse:compatible:RUN
            for the student of a run that was made with --compatible.
        whitener: file of a whitening for the embeddings of a single model.
        whiten_on: images to fit the whitening of fuse:whitened:URI,URI on.
        whiten_dim: dimensions that this whitening keeps.
        shrinkage: of this whitening.
        protocol: roxford5k or rparis6k; needed where the folder is for several. svd, the benchmark
            of near-duplicate videos; videos, groups of videos or of folders of frames.
        multi_scale: for landmarks, average embeddings at 1, 0.71 and 0.5 of the size.
        distractors: for these, the folder of revisitop1m, or a store of its embeddings.
        similarity: of videos: cf, sme, smx, fme or fmx.
        omit_normalisation: for svd, feed pixels as they are, as the published evaluation does.
        report: of videos, write a page of what was found and how frames align here.
        embeddings: where embeddings are kept between calls.
        as_json: print JSON.
    """
    from whiten.embedding.opening import load
    from whiten.evaluation.evaluate import evaluate as run
    from whiten.evaluation.protocols import PROTOCOLS, Options, Outcome, find_protocol

    options = Options(multi_scale, distractors, similarity, omit_normalisation, report)
    name = find_protocol(gallery, protocol, options, queries, gallery_encoder)
    model = load(
        encoder,
        whitener=whitener,
        whiten_on=whiten_on,
        whiten_dim=whiten_dim,
        shrinkage=shrinkage,
        cache=embeddings,
    )
    outcome: Outcome
    if name is None:
        outcome = run(
            model,
            gallery,
            queries=queries,
            gallery_encoder=gallery_encoder,
            cache=embeddings,
            show_progress=True,
        )
    else:
        outcome = PROTOCOLS[name](model, gallery, options, embeddings, True)
    if as_json:
        print_json(outcome.to_json())
        return
    print(*outcome.lines(), sep="\n")
    for remark in outcome.remarks:
        say(remark)
    list_skipped(outcome.skipped)
