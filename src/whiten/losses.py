"""The distillation losses: pure functions over tensors (Whiten-MTD, section "Distillation")."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from whiten.errors import ConfigError
from whiten.fusion import Fusion, fuse


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
    """KL from the student's to the fused teachers' softmax similarities, rows plus columns.

    `L = KL(softmax(T/τ) ‖ softmax(S/τ)) + KL(softmax(Tᵀ/τ) ‖ softmax(Sᵀ/τ))`, each averaged
    over the batch, where `S = X_s Y_sᵀ` and T is `fuse` of the teachers' `X_k Y_kᵀ`
    (Whiten-MTD, eq. of the similarity distillation; τ = 0.05).

    Inside a process group the embeddings of all processes are gathered first, so the value
    is that of the joined batch; each process receives the gradient of its own rows. Sum the
    processes' gradients (with DistributedDataParallel, which averages them, scale the loss by
    the number of processes).

    Args:
        student_x, student_y: (B, d) embeddings of the pairs' two sides; L2-normalised here.
        teachers_x, teachers_y: for each teacher (B, D_k); L2-normalised here. No gradient
            flows to them.
        strategy: see `fuse`.
        temperature: τ > 0.
        generator: randomness of the `rand` strategies, equal in all processes.

    Returns:
        Scalar tensor, float32 or wider.
    """
    if not temperature > 0:
        raise ConfigError(f"temperature must be above 0, not {temperature}")
    student = student_similarity(student_x, student_y)
    with torch.no_grad():
        target = fuse(
            teacher_similarities(teachers_x, teachers_y), strategy, generator=generator
        ).to(student.dtype)
    return similarity_kl(student, target, temperature)


def similarity_kl(student: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Both directions of the softmax KL between two (B, B) similarity matrices."""
    return sum_of_directions(student / temperature, target / temperature)


def sum_of_directions(student: Tensor, target: Tensor) -> Tensor:
    """KL(softmax(target) ‖ softmax(student)) along rows plus along columns, batch means."""
    rows = F.kl_div(
        student.log_softmax(1), target.log_softmax(1), reduction="batchmean", log_target=True
    )
    columns = F.kl_div(
        student.log_softmax(0), target.log_softmax(0), reduction="batchmean", log_target=True
    )
    return rows + columns


def alignment_loss(student: Tensor, target: Tensor) -> Tensor:
    """Mean cosine distance `1 - cos(student_i, target_i)` of two (B, d) sets of embeddings."""
    return (1.0 - F.cosine_similarity(student.float(), target.float(), dim=1)).mean()


def student_similarity(student_x: Tensor, student_y: Tensor) -> Tensor:
    """(B, B) cosine similarities of the joined batch, with gradients to this process's rows."""
    return _unit(gather(student_x)) @ _unit(gather(student_y)).T


@torch.no_grad()
def teacher_similarities(teachers_x: Sequence[Tensor], teachers_y: Sequence[Tensor]) -> Tensor:
    """(K, B, B) cosine similarities of every teacher on the joined batch."""
    if len(teachers_x) != len(teachers_y) or not teachers_x:
        raise ConfigError(
            f"got {len(teachers_x)} teachers for x and {len(teachers_y)} for y: "
            "pass the same teachers, at least one, for both sides"
        )
    return torch.stack(
        [_unit(gather(x)) @ _unit(gather(y)).T for x, y in zip(teachers_x, teachers_y, strict=True)]
    )


def gather(local: Tensor) -> Tensor:
    """The rows of all processes in rank order; this process's part keeps its gradient."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return local
    parts = [torch.empty_like(local) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, local.detach().contiguous())
    parts[dist.get_rank()] = local
    return torch.cat(parts)


def _unit(embeddings: Tensor) -> Tensor:
    # Similarities divided by τ = 0.05 need more digits than bfloat16 has.
    wide = embeddings if embeddings.dtype == torch.float64 else embeddings.float()
    return F.normalize(wide, dim=1)
