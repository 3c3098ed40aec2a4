"""Write the report page of a video evaluation: metrics, hits, and alignment of frames."""

from __future__ import annotations

from html import escape
from pathlib import Path

from whiten.evaluation.videos import VideoEvaluation
from whiten.report.page import embedded, facts_list, page, section, write_page
from whiten.retrieval.sets import SET_SIMILARITIES

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
    parts = [facts_list(facts)]
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
    return write_page(path, page(f"{evaluation.name}: finding videos", parts))
