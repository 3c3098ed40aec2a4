"""Distillation losses as pure functions of tensors (Whiten-MTD, section "Distillation")."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from whiten.distillation.fusion import Fusion, fuse_streaming
from whiten.errors import ConfigError

# One exponential serves rows and columns while exp(±x) of these x, and sums of it, are normal.
_WIDEST = {torch.float32: 75.0, torch.float64: 600.0}

_PART = 1 << 18  # similarities processed at once


def distillation_loss(
    student_x: Tensor,
    student_y: Tensor,
    teachers_x: Sequence[Tensor],
    teachers_y: Sequence[Tensor],
    *,
    strategy: str | Fusion = "maxmin",
    temperature: float = 0.05,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Compute the KL between softmax similarities of fused teachers and student, rows plus columns.

    `L = KL(softmax(T/τ) ‖ softmax(S/τ)) + KL(softmax(Tᵀ/τ) ‖ softmax(Sᵀ/τ))`, each averaged
    over the batch, where `S = X_s Y_sᵀ` and T is `fuse` of the teachers' `X_k Y_kᵀ`
    (Whiten-MTD, eq. of the similarity distillation; τ = 0.05).

    Inside a process group the embeddings of all processes are gathered first, so the value is that
    of the joined batch; each process receives the gradient of its own rows. Sum the gradients of
    the processes (DistributedDataParallel averages them: scale the loss by the number of
    processes).

    Args:
        student_x, student_y: (B, d) embeddings of the pairs' two sides; L2-normalised here.
        teachers_x, teachers_y: per teacher (B, D_k); L2-normalised here. They receive no gradient.
        strategy: see `fuse`.
        temperature: τ > 0.
        generator: random generator for the `rand` strategies, equal in all processes.

    Returns:
        Scalar tensor, at least float32.

    Raises:
        ConfigError: the strategy is unknown, the temperature is not above 0, the two sides have
            other teachers, or not all embeddings have B rows.
    """
    target, _ = fused_teacher_similarity(teachers_x, teachers_y, strategy, generator=generator)
    return similarity_kl(student_similarity(student_x, student_y), target, temperature)


