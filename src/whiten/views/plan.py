"""Plans for drawing views: the default plan, and the two of the paper.

Without imaging libraries: `views.rendering` draws and renders by these plans.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from whiten.utils.hashing import fingerprint

# Prefix of the fingerprint of plans whose view 0 is not the whole image.
DRAWN = "drawn-"


@dataclass(frozen=True)
class Colours:
    """Changes of colour and sharpness; pairs of numbers are for even and for odd view numbers.

    Attributes:
        probability: probability of changing brightness, contrast, saturation and hue, in random
            order.
        brightness, contrast, saturation: largest relative change.
        hue: largest turn, as a fraction of the circle.
        grayscale: probability of dropping colour.
        blur: probabilities of a Gaussian blur.
        sigma: minimum and maximum, in pixels of a 224 × 224 input; other input sizes are blurred in
            proportion, so that all models see the same view.
        solarize: probabilities of inverting the bright half of the values.
    """

    probability: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    grayscale: float = 0.2
    blur: tuple[float, float] = (1.0, 0.1)
    sigma: tuple[float, float] = (0.1, 2.0)
    solarize: tuple[float, float] = (0.0, 0.2)


@dataclass(frozen=True)
class ViewPlan:
    """Plan for drawing views; equal plans give equal views on every machine.

    View 0 is the whole image, unless `whole` is False. Views 1, 2, … are random: a crop of
    `scale` of the area and an aspect `ratio`, a mirror image with probability `flip`, and colour
    changes.

    Attributes:
        seed: any integer; part of every view's randomness.
        scale: smallest and largest fraction of the area that a crop keeps.
        ratio: largest change of the aspect ratio, at least 1.
        flip: probability of a horizontal flip.
        jitter: largest relative change of brightness, contrast and saturation.
        grayscale: probability of dropping colour.
        whole: view 0 is the whole image. If False, it is drawn like the others, since the paper
            never trains on whole images, and a crop that does not fit into the image is drawn
            again, as in torchvision's RandomResizedCrop; by default such a crop is cut.
        colours: replaces `jitter` and `grayscale`.
        turns: nothing is random: views 1 to 3 are the whole image turned by quarters to the left,
            views 4 to 7 its mirror image, turned likewise.
    """

    seed: int = 0
    scale: tuple[float, float] = (0.35, 1.0)
    ratio: float = 4 / 3
    flip: float = 0.5
    jitter: float = 0.3
    grayscale: float = 0.1
    whole: bool = True
    colours: Colours | None = None
    turns: bool = False

    @classmethod
    def named(cls, name: str, seed: int = 0) -> ViewPlan:
        """Return one of `PLANS` with the given seed."""
        return dataclasses.replace(PLANS[name], seed=seed)

    @property
    def is_asymmetric(self) -> bool:
        """True if even and odd views are drawn differently, so that a pair has one of each."""
        colours = self.colours
        return colours is not None and (len({*colours.blur}) > 1 or len({*colours.solarize}) > 1)

    def is_random(self, number: int) -> bool:
        """Return whether this view of an image depends on the plan."""
        return number > 0 or not self.whole

    def fingerprint(self) -> str:
        facts = dataclasses.asdict(self)
        if self.whole:  # omit the default so that existing fingerprints stay valid
            del facts["whole"]
        if self.colours is None:
            del facts["colours"]
        if not self.turns:
            del facts["turns"]
        return ("" if self.whole else DRAWN) + fingerprint(facts)


# By the names for `--augment`. The paper's plans are the transforms of its published code: crops
# and flips for landmarks; colours, too, for video frames, different for the two views.
_PUBLISHED = ViewPlan(scale=(0.4, 1.0), jitter=0.0, grayscale=0.0, whole=False)
PLANS: dict[str, ViewPlan] = {
    "light": ViewPlan(),
    "paper-images": _PUBLISHED,
    "paper-frames": dataclasses.replace(_PUBLISHED, colours=Colours()),
}


# For copies that are mirrored or rotated.
TURNS = ViewPlan(turns=True)


def agree(one: str, other: str) -> bool:
    """Return whether views of two plans, by fingerprint, may be in one store.

    Stores of whole images have no plan, "": these are view 0 of every plan that keeps it whole.
    """
    if "" in (one, other):
        return not (one + other).startswith(DRAWN)
    return one == other
