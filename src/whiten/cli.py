"""The verbs: parse, call, print. No logic lives here.

Results go to stdout, progress and messages to stderr. Bad input is one line and exit code 2.
Heavy imports happen inside the verb that needs them.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from whiten import __version__
from whiten.allocator import keep_freed_memory
from whiten.config_file import with_config
from whiten.errors import ConfigError
from whiten.spec import SCHEMES, DistillSpec
from whiten.terminal import (
    list_duplicates,
    list_skipped,
    one_line_endings,
    print_evaluation,
    print_facts,
    print_json,
    say,
    show_warning,
)
from whiten.video_verbs import evaluate_on_videos, frames, images_or_frames, refuse_for_images

# Lightning announces what nobody asked for. Set on import, so that the processes that it spawns,
# which import the main module, are quiet too; its own import resets the level of its root alone.
for _name in ("rank_zero", "distributed"):
    logging.getLogger(f"lightning_fabric.utilities.{_name}").setLevel(logging.WARNING)

app = App(
    name="whiten",
    version=__version__,
    help="Distil frozen image-embedding models into one small, fast student for visual search.",
    version_flags=["--version"],
    print_error=False,
    exit_on_error=False,
    result_action="return_value",
    default_parameter=Parameter(consume_multiple=True),  # --teachers A B
    suppress_keyboard_interrupt=False,  # `main` says how to go on
)


@app.command
def teachers(
    pattern: str = "", /, *, as_json: Annotated[bool, Parameter("--json")] = False
) -> None:
    """List the models that can teach, and describe one.

    Args:
        pattern: part of a name lists what fits; a whole URI that can be opened is described.
        as_json: print JSON.
    """
    from whiten.teachers.listing import describe, list_teachers, names_one

    found = list_teachers(pattern)
    if names_one(pattern, found):
        facts = describe(pattern)
        print_json(facts) if as_json else print_facts(facts)
        return
    if as_json:
        print_json(found)
        return
    for uri in found:
        print(uri)
    if not pattern:
        say("other models: name part of one (whiten teachers resnet), or write a URI:")
        for name, (what, example) in SCHEMES.items():
            say(f"  {name + ':':13} {what}, for example {example}")


@app.command
def embed(
    images: Path,
    /,
    *,
    teacher: str,
    out: Path,
    views: int = 1,
    seed: int = 0,
    precision: str = "auto",
    dtype: str = "float32",
    workers: int = 2,
    as_json: Annotated[bool, Parameter("--json")] = False,
) -> None:
    """Embed images into a store; interrupted or extended, it goes on where it was.

    Args:
        images: a folder, or a CSV or Parquet with columns path,group. Of videos, frames are taken
            into OUT-frames first, one a second.
        teacher: the model's URI.
        out: the store's folder.
        views: views of each image; the first is the whole image, the others are random crops.
        seed: of the random views.
        precision: 32, bf16, or auto: that of an existing store, else bf16 where it is faster.
        dtype: float32, or float16 for half the disk space.
        workers: threads that decode images.
        as_json: print the summary as JSON.
    """
    from whiten.devices import best_device
    from whiten.embed import embed as embed_items
    from whiten.embed import summarize
    from whiten.progress import progress
    from whiten.spec import ViewPlan
    from whiten.teachers import open_teacher

    if precision not in ("auto", "32", "bf16"):
        raise ConfigError(f"precision must be auto, 32 or bf16, not {precision!r}")
    for name, value in (("views", views), ("workers", workers)):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, not {value}")
    items, no_videos = images_or_frames(images, out, workers)
    model = open_teacher(teacher).to(best_device())
    with progress(f"embed {model.name}") as update:
        store = embed_items(
            items,
            model,
            out,
            views=range(views),
            plan=ViewPlan(seed=seed),
            precision=precision,
            dtype=dtype,
            workers=workers,
            progress=update,
        )
    summary = summarize(store, items)
    summary.skipped.extend(no_videos)
    if as_json:
        print_json({"store": str(out), **asdict(summary)})
        return
    print(f"{out}: {summary.embeddings:,} embeddings of {summary.dim} dimensions")
    list_duplicates(summary.duplicates)
    list_skipped(summary.skipped)


app.command(frames)


@app.command
def distill(
    images: Path | None = None,
    /,
    *,
    out: Path,
    spec: Annotated[DistillSpec | None, Parameter(name="*")] = None,
    config: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    embeddings: Path | None = None,
    test: Path | None = None,
    as_json: Annotated[bool, Parameter("--json")] = False,
) -> None:
    """Distil teachers into a student, and report what was gained.

    Args:
        images: a folder, or a CSV or Parquet with columns path,group.
        out: the run's folder; the student will be OUT/student.
        config: a YAML file with any of the options; those given here go before it.
        resume: go on with the run in OUT; nothing else needs to be repeated.
        overwrite: delete the run in OUT first.
        embeddings: where teachers' embeddings are kept, to share them between runs.
        test: grouped images that were not trained on, for the table in the report.
        as_json: print JSON.
    """
    from whiten.distill import distill as run
    from whiten.report import format_table
    from whiten.run_report import report_run, verdicts

    options = {} if spec is None else spec.to_mapping()
    if images is None and not resume:
        raise ConfigError("name the images: whiten distill IMAGES --teachers URI --out RUN")
    teachers = options.pop("teachers", [])
    result = run(
        images or "",
        teachers,
        out=out,
        resume=resume,
        overwrite=overwrite,
        embeddings=embeddings,
        **options,
    )
    list_skipped(result.skipped)
    report, rows = report_run(out, test=test, show_progress=True)
    if as_json:
        print_json(
            {
                "student": str(result.student),
                "report": str(report),
                "steps": result.steps,
                "loss": result.loss,
                "recipe": result.recipe,
                "rows": [asdict(row) for row in rows],
                "verdicts": verdicts(rows),
                "skipped": [asdict(skip) for skip in result.skipped],
            }
        )
        return
    if rows:
        print(format_table(rows), *verdicts(rows), sep="\n")
    print(f"student  {result.student}\nreport   {report}")


@app.command
def evaluate(
    encoder: str,
    gallery: Path,
    /,
    *,
    protocol: Literal["groups", "svd", "videos"] = "groups",
    queries: Path | None = None,
    whiten_on: Path | None = None,
    whiten_dim: int = 256,
    shrinkage: float = 0.1,
    embeddings: Path | None = None,
    similarity: str = "cf",
    omit_normalisation: bool = False,
    report: Path | None = None,
    as_json: Annotated[bool, Parameter("--json")] = False,
) -> None:
    """Measure retrieval: images of a group should find each other.

    Args:
        encoder: a teacher's URI, a student's folder, or fuse:raw:URI,URI and
            fuse:whitened:URI,URI or fuse:whitened:RUN.
        gallery: a folder with a subfolder a group, or a table with columns path,group; for svd the
            dataset's folder.
        protocol: groups of images; svd, the benchmark of near-duplicate videos; or videos, groups
            of videos or of folders of frames.
        queries: likewise; by default each image searches all the others.
        whiten_on: images to fit the whitening of fuse:whitened:URI,URI on.
        whiten_dim: dimensions that this whitening keeps.
        shrinkage: of this whitening.
        embeddings: where embeddings are kept between calls.
        similarity: of videos: cf, sme, smx, fme or fmx.
        omit_normalisation: for svd, feed pixels as they are, as the published evaluation does.
        report: of videos, write a page of what was found and how frames align here.
        as_json: print JSON.
    """
    from whiten.encoder import load
    from whiten.evaluate import Evaluation
    from whiten.evaluate import evaluate as run

    model = load(
        encoder,
        whiten_on=whiten_on,
        whiten_dim=whiten_dim,
        shrinkage=shrinkage,
        cache=embeddings,
    )
    result: Evaluation
    if protocol == "groups":
        refuse_for_images(similarity, omit_normalisation, report)
        result = run(model, gallery, queries=queries, cache=embeddings, show_progress=True)
    else:
        result = evaluate_on_videos(
            model,
            gallery,
            protocol,
            similarity=similarity,
            omit_normalisation=omit_normalisation,
            report=report,
            queries=queries,
            cache=embeddings,
        )
    if as_json:
        print_json(result.to_json())
        return
    print_evaluation(result, "images" if protocol == "groups" else "videos")


@app.command
def search(
    query: Path,
    /,
    *,
    student: str,
    images: Annotated[Path, Parameter("--in")],
    index: Path | None = None,
    k: int = 10,
    as_json: Annotated[bool, Parameter("--json")] = False,
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


@app.command
def report(
    run: Path,
    /,
    *,
    test: Path | None = None,
    as_json: Annotated[bool, Parameter("--json")] = False,
) -> None:
    """Write a run's report again, with figures on grouped test images if some are named.

    Args:
        run: the folder of a finished run.
        test: grouped images that were not trained on.
        as_json: print JSON.
    """
    from whiten.report import format_table
    from whiten.run_report import report_run

    path, rows = report_run(run, test=test, show_progress=True)
    if as_json:
        print_json({"report": str(path), "rows": [asdict(row) for row in rows]})
        return
    if rows:
        print(format_table(rows))
    print(f"report   {path}")


@app.command
def demo(
    *,
    out: Path = Path("runs/demo"),
    quick: bool = False,
    as_json: Annotated[bool, Parameter("--json")] = False,
) -> None:
    """Distil three real networks on the bundled images and report what came out.

    Args:
        out: the demo's folder.
        quick: a few seconds' version, whose numbers mean nothing.
        as_json: print JSON.
    """
    from whiten.demo import conclusions, next_commands, run_demo
    from whiten.report import format_table

    rows, page = run_demo(out, quick=quick)
    if as_json:
        print_json({"report": str(page), "rows": [asdict(row) for row in rows]})
        return
    print(format_table(rows), *conclusions(rows), f"report   {page}", "", "next:", sep="\n")
    for command in next_commands(out):
        print(f"  {command}")


@app.command
def doctor(*, as_json: Annotated[bool, Parameter("--json")] = False) -> None:
    """Say what is installed, which devices there are, and what would make it faster."""
    from whiten.doctor import diagnose

    found = diagnose()
    if as_json:
        print_json(asdict(found))
        return
    print_facts(found.facts)
    for line in found.advice:
        print(f"- {line}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the command `whiten`."""
    warnings.showwarning = show_warning
    keep_freed_memory()
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    with one_line_endings(tokens):
        app(with_config(tokens))


if __name__ == "__main__":
    main()