def similarity_kl(student: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Compute the softmax KL between two (B, B) similarity matrices, rows plus columns.

    The gradient is analytic, `(softmax(S/τ) - softmax(T/τ)) / (Bτ)` for rows plus columns, and can
    be computed once. A target that requires gradient gets its own by autograd.

    Raises:
        ConfigError: the temperature is not above 0, or the shapes differ or are not square.
    """
    if not temperature > 0:
        raise ConfigError(f"temperature must be above 0, not {temperature}")
    if student.shape != target.shape or student.ndim != 2 or len(student) != student.shape[1]:
        raise ConfigError(
            f"similarities {tuple(student.shape)} of the student and {tuple(target.shape)} of the "
            "teachers do not fit: embed the same B pairs with both"
        )
    target = target.to(student.dtype)
    if target.requires_grad or student.dtype not in _WIDEST:
        return sum_of_directions(student / temperature, target / temperature)
    loss: Tensor = _SimilarityKL.apply(student, target, temperature)
    return loss


def sum_of_directions(student: Tensor, target: Tensor) -> Tensor:
    """Compute KL(softmax(target) ‖ softmax(student)) along rows plus columns, batch means."""
    rows = F.kl_div(
        student.log_softmax(1), target.log_softmax(1), reduction="batchmean", log_target=True
    )
    columns = F.kl_div(
        student.log_softmax(0), target.log_softmax(0), reduction="batchmean", log_target=True
    )
    return rows + columns


def alignment_loss(student: Tensor, target: Tensor) -> Tensor:
    """Compute the mean cosine distance `1 - cos(student_i, target_i)` of two (B, d) tensors."""
    return (1.0 - F.cosine_similarity(student.float(), target.float(), dim=1)).mean()


def student_similarity(student_x: Tensor, student_y: Tensor) -> Tensor:
    """Return (B, B) cosine similarities of the joined batch; gradients reach own rows only."""
    return _unit(gather(student_x)) @ _unit(gather(student_y)).T


@torch.no_grad()
def teacher_similarities(teachers_x: Sequence[Tensor], teachers_y: Sequence[Tensor]) -> Tensor:
    """Return each teacher's (K, B, B) cosine similarities on the joined batch."""
    return torch.stack(list(_each_similarity(teachers_x, teachers_y)))


@torch.no_grad()
def fused_teacher_similarity(
    teachers_x: Sequence[Tensor],
    teachers_y: Sequence[Tensor],
    strategy: str | Fusion = "maxmin",
    *,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the fused (B, B) target of the joined batch and the teachers' positives (K, B).

    Equals `fuse(teacher_similarities(...))`, without holding all teachers' matrices at once.
    """
    each = _each_similarity(teachers_x, teachers_y)
    return fuse_streaming(each, len(teachers_x), strategy, generator=generator)


def _each_similarity(
    teachers_x: Sequence[Tensor], teachers_y: Sequence[Tensor]
) -> Iterator[Tensor]:
    if len(teachers_x) != len(teachers_y) or not teachers_x:
        raise ConfigError(
            f"got {len(teachers_x)} teachers for x and {len(teachers_y)} for y: "
            "pass the same teachers, at least one, for both sides"
        )
    for x, y in zip(teachers_x, teachers_y, strict=True):
        yield _unit(gather(x)) @ _unit(gather(y)).T


def gather(local: Tensor) -> Tensor:
    """Gather the rows of all processes in rank order; the own part keeps its gradient."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return local
    parts = [torch.empty_like(local) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, local.detach().contiguous())
    parts[dist.get_rank()] = local
    return torch.cat(parts)


def _unit(embeddings: Tensor) -> Tensor:
    # Similarities divided by τ = 0.05 need more precision than bfloat16 has.
    wide = embeddings if embeddings.dtype == torch.float64 else embeddings.float()
    return F.normalize(wide, dim=1)


# --- the gradient by hand ------------------------------------------------------------------


class _SimilarityKL(torch.autograd.Function):
    """Computes `sum_of_directions(S/τ, T/τ)` as `Σ W_T·(T-S)/τ + Σ lse(S/τ) - Σ lse(T/τ)`.

    W is the softmax along rows plus that along columns, and the gradient is `(W_S - W_T) / (Bτ)`.
    Besides S and T, two matrices are held: their exponentials, one of which becomes the gradient.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, target: Tensor, temperature: float) -> Tensor:
        had, wanted = _Softmaxes(student, temperature), _Softmaxes(target, temperature)
        linear = student.new_zeros(())
        scale = 1 / (len(student) * temperature)
        for rows in _parts(student):
            weights = wanted.of(rows)
            linear += torch.sub(target[rows], student[rows]).mul_(weights).sum()
            had.of(rows).sub_(weights).mul_(scale)
        ctx.save_for_backward(had.kept)
        return (linear / temperature + (had.logs - wanted.logs).sum()) / len(student)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        _refuse_second_derivatives()
        (gradient,) = ctx.saved_tensors
        return gradient * grad, None, None


class _Softmaxes:
    """Computes softmax(matrix/τ) along rows plus along columns, in blocks of rows.

    Attributes:
        logs: log-sum-exp of all rows, then of all columns.
        kept: (B, B), sum of both softmaxes in the requested rows.
    """

    def __init__(self, matrix: Tensor, temperature: float) -> None:
        self.kept = torch.empty_like(matrix, memory_format=torch.contiguous_format)
        least, largest = (float(value) for value in matrix.aminmax())
        self.is_shared = (largest - least) / 2 <= _WIDEST[matrix.dtype] * temperature
        if not self.is_shared:
            torch.div(matrix, temperature, out=self.kept)
            self.rows, self.columns = self.kept.logsumexp(1), self.kept.logsumexp(0)
            self.logs = torch.cat([self.rows, self.columns])
            return
        middle = (least + largest) / 2
        row_sums, self.columns = [], matrix.new_zeros(matrix.shape[1])
        for rows in _parts(matrix):
            exponential = torch.sub(matrix[rows], middle, out=self.kept[rows])
            exponential.mul_(1 / temperature).exp_()
            row_sums.append(exponential.sum(dim=1))
            self.columns += exponential.sum(dim=0)
        self.rows = torch.cat(row_sums)
        self.logs = torch.cat([self.rows, self.columns]).log_().add_(middle / temperature)

    def of(self, rows: slice) -> Tensor:
        """Return the sum of both softmaxes, stored in `kept`; only once per block."""
        part, own = self.kept[rows], self.rows[rows, None]
        if not self.is_shared:
            along_columns = (part - self.columns).exp_()
            return part.sub_(own).exp_().add_(along_columns)
        return part.mul_(1 / own + 1 / self.columns)


def _parts(matrix: Tensor) -> Iterator[slice]:
    """Yield blocks of rows: temporary matrices stay small, and in the CPU's cache."""
    step = max(1, _PART // max(1, matrix.shape[1]))
    return (slice(start, start + step) for start in range(0, len(matrix), step))


def _refuse_second_derivatives() -> None:
    # Torch's `once_differentiable` refuses only if the incoming gradient requires grad.
    if torch.is_grad_enabled():
        raise ConfigError(
            "the distillation loss has first derivatives alone: leave out create_graph, or build "
            "the loss of torch operations with sum_of_directions"
        )
