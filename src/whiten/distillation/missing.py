"""Say what a run lacks: images, resolution, a better start, or stronger teachers."""

from __future__ import annotations

from dataclasses import dataclass

FEW_IMAGES = 200  # below which even a projection learns little
FEW_TO_TRAIN = 2_000  # below which a whole network forgets more than it learns
FEW_FROM_SCRATCH = 20_000
BLURRED = 2.0  # own size of the images, relative to the student's, that costs much
HARDLY = 0.01  # gain in score that is within the error
SAME = 0.95  # agreement with the teachers above which they have little to teach
KNOWS_LITTLE = 0.5  # score of a start, relative to that of its teachers


@dataclass(frozen=True)
class Evidence:
    """Numbers that a run has before it trains.

    Attributes:
        images: images to train on.
        is_whole: whether the whole network is to be trained.
        is_untrained: whether the network starts from random weights.
        size: input side of the student in pixels.
        native: side that its backbone was made for.
        own_side: shorter side of the images.
        start: best score of the start, as it is or whitened; None if nothing was held out.
        closed: score of the start that was taken.
        fusion: score of the whitened fusion of the teachers by the same criterion; None if the
            criterion is the agreement with it.
    """

    images: int
    is_whole: bool
    is_untrained: bool
    size: int
    native: int
    own_side: int
    start: float | None = None
    closed: float | None = None
    fusion: float | None = None


def causes(evidence: Evidence, *, gained_nothing: bool = False) -> list[str]:
    """Return what is missing, each with the remedy.

    Args:
        gained_nothing: whether training has gained nothing: less evidence is then enough.
    """
    found = [_images(evidence, gained_nothing), _size(evidence, gained_nothing)]
    found += [_start(evidence, gained_nothing), _teachers(evidence)]
    return [cause for cause in found if cause]


def _images(evidence: Evidence, gained_nothing: bool) -> str:
    few = FEW_TO_TRAIN if gained_nothing and evidence.is_whole else FEW_IMAGES
    if evidence.images >= (5 * FEW_IMAGES if gained_nothing and not evidence.is_whole else few):
        return ""
    what = "to train a whole network on" if evidence.is_whole else "to learn from"
    way = "give more of their kind; --unlabelled FOLDER takes them without groups"
    return f"{evidence.images:,} images are few {what}: {way}"


def _size(evidence: Evidence, gained_nothing: bool) -> str:
    most = min(evidence.native, evidence.own_side)
    if most < (BLURRED if not gained_nothing else 1.25) * evidence.size:
        return ""
    return (
        f"the student sees {evidence.size} px of images of {evidence.own_side} px: "
        f"use a larger --size, up to {most}"
    )


def _start(evidence: Evidence, gained_nothing: bool) -> str:
    if evidence.is_untrained and (gained_nothing or evidence.images < FEW_FROM_SCRATCH):
        return "the student starts from random weights: take a pretrained --student"
    if evidence.closed is None or evidence.fusion is None or evidence.is_untrained:
        return ""
    if evidence.closed < KNOWS_LITTLE * evidence.fusion:
        return (
            f"the start scores {evidence.closed:.3f}, the fused teachers {evidence.fusion:.3f}: "
            "take a --student that knows more of such images"
        )
    return ""


def _teachers(evidence: Evidence) -> str:
    if evidence.start is None or evidence.is_untrained:
        return ""
    if evidence.fusion is None:  # the score is the agreement with the teachers
        if evidence.start < SAME:
            return ""
        return "the teachers find what the student's start finds: take other or stronger --teachers"
    if evidence.fusion > evidence.start + HARDLY:
        return ""
    return (
        f"the fused teachers score {evidence.fusion:.3f}, the student's start "
        f"{evidence.start:.3f}: take stronger --teachers"
    )
