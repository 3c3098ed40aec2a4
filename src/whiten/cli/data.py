"""The verbs for data: `embed`, `frames`, `datasets`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from whiten.cli.app import Device, Exclude, Include, Json, OnCluster, Patterns, Quiet, Runtime, app
from whiten.cli.terminal import list_duplicates, list_skipped, print_json, say
from whiten.errors import ConfigError, counted
from whiten.models.choice import choose
from whiten.utils.progress import be_quiet

_Summary = Annotated[Json, Parameter(help="print the summary as JSON.")]


@app.command
def embed(
    images: Path,
    /,
    *,
    model: Annotated[str, Parameter(("--model", "--teacher"))],
    out: Path,
    views: int = 1,
    seed: int = 0,
    precision: str = "auto",
    dtype: str = "float32",
    exclude: Exclude = (),
    include: Include = (),
    workers: int | None = None,
    cluster: OnCluster = None,
    runtime: Runtime = "auto",
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: _Summary = False,
) -> None:
    """Embed images into a store; run it again to continue or to extend the store.

    Args:
        images: a folder, tar shards, Parquet with images, or a CSV or Parquet with columns
            path,group; a URL of any of these. From videos, one frame per second is first extracted
            into OUT-frames.
        model: URI of the model, see whiten teachers.
        out: the store's folder, or s3://, gs:// or az://.
        views: views per image; the first is the whole image, the others are random crops.
        seed: seed of the random views.
        precision: 32, bf16 (in torch), or auto: the precision of an existing store, else bf16 if it
            is faster.
        dtype: float32, or float16 for half the disk space.
        workers: threads that decode images; by default one per core. With --cluster, cores per copy
            of the model where there are no GPUs; by default 4.
    """
    be_quiet(quiet)
    from whiten.datasets.frames import find_or_extract
    from whiten.embedding.cluster import connected
    from whiten.embedding.embed import embed as embed_items
    from whiten.embedding.embed import summarize
    from whiten.models.opening import open_model, require_bf16, runtime_of
    from whiten.utils.progress import progress
    from whiten.utils.threads import require_workers
    from whiten.utils.urls import absolute, as_path
    from whiten.views.plan import ViewPlan

    choose(runtime, device)
    out = as_path(out)
    if precision not in ("auto", "32", "bf16"):
        raise ConfigError(f"precision must be auto, 32 or bf16, not {precision!r}")
    if views < 1:
        raise ConfigError(f"views must be at least 1, not {views}")
    require_workers(workers)
    with progress("frames", unit="videos") as update:
        named = out if out.name not in ("", "..") else absolute(str(out))
        beside = as_path(f"{named}-frames")
        items, no_videos = find_or_extract(
            images,
            beside,
            exclude=exclude,
            include=include,
            workers=workers,
            progress=update,
            tell=say,
        )
    opened = open_model(model)
    if precision == "bf16":
        require_bf16(opened, runtime)
    with connected(cluster) as on, progress(f"embed {opened.name}", unit="images") as update:
        store = embed_items(
            items,
            opened,
            out,
            views=range(views),
            plan=ViewPlan(seed=seed),
            precision=precision,
            dtype=dtype,
            workers=workers,
            progress=update,
            replace_others=False,
            cluster=on,
        )
    summary = summarize(store, items)
    summary.skipped.extend(no_videos)
    if as_json:
        used = runtime_of(opened, bf16=store.origin.precision == "bf16")
        print_json({"store": str(out), **asdict(summary), "runtime": used})
        return
    print(
        f"{out}: {counted(summary.embeddings, 'embedding')} of {counted(summary.dim, 'dimension')}"
    )
    if summary.others:
        say(
            f"{counted(summary.others, 'image')} of {out} {'is' if summary.others == 1 else 'are'} "
            f"not in {images} now, and the embeddings stay: name another --out to leave them out"
        )
    list_duplicates(summary.duplicates)
    list_skipped(summary.skipped)


@app.command
def frames(
    videos: Path,
    /,
    *,
    out: Path,
    fps: float = 1.0,
    max_frames: int = 60,
    exclude: Patterns = (),
    include: Patterns = (),
    workers: int | None = None,
    quiet: Quiet = False,
    as_json: _Summary = False,
) -> None:
    """Extract frames of videos, for every verb that takes images; run it again to continue.

    Args:
        videos: a folder, or a CSV or Parquet with columns path,group.
        out: the folder of frames, OUT/VIDEO/0000.jpg.
        fps: frames per second.
        max_frames: the most frames per video, from its beginning.
        exclude: leave out videos whose path below the folder, or any part of it, matches this glob;
            repeatable.
        include: take only videos that match this glob; repeatable.
        workers: videos that are read at the same time; by default one per core.
    """
    be_quiet(quiet)
    from whiten.datasets.finding import find_videos
    from whiten.datasets.frames import extract_frames
    from whiten.utils.progress import progress
    from whiten.utils.threads import require_workers

    require_workers(workers)
    with progress("frames", unit="videos") as update:
        found = extract_frames(
            find_videos(videos, exclude, include),
            out,
            fps=fps,
            max_frames=max_frames,
            workers=workers,
            progress=update,
        )
    if as_json:
        skipped = [asdict(skip) for skip in found.skipped]
        counts = {"videos": found.videos, "frames": len(found.frames)}
        print_json({"out": str(out), **counts, "skipped": skipped})
        return
    print(f"{out}: {counted(len(found.frames), 'frame')} of {counted(found.videos, 'video')}")
    list_skipped(found.skipped, "video")


@app.command
def datasets(root: Path = Path(), /, *, as_json: Json = False) -> None:
    """List the published data sets in a folder or just below it, and where to get the others.

    Args:
        root: the folder.
    """
    from whiten.datasets.catalogue import find_datasets

    found = find_datasets(root)
    lines = (line for one in found for line in one.lines())
    print_json([asdict(one) for one in found]) if as_json else print(*lines, sep="\n")
