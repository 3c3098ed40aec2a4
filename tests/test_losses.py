"""Fusion and losses: the paper's values and gradients, alone and in a process group."""

from __future__ import annotations

import multiprocessing
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from whiten import distillation_loss, fuse
from whiten.distillation.fusion import STRATEGIES, fuse_streaming, positive_wins
from whiten.distillation.losses import (
    alignment_loss,
    fused_teacher_similarity,
    similarity_kl,
    student_similarity,
    sum_of_directions,
    teacher_similarities,
)
from whiten.errors import ConfigError

GOLDEN = Path(__file__).parent / "golden" / "distillation_loss.npz"


def golden_inputs() -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    data = np.load(GOLDEN)
    teachers = [[torch.from_numpy(data[f"teacher{k}_{side}"]) for k in range(3)] for side in "xy"]
    x, y = (torch.from_numpy(data[f"student_{side}"]).requires_grad_() for side in "xy")
    return x, y, teachers[0], teachers[1]


@pytest.mark.parametrize("strategy", ["mean", "maxmin", "maxmean"])
def test_reproduces_the_published_loss_and_gradients(strategy: str) -> None:
    data = np.load(GOLDEN)
    x, y, teachers_x, teachers_y = golden_inputs()
    loss = distillation_loss(x, y, teachers_x, teachers_y, strategy=strategy)
    loss.backward()
    np.testing.assert_allclose(loss.item(), data[f"{strategy}_loss"], rtol=1e-6)
    for side, ours in (("x", x.grad), ("y", y.grad)):
        np.testing.assert_allclose(ours, data[f"{strategy}_grad_{side}"], rtol=1e-5, atol=5e-7)


def test_wins_are_those_of_the_paper_counted_once() -> None:
    _, _, teachers_x, teachers_y = golden_inputs()
    wins = positive_wins(teacher_similarities(teachers_x, teachers_y))
    # The published code counts both directions.
    np.testing.assert_array_equal(2 * wins, np.load(GOLDEN)["maxmin_positive_wins"])


def test_ties_are_shared() -> None:
    same = torch.eye(4).expand(2, 4, 4)
    np.testing.assert_array_equal(positive_wins(same), [2.0, 2.0])


def test_the_loss_is_zero_for_a_student_that_agrees() -> None:
    x, y = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0))
    assert distillation_loss(x, y, [x], [y]).item() == pytest.approx(0, abs=1e-6)
    assert distillation_loss(x, y, [-x], [y]).item() > 1


def similarities(k: int = 3, b: int = 5) -> Tensor:
    return torch.rand(k, b, b, generator=torch.Generator().manual_seed(1))


def test_strategies_do_what_their_names_say() -> None:
    t = similarities()
    eye = torch.eye(5, dtype=torch.bool)
    best = t.amax(0)
    for strategy, rest in (("maxmin", t.amin(0)), ("maxmean", t.mean(0))):
        fused = fuse(t, strategy)
        torch.testing.assert_close(fused[eye], best[eye])
        torch.testing.assert_close(fused[~eye], rest[~eye])
    torch.testing.assert_close(fuse(t, "mean"), t.mean(0))
    torch.testing.assert_close(fuse(t, lambda s: s[0]), t[0])


@pytest.mark.parametrize("strategy", ["rand", "maxrand"])
def test_random_strategies_draw_teachers_and_are_seeded(strategy: str) -> None:
    t = similarities(3, 40)
    first, again, other = (
        fuse(t, strategy, generator=torch.Generator().manual_seed(seed)) for seed in (5, 5, 6)
    )
    torch.testing.assert_close(first, again)
    assert (first != other).any()
    eye = torch.eye(40, dtype=torch.bool)
    drawn = (t == first).float()[:, ~eye]
    assert (drawn.sum(0) == 1).all()  # each entry is some teacher's
    assert (drawn.mean(1) - 1 / 3).abs().max() < 0.06  # and each teacher as often
    if strategy == "maxrand":
        torch.testing.assert_close(first[eye], t.amax(0)[eye])


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_fusing_leaves_its_input_alone(strategy: str) -> None:
    t = similarities()
    before = t.clone()
    fuse(t, strategy)
    torch.testing.assert_close(t, before, rtol=0, atol=0)


