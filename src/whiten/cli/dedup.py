"""The verb `dedup`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

from cyclopts import Parameter

from whiten.cli.app import Cache, Device, Exclude, Include, Json, Model, Quiet, Runtime, app
from whiten.cli.terminal import list_skipped, print_json, printable, say
from whiten.errors import ConfigError
from whiten.models.choice import choose
from whiten.storage.places import is_plain
from whiten.utils.progress import be_quiet

if TYPE_CHECKING:
    from whiten.datasets.collection import Items
    from whiten.dedup.turned import Also

_SHOWN = 10  # groups printed if they are not written to a folder


@app.command
def dedup(
    images: Path,
    /,
    *,
    model: Model = None,
    threshold: float | None = None,
    target_precision: float | None = None,
    positives: Literal["groups", "views"] | None = None,
    out: Path | None = None,
    keep: Literal["best", "first"] = "best",
    reference: Path | None = None,
    also: str | None = None,
    whiten_on: Path | None = None,
    cache: Cache = None,
    exclude: Exclude = (),
    include: Include = (),
    csv: Annotated[Path | None, Parameter("--csv")] = None,
    runtime: Runtime = "auto",
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Group near-duplicates of images or videos, and write a script that deletes the copies.

    Nothing is deleted unless you run the script.

    Args:
        images: a folder or a table of images or of videos, or a store of embeddings.
        model: folder of a student, or URI of any model; not needed for a store.
        threshold: minimum similarity of near-duplicates: cosine for images, chamfer for videos.
        target_precision: choose the threshold so that this fraction of the pairs above it is
            correct, at 95 % confidence.
        positives: pairs to choose the threshold by: groups (the default for a table with groups),
            or views, which are crops and brightness changes of the images themselves.
        out: folder for groups.html, groups.csv and delete.sh.
        keep: best keeps the most true pixels, of which an enlargement has no more, weighted by
            compression, then the camera's facts; first keeps the first path.
        reference: a folder that is compared too, whose files are never proposed for removal.
        also: mirrored, rotated or mirrored,rotated: also find copies that are mirrored, left to
            right or upside down, or rotated by quarter turns. Each way embeds the images again.
        whiten_on: images to fit the whitening of fuse:whitened:URI,URI on; by default those of
            IMAGES.
        cache: folder for embeddings, to reuse them; by default OUT/embeddings.
        csv: write the table of groups to this file.
    """
    be_quiet(quiet)
    from whiten.datasets.finding import find_items
    from whiten.dedup import deduplicate, open_collection
    from whiten.dedup.near_duplicates import check_threshold
    from whiten.dedup.sources import require_folder
    from whiten.dedup.threshold import calibrate, check_precision
    from whiten.dedup.writing import write_results, write_table
    from whiten.embedding.opening import fits_whitening, load
    from whiten.embedding.rows import require_source
    from whiten.media.formats import SUFFIXES
    from whiten.media.video import VIDEO_SUFFIXES

    choose(runtime, device)
    if (threshold is None) == (target_precision is None):
        raise ConfigError("give one of --threshold and --target-precision")
    if threshold is not None:
        if positives is not None:
            raise ConfigError(
                "--positives chooses the threshold: give --target-precision, or leave it out"
            )
        check_threshold(threshold)
    if target_precision is not None:
        check_precision(target_precision)
    kinds = _kinds(also)
    require_source(images, exclude, include, SUFFIXES | VIDEO_SUFFIXES)
    if reference is not None:
        require_folder(reference)
    kept = cache or (None if out is None else out / "embeddings")
    fitted_on: Path | Items | None = whiten_on
    if whiten_on is None and fits_whitening(model or ""):
        fitted_on = find_items(images, None, exclude, include)
    encoder = None if model is None else load(model, whiten_on=fitted_on, cache=kept)
    with open_collection(
        images,
        encoder,
        kept,
        reference=reference,
        also=kinds,
        exclude=exclude,
        include=include,
        show_progress=True,
    ) as collection:
        calibration = None
        if target_precision is not None:
            is_table = images.is_file() and any(group for group in collection.groups)
            calibration = calibrate(
                collection,
                target_precision,
                positives=positives or ("groups" if is_table else "views"),
                encoder=encoder,
                show_progress=True,
            )
            threshold = calibration.threshold
        assert threshold is not None
        found = deduplicate(
            collection, threshold, keep=keep, calibration=calibration, show_progress=True
        )
    written = [] if out is None else write_results(found, out)
    if csv is not None:
        write_table(found, csv)
    if as_json:
        print_json(found.to_json() | {"runtime": encoder and encoder.runtime})
    else:
        print(*found.lines(), sep="\n")
        if calibration is not None:
            print(calibration.line(found.what))
        for group in found.groups if out is None else []:
            if group.number > _SHOWN:
                print(
                    f"  … and {len(found.groups) - _SHOWN:,} more: add --out FOLDER or --csv FILE"
                )
                break
            names = ", ".join(printable(member.id) for member in group.members)
            print(f"  group {group.number}, least similar {group.lowest:.4f}: {names}")
    for path in written:
        say(f"wrote    {path}")
    if any(is_plain(member.path) for member in found.copies) and written:
        say(f"         sh {written[-1]} lists what it would delete; with --yes it deletes")
    list_skipped(found.skipped, found.what)


def _kinds(text: str | None) -> list[Also]:
    """Read `mirrored,rotated`."""
    kinds: list[Also] = []
    for name in (text or "").replace(",", " ").split():
        if name not in ("mirrored", "rotated"):
            raise ConfigError(f"--also takes mirrored, rotated or mirrored,rotated, not {name}")
        kinds.append(cast("Also", name))
    return kinds
