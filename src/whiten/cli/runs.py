"""Training: a run, its report, and the demo."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from whiten.cli.app import Json, app
from whiten.cli.terminal import list_skipped, print_json
from whiten.errors import ConfigError
from whiten.runs.spec import DistillSpec


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
    recipe_images: Annotated[Path | None, Parameter(show=False)] = None,
    as_json: Json = False,
) -> None:
    """Distil teachers into a student, and report what was gained.

    Args:
        images: a folder, or a CSV or Parquet with columns path,group.
        out: the run's folder; the student will be OUT/student.
        config: a YAML file with any of the options; those given here go before it. --recipe FILE
            reads one that may name the images too.
        resume: go on with the run in OUT; nothing else needs to be repeated.
        overwrite: delete the run in OUT first.
        embeddings: where teachers' embeddings are kept, to share them between runs.
        test: grouped images that were not trained on, for the table in the report.
        recipe_images: what a recipe's file names, where nothing is named here.
        as_json: print JSON.
    """
    from whiten.distillation.distill import distill as run
    from whiten.evaluation.run import report_run, verdicts
    from whiten.report.table import format_table

    options = {} if spec is None else spec.to_mapping()
    images = images or recipe_images
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
def report(
    run: Path,
    /,
    *,
    test: Path | None = None,
    as_json: Json = False,
) -> None:
    """Write a run's report again, with figures on grouped test images if some are named.

    Args:
        run: the folder of a finished run.
        test: grouped images that were not trained on.
        as_json: print JSON.
    """
    from whiten.evaluation.run import report_run
    from whiten.report.table import format_table

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
    as_json: Json = False,
) -> None:
    """Distil three real networks on the bundled images and report what came out.

    Args:
        out: the demo's folder.
        quick: a few seconds' version, whose numbers mean nothing.
        as_json: print JSON.
    """
    from whiten.demo.run import conclusions, next_commands, run_demo
    from whiten.report.table import format_table

    rows, page = run_demo(out, quick=quick)
    if as_json:
        print_json({"report": str(page), "rows": [asdict(row) for row in rows]})
        return
    print(format_table(rows), *conclusions(rows), f"report   {page}", "", "next:", sep="\n")
    for command in next_commands(out):
        print(f"  {command}")
