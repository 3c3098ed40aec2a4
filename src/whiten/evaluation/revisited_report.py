"""The report of an evaluation on revisited Oxford or Paris, as text and as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from whiten.datasets.revisited import LANDMARKS, OVERLAP
from whiten.errors import counted
from whiten.media.reading import Skipped
from whiten.metrics import Figure
from whiten.views.own_size import LONGEST

TIES = "equal similarities rank by gallery index, the database before the distractors"


@dataclass(frozen=True)
class Setting:
    """Metrics of one kind of queries in one gallery.

    Attributes:
        queries: cropped or uncropped.
        distractors: number of distractors added to the database.
        figures: `map` with its interval for easy, medium and hard; None if there are no positives.
        precisions: mean precision at 1, 5 and 10 for each.
        counted: number of queries with positives for each.
    """

    queries: str
    distractors: int
    figures: dict[str, Figure | None]
    precisions: dict[str, dict[int, float]]
    counted: dict[str, int]


@dataclass(frozen=True)
class RevisitedReport:
    """Landmark retrieval metrics of an encoder.

    Attributes:
        protocol: roxford5k or rparis6k.
        name, dim: name of the encoder, and dimension of its embedding.
        scales: scales that were averaged.
        whitened: whether embeddings were whitened at each scale.
        queries, database: number of images.
        settings: the metrics, per kind of queries and gallery.
        skipped: distractors that could not be read, with the reason.
    """

    protocol: str
    name: str
    dim: int
    scales: tuple[float, ...]
    whitened: bool
    queries: int
    database: int
    settings: list[Setting]
    skipped: list[Skipped]

    @property
    def remarks(self) -> list[str]:
        return []

    @property
    def overlap(self) -> str:
        return (
            f"of the {LANDMARKS} test landmarks of {self.protocol} {OVERLAP[self.protocol]} also "
            "occur in GLDv2-clean: what was trained on it has seen them (Song et al., CVPR 2024)"
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "protocol": self.protocol,
            "name": self.name,
            "dim": self.dim,
            "longest_side": LONGEST,
            "scales": list(self.scales),
            "whitened": self.whitened,
            "queries": self.queries,
            "database": self.database,
            "settings": [_setting_json(setting) for setting in self.settings],
            "overlap": self.overlap,
            "ties": TIES,
            "skipped": [dataclasses.asdict(skip) for skip in self.skipped],
        }

    def lines(self) -> Iterator[str]:
        """Yield lines for display."""
        scales = "1 scale" if len(self.scales) == 1 else f"{len(self.scales)} scales"
        yield f"{self.protocol}: {self.name}, {self.dim} dimensions"
        yield (
            f"{counted(self.queries, 'query')}, {counted(self.database, 'image')}, "
            f"longest side {LONGEST}, {scales}"
        )
        for setting in self.settings:
            more = f" + {setting.distractors:,} distractors" if setting.distractors else ""
            yield f"queries {setting.queries}{more}"
            for name, figure in setting.figures.items():
                if figure is None:
                    yield f"  {name:7} no query has anything to find"
                    continue
                at = "  ".join(f"mP@{k} {p:.4f}" for k, p in setting.precisions[name].items())
                interval = f"[{figure.low:.4f}, {figure.high:.4f}]"
                count = setting.counted[name]
                some = f"  ({count} queries)" if count < self.queries else ""
                yield f"  {name:7} mAP {figure.value:.4f}  {interval}  {at}{some}"
        yield f"overlap  {self.overlap}"
        yield f"ties     {TIES}"


def _setting_json(setting: Setting) -> dict[str, Any]:
    facts: dict[str, Any] = {"queries": setting.queries, "distractors": setting.distractors}
    for name, figure in setting.figures.items():
        facts[name] = {
            "map": None if figure is None else dataclasses.asdict(figure),
            **{f"mp@{k}": value for k, value in setting.precisions[name].items()},
            "queries": setting.counted[name],
        }
    return facts
