"""The verb `diagnose`."""

from __future__ import annotations

from pathlib import Path

from whiten.cli.app import Cache, Device, Exclude, Include, Json, Quiet, Runtime, app
from whiten.cli.terminal import list_skipped, print_json, say
from whiten.models.choice import choose
from whiten.utils.progress import be_quiet


@app.command
def diagnose(
    images: Path,
    /,
    *,
    teachers: list[str],
    student: str | None = None,
    size: int | None = None,
    sample: int = 2048,
    out: Path | None = None,
    cache: Cache = None,
    exclude: Exclude = (),
    include: Include = (),
    runtime: Runtime = "auto",
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Tell what teachers are worth on these images, in minutes, before a distillation.

    Args:
        images: a folder, or a CSV or Parquet with columns path,group.
        teachers: URIs of the teachers, see whiten teachers.
        student: URI of a student's backbone, to predict its start in closed form.
        size: with --student, its input side in pixels; by default the backbone's own.
        sample: most images that are embedded, drawn at random in whole groups; 0 is all.
        out: write a page with plots to this file.
        cache: folder for embeddings; whiten distill with the same folder uses them again.
    """
    be_quiet(quiet)
    from whiten.diagnosis.diagnose import diagnose as run
    from whiten.diagnosis.page import write_page

    choose(runtime, device)
    found = run(
        images,
        teachers,
        student,
        size=size,
        sample=sample,
        cache=cache,
        exclude=exclude,
        include=include,
        show_progress=True,
    )
    if out is not None:
        say(f"wrote    {write_page(found, out)}")
    print_json(found.to_json()) if as_json else print(*found.lines(), sep="\n")
    list_skipped(found.skipped)
