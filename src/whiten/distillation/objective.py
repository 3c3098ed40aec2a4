"""The objective of a training step: the weighted terms of a recipe on one batch.

Besides the paper's loss (`losses`): a contrastive loss on labels, the teachers' relations between
different classes, and relations to a queue of cached teacher embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from whiten.distillation import losses
from whiten.distillation.fusion import fuse_streaming, positive_wins
from whiten.runs.spec import DistillSpec


@dataclass(frozen=True)
class Batch:
    """One process's part of a batch of b pairs.

    Attributes:
        student_x, student_y: (b, dim) embeddings of the two sides, not normalised.
        teachers_x, teachers_y: per teacher (b, d_k).
        labels: (B,) class of each pair of the joined batch.
        fused_x, fused_y: (b, dim) in the fused teacher space, for `align` and `queue`.
        queue: (q, dim) cached embeddings of other images in that space, for `queue`.
        weights: weight of each teacher in means, with a mean of 1; None if they are equal.
    """

    student_x: Tensor
    student_y: Tensor
    teachers_x: Sequence[Tensor]
    teachers_y: Sequence[Tensor]
    labels: Tensor
    fused_x: Tensor | None = None
    fused_y: Tensor | None = None
    queue: Tensor | None = None
    weights: Sequence[float] | None = None


def objective(
    batch: Batch, spec: DistillSpec, generator: torch.Generator
) -> tuple[Tensor, list[float]]:
    """Return the weighted sum of terms on the joined batch, and the positives per teacher.

    Inside a process group each process receives the gradient of its own rows, as in
    `losses.distillation_loss`.

    Args:
        spec: the options, with weights, fusion and temperatures filled in.
        generator: random generator for the `rand` fusions, equal in all processes.
    """
    x, y = (losses.gather(side.float()) for side in (batch.student_x, batch.student_y))
    x, y = F.normalize(x, dim=1), F.normalize(y, dim=1)
    teachers_x, teachers_y = (
        [F.normalize(losses.gather(side).float(), dim=1) for side in sides]
        for sides in (batch.teachers_x, batch.teachers_y)
    )
    equal = [1.0] * len(teachers_x)
    weights = batch.weights or equal
    total = x.new_zeros(())
    positives = torch.stack([(a * b).sum(1) for a, b in zip(teachers_x, teachers_y, strict=True)])
    if spec.kl:
        assert spec.fusion is not None
        # A maximum or minimum takes no weights.
        shares = weights if spec.fusion == "mean" else equal
        across = (w * (a @ b.T) for w, a, b in zip(shares, teachers_x, teachers_y, strict=True))
        target, _ = fuse_streaming(across, len(teachers_x), spec.fusion, generator=generator)
        if spec.fusion.startswith("max"):
            target = with_all_positives(target, teachers_x, teachers_y, batch.labels)
        total = total + spec.kl * losses.similarity_kl(x @ y.T, target, _tau(spec))
    both, labels = torch.cat([x, y]), batch.labels.repeat(2)
    if spec.labels:
        assert spec.label_temperature is not None
        total = total + spec.labels * supervised_contrastive(both, labels, spec.label_temperature)
    if spec.relational:
        with torch.no_grad():
            sides = [torch.cat(pair) for pair in zip(teachers_x, teachers_y, strict=True)]
            within = (w * (side @ side.T) for w, side in zip(weights, sides, strict=True))
            target, _ = fuse_streaming(within, len(sides), "mean")
        total = total + spec.relational * relational_kl(both @ both.T, target, labels, _tau(spec))
    if batch.fused_x is not None and batch.fused_y is not None:
        fused = torch.cat([losses.gather(batch.fused_x), losses.gather(batch.fused_y)])
        if spec.align:
            total = total + spec.align * losses.alignment_loss(both, fused)
        if spec.queue and batch.queue is not None:
            total = total + spec.queue * queue_kl(both, fused, batch.queue, _tau(spec))
    return total, positive_wins(positives).tolist()


@torch.no_grad()
def with_all_positives(
    fused: Tensor, teachers_x: Sequence[Tensor], teachers_y: Sequence[Tensor], labels: Tensor
) -> Tensor:
    """Raise each pair with equal labels to the teachers' maximum, as `max…` does the diagonal.

    If a class gives a batch several pairs, there are positives off the diagonal, too.

    Args:
        fused: (B, B) similarities, fused with positives only on the diagonal.
        teachers_x, teachers_y: per teacher (B, d_k), L2-normalised.
        labels: (B,).
    """
    row, column = (labels[:, None] == labels[None]).nonzero(as_tuple=True)
    if len(row) == len(labels):
        return fused
    both = [(a[row] * b[column]).sum(1) for a, b in zip(teachers_x, teachers_y, strict=True)]
    best = torch.stack(both).amax(dim=0).to(fused.dtype)
    return fused.index_put((row, column), best)


def supervised_contrastive(embeddings: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Compute the mean over images of -log softmax at the positives (Khosla et al. 2020, eq. 2).

    Args:
        embeddings: (n, d), rows L2-normalised.
        labels: (n,); equal ones are positives; each occurs at least twice.
    """
    same = labels[:, None] == labels[None]
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    logits = (embeddings @ embeddings.T / temperature).masked_fill(itself, -torch.inf)
    same &= ~itself
    scores = logits.log_softmax(dim=1).masked_fill(~same, 0.0)
    return -(scores.sum(dim=1) / same.sum(dim=1)).mean()


def relational_kl(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Compute the KL of softmax similarities between *different* classes, mean over rows.

    At τ = 0.05 the target of the paper's loss is almost one-hot at the positive, and says little
    about the rest. Leaving out pairs with equal labels, the teachers' knowledge of all other images
    remains (relational distillation, Park et al. 2019, applied to similarities).

    Args:
        student, teacher: (n, n) similarities of the same images.
        labels: (n,).
    """
    same = labels[:, None] == labels[None]
    hidden = torch.finfo(student.dtype).min
    logits = (student / temperature).masked_fill(same, hidden)
    target = (teacher.to(student.dtype) / temperature).masked_fill(same, hidden)
    return F.kl_div(
        logits.log_softmax(dim=1),
        target.log_softmax(dim=1),
        reduction="batchmean",
        log_target=True,
    )


def queue_kl(student: Tensor, teacher: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Compute the KL of similarities to cached embeddings (SEED, Fang et al. 2021, eq. 4).

    The queue's items are the columns for student and teacher alike, so the student must embed in
    the teachers' space.

    Args:
        student, teacher: (n, d) embeddings of the same images, L2-normalised.
        queue: (q, d) teacher embeddings, L2-normalised.
    """
    logits, target = (side @ queue.T / temperature for side in (student, teacher.to(student.dtype)))
    return F.kl_div(
        logits.log_softmax(dim=1), target.log_softmax(dim=1), reduction="batchmean", log_target=True
    )


def _tau(spec: DistillSpec) -> float:
    assert spec.temperature is not None
    return spec.temperature
