"""The distillation loss, forward and backward, against the plain stacked way in torch.

    python benchmarks/loss.py

Batches of 1024 pairs, 2 and 5 teachers. The plain way stacks the teachers' similarity matrices,
fuses them, takes log-softmax in both directions and `F.kl_div`, and leaves the gradient to
autograd. It is measured from the similarity matrices on, and with the products that make them of
embeddings of 512 dimensions (student, and teachers whitened from 2048). Those products, which no
loss can do without, are the floor of the latter.
`OPENBLAS_CORETYPE` and `OPENBLAS_L2_SIZE` should not be set.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from side_by_side import Comparison, Report, arguments, peak_bytes, take_turns
from torch import Tensor

from whiten import distillation_loss
from whiten.distillation.fusion import fuse_streaming
from whiten.distillation.losses import similarity_kl

OURS, PLAIN, FLOOR = "whiten", "plain stacked torch", "floor: bare products"
TEMPERATURE = 0.05
AIM_SPEED, AIM_MEMORY, AIM_GRADIENT = 2.2, 2.5, 2e-6

Embeddings = Sequence[Tensor]
Action = Callable[[], Sequence[Tensor]]


# --- from similarities on ---------------------------------------------------------------


def plain_kl(student: Tensor, teachers: Iterable[Tensor]) -> Tensor:
    with torch.no_grad():
        stack = torch.stack(list(teachers))
        best = stack.diagonal(dim1=1, dim2=2).amax(dim=0)
        target = stack.amin(dim=0).diagonal_scatter(best)
    loss = torch.zeros((), dtype=student.dtype)
    for dim in (1, 0):
        ours, theirs = (m.div(TEMPERATURE).log_softmax(dim) for m in (student, target))
        loss = loss + F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
    return loss


def our_kl(student: Tensor, teachers: Sequence[Tensor]) -> Tensor:
    target, _ = fuse_streaming(teachers, len(teachers))
    return similarity_kl(student, target, TEMPERATURE)


# --- from embeddings on -----------------------------------------------------------------


def plain_loss(x: Tensor, y: Tensor, teachers_x: Embeddings, teachers_y: Embeddings) -> Tensor:
    student = F.normalize(x, dim=1) @ F.normalize(y, dim=1).T
    pairs = zip(teachers_x, teachers_y, strict=True)
    return plain_kl(student, (F.normalize(a, dim=1) @ F.normalize(b, dim=1).T for a, b in pairs))


def our_loss(x: Tensor, y: Tensor, teachers_x: Embeddings, teachers_y: Embeddings) -> Tensor:
    return distillation_loss(x, y, teachers_x, teachers_y, temperature=TEMPERATURE)


def products(x: Tensor, y: Tensor, teachers_x: Embeddings, teachers_y: Embeddings) -> None:
    """One a teacher, the student's, two for its gradient."""
    for one, other in zip(teachers_x, teachers_y, strict=True):
        one @ other.T
    similarity = x @ y.T
    similarity @ y
    similarity.T @ x


# --- measuring --------------------------------------------------------------------------


def gradients(loss: Callable[..., Tensor], given: Embeddings, *teachers: Embeddings) -> Embeddings:
    """Of the student's tensors."""
    leaves = [tensor.detach().requires_grad_() for tensor in given]
    loss(*leaves, *teachers).backward()
    return [leaf.grad for leaf in leaves if leaf.grad is not None]


def wide(tensors: Embeddings) -> Embeddings:
    return [tensor.double() for tensor in tensors]


def peak_mb(action: Action) -> float:
    """Without what the allocator had kept of earlier work."""
    peaks = []
    action()  # what BLAS keeps for good
    for _ in range(5):
        ctypes.CDLL(None).malloc_trim(0)
        peaks.append(peak_bytes(action))
    return round(max(peaks) / 2**20, 1)


def compare(
    setting: str,
    mine: Callable[..., Tensor],
    theirs: Callable[..., Tensor],
    given: Embeddings,
    *teachers: Embeddings,
    rounds: int,
    floor: Callable[[], None] | None = None,
) -> Comparison:
    rivals: dict[str, Action] = {
        OURS: lambda: gradients(mine, given, *teachers),
        PLAIN: lambda: gradients(theirs, given, *teachers),
    }
    memory = {name: peak_mb(action) for name, action in rivals.items()}
    exact = gradients(theirs, wide(given), *map(wide, teachers))
    scale = max(float(gradient.abs().max()) for gradient in exact)
    deviation = {
        name: max(float((a - b).abs().max()) for a, b in zip(action(), exact, strict=True))
        for name, action in rivals.items()
    }
    timed = {**rivals, FLOOR: floor} if floor else rivals
    result = take_turns(setting, timed, ours=OURS, rounds=rounds, warmup=3)
    result.targets = {PLAIN: AIM_SPEED}
    result.facts = {
        "peak_mb": memory,
        "memory_ratio": round(memory[PLAIN] / max(0.1, memory[OURS]), 2),
        "aim_for_the_memory_ratio": AIM_MEMORY,
        "gradient_deviation_from_float64": {k: float(f"{v:.2g}") for k, v in deviation.items()},
        "largest_gradient": float(f"{scale:.2g}"),
        "aim_for_the_deviation": AIM_GRADIENT,
        "gradient_met": deviation[OURS] <= AIM_GRADIENT,
    }
    return result


def measure(report: Report, batch: int, dim: int, count: int, rounds: int) -> None:
    generator = torch.Generator().manual_seed(0)

    def pair(noise: float) -> Embeddings:
        """The two sides of a batch, alike as embeddings of related images are."""
        x = torch.randn(batch, dim, generator=generator)
        y = x + noise * torch.randn(batch, dim, generator=generator)
        return F.normalize(x, dim=1), F.normalize(y, dim=1)

    student = pair(3.0)
    teachers_x, teachers_y = zip(*(pair(1.5) for _ in range(count)), strict=True)
    similarities = [x @ y.T for x, y in zip(teachers_x, teachers_y, strict=True)]
    report.add(
        compare(
            f"from similarities, B={batch}, K={count}",
            our_kl,
            plain_kl,
            [student[0] @ student[1].T],
            similarities,
            rounds=rounds,
        )
    )
    report.add(
        compare(
            f"from embeddings, B={batch}, K={count}, D={dim}",
            our_loss,
            plain_loss,
            student,
            teachers_x,
            teachers_y,
            rounds=rounds,
            floor=lambda: products(*student, teachers_x, teachers_y),
        )
    )


def main() -> None:
    options = arguments(__doc__).parse_args()
    report = Report(
        "loss",
        numpy=np.__version__,
        torch=torch.__version__,
        torch_threads=torch.get_num_threads(),
    )
    batch, dim, rounds = (64, 32, 3) if options.quick else (1024, 512, 25)
    for teachers in (2, 5):
        measure(report, batch, dim, teachers, rounds)
    report.finish(options.out)


if __name__ == "__main__":
    main()
