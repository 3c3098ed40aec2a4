"""The numbers of a diagnosis."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from whiten.errors import counted
from whiten.media.reading import Skipped
from whiten.whitening.weighting import FEWEST


@dataclass(frozen=True)
class Difference:
    """A difference of two scores on the same images.

    Attributes:
        value: the difference; both scores are from 0 to 1.
        error: its standard error, over images.
    """

    value: float
    error: float

    @property
    def is_up(self) -> bool:
        """Whether it is above 0 by more than two standard errors."""
        return self.value > 2 * self.error

    @property
    def is_down(self) -> bool:
        """Whether it is below 0 by more than two standard errors."""
        return self.value < -2 * self.error

    def __str__(self) -> str:
        return f"{100 * self.value:+.1f} ± {100 * self.error:.1f}"


@dataclass(frozen=True)
class TeacherFacts:
    """Measurements of a teacher on these images.

    Attributes:
        name, uri: of the teacher.
        dim: embedding dimension.
        spectrum: eigenvalues of the embeddings' covariance, descending.
        effective_rank: exponential of the entropy of the normalised eigenvalues.
        samples_per_dim: images of the collection per dimension.
        agreement: by name of each other teacher, the mean share of common nearest neighbours;
            empty with too few images to tell.
        whitening: the whitening that was chosen, in words.
        score: score of the whitened teacher alone; None if not measured.
        adds: score of the fusion of all teachers less that of all but this one; None if not
            measured, or if it is the only one.
        params, macs, ms_per_image: cost; None if unknown.
    """

    name: str
    uri: str
    dim: int
    spectrum: list[float]
    effective_rank: float
    samples_per_dim: float
    agreement: dict[str, float]
    whitening: str
    score: float | None
    adds: Difference | None
    params: int | None
    macs: int | None
    ms_per_image: float | None


@dataclass(frozen=True)
class StudentFacts:
    """Predicted gain of a student's start in closed form, without training.

    Attributes:
        uri: of the student's backbone.
        criterion: definition of the scores, in words.
        start: score of the backbone's features as they come.
        whitened: score of the best whitening of them.
        closed: score of the start in closed form.
        mix: this start, in words.
    """

    uri: str
    criterion: str
    start: float
    whitened: float
    closed: float
    mix: str


@dataclass(frozen=True)
class Diagnosis:
    """Measurements of teachers on a collection of images.

    Attributes:
        images: number of images of the collection.
        sampled: number of images that were embedded.
        exact_copies: number of images of the collection whose file has the content of another.
        near_copies: number of sampled images that nearly equal another, by teachers and pixels.
        criterion: definition of the scores; None if there was no evidence to measure on.
        teachers: in the order of the call.
        raw, whitened: score of the fusion of all teachers, as they come and whitened.
        whitening_adds: the difference.
        student: None without a student, or with too few images.
        verdict: what to do, in sentences.
        skipped: images that could not be used, with the reason.
    """

    images: int
    sampled: int
    exact_copies: int
    near_copies: int
    criterion: str | None
    teachers: list[TeacherFacts]
    raw: float | None
    whitened: float | None
    whitening_adds: Difference | None
    student: StudentFacts | None
    verdict: list[str]
    skipped: list[Skipped]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    @property
    def scores(self) -> str:
        """What the scores are, or why there are none."""
        if self.criterion is not None:
            return f"mAP in %, {self.criterion}"
        if self.sampled < FEWEST:
            return f"none, they take {FEWEST} images or more"
        return (
            "none, stored embeddings hold no second views of the images: name images with groups, "
            "16 of them with two images or more"
        )

    def lines(self) -> list[str]:
        """Return lines for display."""
        lines = [
            f"{counted(self.images, 'image')}, {self.sampled:,} of them looked at: "
            f"{counted(self.exact_copies, 'exact copy')}, "
            f"{counted(self.near_copies, 'near-duplicate')}"
        ]
        lines.append(f"scores: {self.scores}")
        names = [teacher.name for teacher in self.teachers]
        width = max(len("teacher"), *map(len, names))
        lines.append(
            f"{'teacher':{width}}   dim  eff. rank  images/dim  agreement  alone          adds  "
            "ms/image"
        )
        lines += [f"{teacher.name:{width}} {_columns(teacher)}" for teacher in self.teachers]
        if self.raw is not None and self.whitened is not None:
            lines.append(
                f"fused    {100 * self.raw:.1f} as they come, {100 * self.whitened:.1f} whitened "
                f"({self.whitening_adds})"
            )
        if self.student is not None:
            s = self.student
            lines.append(
                f"student  {100 * s.start:.1f} as it comes, {100 * s.whitened:.1f} whitened, "
                f"{100 * s.closed:.1f} in closed form, without training ({s.criterion})"
            )
        return [*lines, *(f"- {sentence}" for sentence in self.verdict)]


def per_dim(teacher: TeacherFacts) -> str:
    """Return the images per dimension: `12.5`, and `0.021` of a few images."""
    value = teacher.samples_per_dim
    return f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def _columns(teacher: TeacherFacts) -> str:
    others = teacher.agreement.values()
    agreement = f"{100 * sum(others) / len(others):.0f} %" if others else "–"
    alone = "–" if teacher.score is None else f"{100 * teacher.score:.1f}"
    adds = "–" if teacher.adds is None else str(teacher.adds)
    time = "–" if teacher.ms_per_image is None else f"{teacher.ms_per_image:#.3g}"
    return (
        f"{teacher.dim:5} {teacher.effective_rank:10.0f} {per_dim(teacher):>11} "
        f"{agreement:>10} {alone:>6} {adds:>13} {time:>9}"
    )
