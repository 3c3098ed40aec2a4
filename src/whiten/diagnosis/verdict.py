"""Say in words what to do, only where the numbers say so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

from whiten.diagnosis.result import Difference, StudentFacts, TeacherFacts, per_dim
from whiten.whitening.whitener import SAMPLES_PER_DIM

ALIKE = 0.9  # agreement above which two teachers tell the same
COPIED = 0.02  # share of copies that is worth a deduplication
COSTLY = 1.25  # times an even share of the teachers' time, from which it is worth a word
SLOW = 0.1  # ms per image; below, reading the image takes longer, and the measurement is noise
GAINED = 0.01  # gain in score of a student in closed form that is worth a word


def verdict(
    *,
    copied: float,
    teachers: Sequence[TeacherFacts],
    whitening_adds: Difference | None,
    student: StudentFacts | None,
) -> list[str]:
    """Return the sentences.

    Args:
        copied: share of the images that are copies of others.
    """
    return [
        *_of_teachers(teachers),
        *_of_whitening(whitening_adds),
        *_of_images(copied, teachers),
        *_of_student(student),
    ]


def _of_teachers(teachers: Sequence[TeacherFacts]) -> Iterator[str]:
    for teacher in teachers:
        if teacher.adds is not None and teacher.adds.is_down:
            yield (
                f"Leave out {teacher.name}: without it the fusion scores "
                f"{-100 * teacher.adds.value:.1f} points more."
            )
    whole = sum(teacher.ms_per_image or 0.0 for teacher in teachers)
    for teacher in teachers:
        adds, time = teacher.adds, teacher.ms_per_image or 0.0
        is_idle = adds is not None and not adds.is_up and not adds.is_down
        if is_idle and time > max(SLOW, COSTLY * whole / len(teachers)):
            yield (
                f"{teacher.name} adds nothing that can be measured here ({adds}), and takes "
                f"{100 * time / whole:.0f} % of the teachers' time: try without it."
            )
    for one, other in combinations(teachers, 2):
        if one.agreement.get(other.name, 0.0) >= ALIKE:
            yield (
                f"{one.name} and {other.name} find the same neighbours "
                f"({100 * one.agreement[other.name]:.0f} %): one of them is enough."
            )


def _of_whitening(adds: Difference | None) -> Iterator[str]:
    if adds is None:
        return
    if adds.is_up:
        yield f"Whiten, as distill does by default: it adds {100 * adds.value:.1f} points."
    elif adds.is_down:
        yield f"Do not whiten (--no-whiten): it costs {-100 * adds.value:.1f} points."


def _of_images(copied: float, teachers: Sequence[TeacherFacts]) -> Iterator[str]:
    few = [teacher for teacher in teachers if teacher.samples_per_dim < SAMPLES_PER_DIM]
    if few:
        widest = max(few, key=lambda teacher: teacher.dim)
        yield (
            f"More images would help: {widest.name} has {widest.dim:,} dimensions and "
            f"{per_dim(widest)} images per dimension; {SAMPLES_PER_DIM} "
            f"({SAMPLES_PER_DIM * widest.dim:,} images) fix every axis. Images without groups "
            "count, too: distill --unlabelled."
        )
    if copied >= COPIED:
        yield (
            f"{100 * copied:.0f} % of the images are copies of others: look at them with "
            "whiten dedup, or they weigh double."
        )


def _of_student(student: StudentFacts | None) -> Iterator[str]:
    if student is None:
        return
    best = max(student.start, student.whitened)
    gain = student.closed - best
    if gain >= GAINED:
        yield (
            f"The student gains {100 * gain:.1f} points without training: "
            "whiten distill --epochs 0."
        )
    else:
        yield (
            "In closed form the student gains nothing over its own features: a larger --size, "
            "another --student or more images may change that."
        )
