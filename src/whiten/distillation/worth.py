"""Whether a start in closed form is worth training further, where nobody says how long."""

from __future__ import annotations

from whiten.distillation.missing import FEW_TO_TRAIN
from whiten.runs.spec import DistillSpec

_REMEDY = "the student stays its start (--epochs N trains it further)"


def why_untrained(spec: DistillSpec, source: str, images: int, held: int) -> str:
    """Return why training is likely to make the start worse; "" if it is not.

    On 100 drawings and photographs the trained projection lost 3 to 5 points of mAP, which nothing
    held out could tell. On 600 without groups it lost 0.3 to 2.7, though it agreed better with the
    teachers on held-out images; on 4,712 it gained 1.6. A transfer set changes that little: with
    582 images and 1,850 of other kinds it lost 2.6.

    Args:
        spec: options, complete.
        source: source of the pairs: groups, mixed, views or frames.
        images: number of the user's own images to train on.
        held: number of images that are held out.
    """
    if spec.start != "ridge" or not spec.held_out:
        return ""
    if not held:
        return f"too few images to hold some out: {_REMEDY}"
    if source == "views" and images < FEW_TO_TRAIN:
        return f"{images:,} images of your own without groups are too few to train on: {_REMEDY}"
    return ""