def test_wrong_use_is_explained() -> None:
    t = similarities()
    with pytest.raises(ConfigError, match="did you mean 'maxmin'"):
        fuse(t, "minmax")
    with pytest.raises(ConfigError, match="returned shape"):
        fuse(t, lambda s: s)
    with pytest.raises(ConfigError, match=r"\(K, B, B\)"):
        fuse(t[0])
    x, y, teachers_x, teachers_y = golden_inputs()
    with pytest.raises(ConfigError, match="same teachers"):
        distillation_loss(x, y, teachers_x, teachers_y[:2])
    with pytest.raises(ConfigError, match="temperature"):
        distillation_loss(x, y, teachers_x, teachers_y, temperature=0)


@pytest.mark.parametrize(("own", "taught"), [(1, 4), (4, 1), (4, 3)])
def test_batches_of_other_sizes_are_refused(own: int, taught: int) -> None:
    x, t = torch.rand(own, 3), [torch.rand(taught, 5)]
    with pytest.raises(ConfigError, match="embed the same B pairs with both"):
        distillation_loss(x, x, t, t)
    with pytest.raises(ConfigError, match="embed the same B pairs with both"):
        similarity_kl(torch.rand(own, taught), torch.rand(own, taught), 0.05)
    with pytest.raises(ConfigError, match="takes \\(K, B, B\\) similarities, not \\(0, 4, 4\\)"):
        fuse(torch.rand(0, 4, 4), "mean")


def test_half_precision_embeddings_are_compared_in_float32() -> None:
    x, y, teachers_x, teachers_y = golden_inputs()
    exact = distillation_loss(x, y, teachers_x, teachers_y)
    half = distillation_loss(x.bfloat16(), y.bfloat16(), teachers_x, teachers_y)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(exact.item(), rel=0.05)


def test_alignment_is_the_mean_cosine_distance() -> None:
    student = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    target = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert alignment_loss(student, target).item() == pytest.approx(0.5)


# --- without the stack -------------------------------------------------------------------


@pytest.mark.parametrize("strategy", [*sorted(STRATEGIES), "callable"])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_streaming_fusion_equals_that_of_the_stack(strategy: str, k: int) -> None:
    t = similarities(k, 12)
    before = t.clone()
    chosen = (lambda s: s[0] * 2) if strategy == "callable" else strategy
    generators = (torch.Generator().manual_seed(7) for _ in range(2))
    fused, positives = fuse_streaming(iter(t), k, chosen, generator=next(generators))
    torch.testing.assert_close(fused, fuse(t, chosen, generator=next(generators)))
    torch.testing.assert_close(t, before, rtol=0, atol=0)
    np.testing.assert_array_equal(positive_wins(positives), positive_wins(t))


def test_streaming_fusion_explains_wrong_use() -> None:
    t = similarities()
    with pytest.raises(ConfigError, match="did you mean 'maxmin'"):
        fuse_streaming(t, 3, "minmax")
    with pytest.raises(ConfigError, match="of 4 teachers, got 3"):
        fuse_streaming(t, 4)
    with pytest.raises(ConfigError, match="of 0 teachers, got 0"):
        fuse_streaming([], 0)
    with pytest.raises(ConfigError, match=r"\(B, B\)"):
        fuse_streaming(t[:, :2], 3)


def test_the_target_is_the_fused_teachers() -> None:
    _, _, teachers_x, teachers_y = golden_inputs()
    stack = teacher_similarities(teachers_x, teachers_y)
    fused, positives = fused_teacher_similarity(teachers_x, teachers_y)
    torch.testing.assert_close(fused, fuse(stack), rtol=0, atol=0)
    np.testing.assert_array_equal(positive_wins(positives), positive_wins(stack))


# --- the analytic gradient ---------------------------------------------------------------


def pair_of_matrices(b: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor]:
    student, target = 2 * torch.rand(2, b, b, generator=torch.Generator().manual_seed(seed)) - 1
    return student.to(dtype).requires_grad_(), target.to(dtype)


