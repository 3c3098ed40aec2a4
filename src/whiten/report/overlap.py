"""Test images that a student knows from training."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Overlap:
    """Counts of test images that are known from training.

    Attributes:
        images: number of test images.
        equal: those whose file equals that of a training image.
        near: others that show the same picture as a training image, or a part of it; None if that
            was not looked for among so many training images.
    """

    images: int
    equal: int
    near: int | None

    def line(self) -> str:
        """Return a sentence for the report."""
        text = f"Of {self.images:,} test images {self.equal:,} equal a training image, "
        if self.near is None:
            text += "and near-duplicates were not looked for among so many training images"
        else:
            text += f"and {self.near:,} more are near-duplicates of one"
        return f"{text}: metrics on them are too good." if self else f"{text}."

    def __bool__(self) -> bool:
        return bool(self.equal or self.near)
