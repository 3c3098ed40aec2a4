"""The verbs `distill`, `report` and `demo`."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, ArgumentCollection, CycloptsError, Parameter
from cyclopts.config import Yaml

from whiten.cli.app import (
    Cache,
    Device,
    Json,
    OnCluster,
    Patterns,
    Quiet,
    Runtime,
    app,
    known_places,
    on_disk,
    whole_numbers,
)
from whiten.cli.terminal import list_skipped, print_json
from whiten.errors import ConfigError, one_line
from whiten.models.choice import choose
from whiten.runs.paths import located
from whiten.runs.spec import DistillSpec
from whiten.utils.progress import be_quiet


class _Options(Yaml):
    """Options of a run from a YAML file; the `config.yaml` of an earlier run is one."""

    @property
    def config(self) -> dict[str, Any]:
        try:
            options: Any = super().config
        except (OSError, ValueError, TypeError, RecursionError, CycloptsError) as error:
            why = error.__context__ or error  # cyclopts fails to describe some errors of YAML
            raise ConfigError(f"cannot read {self.path}: {one_line(why)}") from error
        if not isinstance(options, dict):
            raise ConfigError(f"{self.path} must hold options, one `name: value` per line")
        options = located(options)
        chosen = {str(k): v for k, v in options.items() if k != "version" and v is not None}
        return {"distill": chosen}  # below the verb, since `teachers` is also a verb


def _from_files(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Fill options that the command line leaves open from `--config FILE` and `--recipe FILE`.

    A run that is resumed with options, such as `--micro-batch`, has all others from its own file.
    """
    from whiten.runs.folder import RunFolder

    given = {name: argument for argument in arguments for name in argument.names}
    files = [token.value for token in given["--config"].tokens]
    if given["--resume"].tokens and not given["--teachers"].tokens and given["--out"].tokens:
        own = RunFolder(Path(given["--out"].tokens[-1].value)).config
        files += [str(own)] if own.is_file() else []
    for token in list(given["--recipe"].tokens):
        if _is_file(token.value):
            given["--recipe"].tokens.remove(token)  # the file may name a recipe
            files.append(token.value)
    for file in files:
        read = _Options(file, must_exist=True, source=file)
        read(app, commands, arguments)


def _is_file(text: str) -> bool:
    """Return whether a recipe is a file: names of recipes have neither dot nor slash."""
    return "." in text or "/" in text or os.sep in text or os.path.isfile(text)  # noqa: PTH113


