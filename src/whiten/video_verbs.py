"""What the command line does with videos; see `whiten.cli`."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from whiten.errors import ConfigError
from whiten.terminal import list_skipped, print_json, say

if TYPE_CHECKING:
    from whiten.encoder import Encoder
    from whiten.evaluate_videos import VideoEvaluation, VideoProtocol
    from whiten.media import Items, Skipped


def frames(
    videos: Path,
    /,
    *,
    out: Path,
    fps: float = 1.0,
    max_frames: int = 60,
    workers: int = 2,
    as_json: Annotated[bool, Parameter("--json")] = False,
) -> None:
    """Take frames of videos, for every verb that takes images; interrupted, it goes on.

    Args:
        videos: a folder, or a CSV or Parquet with columns path,group.
        out: the folder of frames, OUT/VIDEO/0000.jpg.
        fps: frames a second.
        max_frames: the most of a video, from its beginning.
        workers: videos that are read at the same time.
        as_json: print the summary as JSON.
    """
    from whiten.media import extract_frames, find_videos
    from whiten.progress import progress

    if workers < 1:
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


def images_or_frames(source: Path, out: Path, workers: int) -> tuple[Items, list[Skipped]]:
    """The images of a source, or frames of its videos, which are kept beside `out`.

    Returns:
        The images, and the videos that have no frame.
    """
    from whiten.media import find_or_extract
    from whiten.progress import progress

    frames = out.with_name(f"{out.name}-frames")
    with progress("frames") as update:
        return find_or_extract(source, frames, workers=workers, progress=update)


def refuse_for_images(similarity: str, omit_normalisation: bool, report: Path | None) -> None:
    """Refuse options of `whiten evaluate` that mean nothing where images search images.

    Raises:
        ConfigError: one of them is there.
    """
    given = {
        "--similarity": similarity != "cf",
        "--omit-normalisation": omit_normalisation,
        "--report": report is not None,
    }
    if named := [option for option, is_given in given.items() if is_given]:
        raise ConfigError(f"{' and '.join(named)} is for videos: add --protocol svd or videos")


def evaluate_on_videos(
    model: Encoder,
    data: Path,
    protocol: VideoProtocol,
    *,
    similarity: str,
    omit_normalisation: bool,
    report: Path | None,
    queries: Path | None,
    cache: Path | None,
) -> VideoEvaluation:
    """`whiten evaluate` with a protocol of videos; writes the report if one is asked for."""
    from whiten.evaluate_videos import evaluate_videos
    from whiten.video_report import write_video_report

    if queries is not None:
        raise ConfigError(f"--queries is for images: {protocol} knows which videos are queries")
    with ExitStack() as stack:
        if report is not None and cache is None:  # which shows the frames
            cache = Path(stack.enter_context(TemporaryDirectory(prefix="whiten-")))
        result = evaluate_videos(
            model,
            data,
            protocol=protocol,
            similarity=similarity,
            omit_normalisation=omit_normalisation,
            examples=report is not None,
            cache=cache,
            show_progress=True,
        )
        if report is not None:
            say(f"report   {write_video_report(result, report)}")
    return result
