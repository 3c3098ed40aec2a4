"""Data: what there is, and its embeddings."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from whiten.cli.app import Json, app
from whiten.cli.terminal import list_duplicates, list_skipped, print_json, say
from whiten.errors import ConfigError


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
    workers: int | None = None,
    as_json: Json = False,
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
        workers: threads that decode images; by default one for each core.
        as_json: print the summary as JSON.
    """
    from whiten.datasets.frames import find_or_extract
    from whiten.embedding.embed import embed as embed_items
    from whiten.embedding.embed import summarize
    from whiten.models.registry import open_teacher
    from whiten.utils.progress import progress
    from whiten.views.plan import ViewPlan

    if precision not in ("auto", "32", "bf16"):
        raise ConfigError(f"precision must be auto, 32 or bf16, not {precision!r}")
    for name, value in (("views", views), ("workers", workers)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} must be at least 1, not {value}")
    with progress("frames") as update:
        beside = out.with_name(f"{out.name}-frames")
        items, no_videos = find_or_extract(
            images, beside, workers=workers, progress=update, tell=say
        )
    model = open_teacher(teacher).on_best_device()
    with progress(f"embed {model.name}", unit="images") as update:
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


@app.command
def frames(
    videos: Path,
    /,
    *,
    out: Path,
    fps: float = 1.0,
    max_frames: int = 60,
    workers: int | None = None,
    as_json: Json = False,
) -> None:
    """Take frames of videos, for every verb that takes images; interrupted, it goes on.

    Args:
        videos: a folder, or a CSV or Parquet with columns path,group.
        out: the folder of frames, OUT/VIDEO/0000.jpg.
        fps: frames a second.
        max_frames: the most of a video, from its beginning.
        workers: videos that are read at the same time; by default one for each core.
        as_json: print the summary as JSON.
    """
    from whiten.datasets.finding import find_videos
    from whiten.datasets.frames import extract_frames
    from whiten.utils.progress import progress

    if workers is not None and workers < 1:
        raise ConfigError(f"workers must be at least 1, not {workers}")
    with progress("frames") as update:
        found = extract_frames(
            find_videos(videos),
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
    print(f"{out}: {len(found.frames):,} frames of {found.videos:,} videos")
    list_skipped(found.skipped, "video")


@app.command
def datasets(root: Path = Path(), /, *, as_json: Json = False) -> None:
    """Say which published data sets are in a folder or just below it, and where to get them.

    Args:
        root: the folder.
        as_json: print JSON.
    """
    from whiten.datasets.catalogue import find_datasets

    found = find_datasets(root)
    lines = (line for one in found for line in one.lines())
    print_json([asdict(one) for one in found]) if as_json else print(*lines, sep="\n")