@app.command(config=[_from_files, whole_numbers, on_disk, known_places])
def distill(
    images: Path | None = None,
    *,
    out: Path,
    spec: Annotated[DistillSpec | None, Parameter(name="*")] = None,
    config: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    cache: Cache = None,
    test: Path | None = None,
    cluster: OnCluster = None,
    runtime: Runtime = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Distil teachers into a student, and report the results.

    Args:
        images: a folder, tar shards, Parquet with images, or a CSV or Parquet with columns
            path,group; or a URL of any of these.
        out: the run's folder; the student is written to OUT/student.
        config: a YAML file with any of these options; options on the command line take precedence.
        resume: continue the run in OUT; nothing but --test needs to be repeated. --device,
            --compile, --micro-batch and --workers may be new.
        overwrite: delete the run in OUT first.
        cache: folder for the teachers' embeddings, to share them between runs.
        test: grouped images that training does not see, for the table in the report.
    """
    be_quiet(quiet)
    from whiten.distillation.distill import distill as run
    from whiten.distillation.launched import rank
    from whiten.evaluation.run import measure_run, require_test, unseen_verdict, verdicts
    from whiten.report.run_page import write_report
    from whiten.report.table import format_table
    from whiten.runs.folder import RunFolder

    choose(runtime, "auto" if spec is None else spec.device)
    if images is None and not resume:
        raise ConfigError("name the images: whiten distill IMAGES --teachers URI --out RUN")
    known = RunFolder(out).read_config()[1] if resume and spec is None else spec
    chosen = ((), ()) if known is None else (known.exclude, known.include)
    if test is not None and rank() == 0:
        require_test(test, *chosen)
    folder = RunFolder(out)
    # Nothing is trained then, and the report may hold results on images that are not named again.
    is_kept = resume and test is None and folder.is_finished and folder.report.is_file()
    result = run(
        images or "", spec, out, resume=resume, overwrite=overwrite, cache=cache, cluster=cluster
    )
    if rank() > 0:  # the first process reports for all
        return
    list_skipped(result.skipped)
    data = measure_run(out, test=test, exclude=chosen[0], include=chosen[1], show_progress=True)
    report = folder.report if is_kept else write_report(data, out)
    rows, compared = data.rows, data.seen_unseen
    if as_json:
        print_json(
            {
                "student": str(result.student),
                "report": str(report),
                "steps": result.steps,
                "loss": result.loss,
                "recipe": result.recipe,
                "gain": result.gain,
                "rows": [asdict(row) for row in rows],
                "verdicts": verdicts(rows),
                "overlap": None if data.overlap is None else asdict(data.overlap),
                "seen_unseen": compared and compared.to_json(),
                "skipped": [asdict(skip) for skip in result.skipped],
            }
        )
        return
    if rows:
        print(format_table(rows), *verdicts(rows), sep="\n")
    if compared is not None:
        print(*compared.lines(), unseen_verdict(compared), sep="\n")
    print(f"gain     {result.gain}")
    print(f"student  {result.student}\nreport   {report}")


@app.command
def report(
    run: Path,
    /,
    *,
    test: Path | None = None,
    exclude: Patterns = (),
    include: Patterns = (),
    runtime: Runtime = "auto",
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write a run's report again, with metrics on grouped test images if any are named.

    Args:
        run: the folder of a finished run.
        test: grouped images that training did not see.
        exclude: leave out test images whose path below the folder, or any part of it, matches this
            glob; repeatable.
        include: take only test images that match this glob; repeatable.
    """
    be_quiet(quiet)
    from whiten.evaluation.run import measure_run, unseen_verdict
    from whiten.report.run_page import write_report
    from whiten.report.table import format_table

    choose(runtime, device)
    if test is None and (exclude or include):
        raise ConfigError("--exclude and --include choose among test images: add --test IMAGES")
    data = measure_run(run, test=test, exclude=exclude, include=include, show_progress=True)
    path, rows, compared = write_report(data, run), data.rows, data.seen_unseen
    if as_json:
        print_json(
            {
                "report": str(path),
                "rows": [asdict(row) for row in rows],
                "overlap": None if data.overlap is None else asdict(data.overlap),
                "seen_unseen": compared and compared.to_json(),
            }
        )
        return
    if rows:
        print(format_table(rows))
    if compared is not None:
        print(*compared.lines(), unseen_verdict(compared), sep="\n")
    print(f"report   {path}")


@app.command
def demo(
    *,
    out: Path = Path("runs/demo"),
    quick: bool = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Distil three real networks on the bundled photographs and drawings and report the results.

    Args:
        out: the demo's folder.
        quick: a version of a few seconds, whose metrics mean nothing.
    """
    from whiten.demo.drawings import conclusions
    from whiten.demo.run import next_commands, run_demo
    from whiten.evaluation.run import unseen_verdict
    from whiten.report.table import format_table

    be_quiet(quiet)
    found = run_demo(out, quick=quick)
    rows, compared = found.photos.rows, found.photos.seen_unseen
    assert compared is not None
    if as_json:
        print_json(
            {
                "photos": {
                    "report": str(found.photos_page),
                    "rows": [asdict(row) for row in rows],
                    "seen_unseen": compared.to_json(),
                },
                "drawings": {
                    "report": str(found.drawings_page),
                    "rows": [asdict(row) for row in found.drawings],
                },
            }
        )
        return
    print("Photographs of groceries, without labels", format_table(rows), "", sep="\n")
    print(*compared.lines(), unseen_verdict(compared), f"report   {found.photos_page}", sep="\n")
    print("", "Drawings of emoji by four design teams", format_table(found.drawings), sep="\n")
    print(*conclusions(found.drawings), f"report   {found.drawings_page}", "", "next:", sep="\n")
    for command in next_commands(out):
        print(f"  {command}")