# The smallest temperatures are beyond what one exponential can span.
@pytest.mark.parametrize("temperature", [1.0, 0.05, 0.02, 0.01, 0.001])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loss_and_gradient_equal_those_of_autograd(temperature: float, dtype: torch.dtype) -> None:
    student, target = pair_of_matrices(40, dtype)
    loss = similarity_kl(student, target, temperature)
    (gradient,) = torch.autograd.grad(loss, student)
    wide = student.detach().double().requires_grad_()
    expected = sum_of_directions(wide / temperature, target.double() / temperature)
    (exact,) = torch.autograd.grad(expected, wide)
    is_wide = dtype == torch.float64
    assert loss.dtype == dtype
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12 if is_wide else 2e-6)
    error = (gradient.double() - exact).abs().max() / exact.abs().max()
    assert error < (1e-12 if is_wide else 5e-6 if temperature >= 0.02 else 1e-4)


def test_rows_far_below_the_rest_keep_their_distribution() -> None:
    student, target = pair_of_matrices(20, torch.float32)
    shifted = student.detach().clone()
    shifted[3] -= 50  # exp(-1000) is 0 in any precision, yet the row's softmax is what it was
    (moved,) = torch.autograd.grad(similarity_kl(shifted.requires_grad_(), target, 0.05), shifted)
    expected = sum_of_directions(shifted / 0.05, target / 0.05)
    (exact,) = torch.autograd.grad(expected, shifted)
    assert exact[3].abs().max() > 0.01
    torch.testing.assert_close(moved, exact, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 0.05, 0.001])
def test_gradients_are_those_of_finite_differences(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y, a, b = torch.randn(4, 5, 7, generator=generator, dtype=torch.float64)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return distillation_loss(x, y, [a], [b], temperature=temperature) * 3

    assert torch.autograd.gradcheck(loss, (x.requires_grad_(), y.requires_grad_()))


def test_one_side_may_be_fixed() -> None:
    x, y, teachers_x, teachers_y = golden_inputs()
    distillation_loss(x, y, teachers_x, teachers_y).backward()
    both = x.grad.clone()
    x.grad = y.grad = None
    distillation_loss(x, y.detach(), teachers_x, teachers_y).backward()
    torch.testing.assert_close(x.grad, both)
    assert y.grad is None


def test_a_target_may_be_learnt() -> None:
    student, target = pair_of_matrices(6, torch.float64)
    similarity_kl(student, target.requires_grad_(), 0.1).backward()
    assert target.grad is not None and target.grad.abs().max() > 0


def test_second_derivatives_are_refused() -> None:
    student, target = pair_of_matrices(6, torch.float32)
    with pytest.raises(ConfigError, match="first derivatives alone"):
        torch.autograd.grad(similarity_kl(student, target, 0.1), student, create_graph=True)


def test_nan_is_passed_on() -> None:
    x, y, teachers_x, teachers_y = golden_inputs()
    with torch.no_grad():
        x[0, 0] = float("nan")
    assert student_similarity(x, y)[0].isnan().all()
    assert distillation_loss(x, y, teachers_x, teachers_y).isnan()


# --- two processes ----------------------------------------------------------------------


def _worker(rank: int, port: int, results: multiprocessing.Queue) -> None:  # type: ignore[type-arg]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    x, y, teachers_x, teachers_y = golden_inputs()
    mine = slice(3 * rank, 3 * rank + 3)
    x, y = x[mine].detach().requires_grad_(), y[mine].detach().requires_grad_()
    loss = distillation_loss(
        x,
        y,
        [t[mine] for t in teachers_x],
        [t[mine] for t in teachers_y],
        strategy="maxrand",
        generator=torch.Generator().manual_seed(3),
    )
    loss.backward()
    results.put((rank, loss.item(), x.grad.numpy(), y.grad.numpy()))
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_gloo_processes_equal_one_on_the_joined_batch() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [context.Process(target=_worker, args=(r, port, results)) for r in range(2)]
    for worker in workers:
        worker.start()
    parts = sorted((results.get(timeout=120) for _ in workers), key=lambda part: part[0])
    for worker in workers:
        worker.join(timeout=60)
    x, y, teachers_x, teachers_y = golden_inputs()
    generator = torch.Generator().manual_seed(3)
    loss = distillation_loss(x, y, teachers_x, teachers_y, strategy="maxrand", generator=generator)
    loss.backward()
    for _, value, _, _ in parts:
        assert value == pytest.approx(loss.item(), rel=1e-6)
    np.testing.assert_allclose(np.concatenate([p[2] for p in parts]), x.grad, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.concatenate([p[3] for p in parts]), y.grad, rtol=1e-5, atol=1e-6)
