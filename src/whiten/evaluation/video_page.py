"""Write the report page of a video evaluation: metrics, hits, and alignment of frames."""

from __future__ import annotations

from html import escape
from pathlib import Path

from whiten.evaluation.videos import VideoEvaluation
from whiten.report.page import PAGE, STYLE, embedded, section
from whiten.retrieval.sets import SET_SIMILARITIES
from whiten.utils.files import write_atomically

FOUND_HELP = (
    "Queries with the best, the median and the worst average precision. Of each video that was "
    "found, the frame is shown that is most like one of the query's: green with ✓ is right, orange "
    "with ✗ is wrong, and the number is the similarity of the videos."
)
ALIGNMENT_HELP = (
    "Each query against its best match, frame by frame. A copy makes a bright line, which is "
    "steeper or flatter where the copy runs at another speed; a scene that only looks alike makes "
    "a spot. Rings mark the best match of each of the query's frames."
)


def write_video_report(evaluation: VideoEvaluation, path: Path) -> Path:
    """Write a self-contained page, atomically.

    Args:
        evaluation: an evaluation made with `examples`.
    """
    from whiten.report import alignment as video_plots
    from whiten.report import grids  # matplotlib is slow to import

    title = escape(f"{evaluation.name}: finding videos")
    facts = [
        ("queries", f"{len(evaluation.query_ids):,}"),
        ("videos searched", f"{evaluation.gallery_size:,}"),
        ("frames", f"{evaluation.frames:,}"),
        ("similarity", f"{evaluation.similarity}, {SET_SIMILARITIES[evaluation.similarity]}"),
        *(
            (name, f"{figure.value:.4f} [{figure.low:.4f}, {figure.high:.4f}]")
            for name, figure in evaluation.figures.items()
        ),
    ]
    listed = "</div><div>".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts)
    parts = [f"<h1>{title}</h1>", f"<dl><div>{listed}</div></dl>"]
    rows = [(e.label, e.query_paths[0], e.ap, e.hits) for e in evaluation.examples]
    if (png := grids.retrievals(rows)) is not None:
        parts.append(section("What is found", FOUND_HELP, embedded("Videos that were found", png)))
    aligned = ""
    for example in evaluation.examples:
        png = video_plots.alignment(
            example.alignment,
            (example.query, example.match),
            (example.query_paths, example.match_paths),
            (example.query_ms, example.match_ms),
        )
        if png is not None:
            heading = f"{example.label}: {example.query} and {example.match}"
            aligned += f"<h3>{escape(heading)}</h3>{embedded(heading, png)}"
    if aligned:
        parts.append(section("How the frames align", ALIGNMENT_HELP, aligned))
    page = PAGE.format(title=title, style=STYLE, body="\n".join(parts))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, page.encode("utf-8", "backslashreplace"))
    return path
