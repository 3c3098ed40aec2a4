"""`recipe: paper` computes what the published code computes, from its options to the loss."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from whiten import Whitener
from whiten.distillation.objective import Batch, objective
from whiten.distillation.optimizing import learning_rate, make_optimizer
from whiten.models.student import build_student
from whiten.runs.recipes import complete
from whiten.runs.spec import DistillSpec

GOLDEN = Path(__file__).parent / "golden"


def spec(**options: object) -> DistillSpec:
    given = {"teachers": ["demo:mobilenetv2"], "recipe": "paper", **options}
    return complete(DistillSpec.from_mapping(given), "groups")[0]


@pytest.mark.parametrize("fusion", ["mean", "maxmin", "maxmean"])
def test_loss_gradients_and_wins(fusion: str) -> None:
    data = np.load(GOLDEN / "distillation_loss.npz")
    x, y = (torch.from_numpy(data[f"student_{side}"]).requires_grad_() for side in "xy")
    teachers_x, teachers_y = (
        [torch.from_numpy(data[f"teacher{k}_{side}"]) for k in range(3)] for side in "xy"
    )
    batch = Batch(x, y, teachers_x, teachers_y, labels=torch.arange(len(x)))
    options = spec() if fusion == "maxmin" else spec(fusion=fusion)
    loss, wins = objective(batch, options, torch.Generator())
    loss.backward()
    np.testing.assert_allclose(loss.item(), data[f"{fusion}_loss"], rtol=1e-6)
    for side, ours in (("x", x.grad), ("y", y.grad)):
        np.testing.assert_allclose(ours, data[f"{fusion}_grad_{side}"], rtol=1e-5, atol=5e-7)
    if fusion != "mean":  # the published code counts both directions, and none for the mean
        np.testing.assert_array_equal(2 * np.array(wins), data[f"{fusion}_positive_wins"])


def test_each_direction_is_half_of_the_loss() -> None:
    """KL along the rows, and along the columns, as batch means: written out in float64."""
    data = np.load(GOLDEN / "distillation_loss.npz")

    def unit(name: str) -> np.ndarray:
        rows = data[name].astype(np.float64)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    student = unit("student_x") @ unit("student_y").T / 0.05
    target = np.mean([unit(f"teacher{k}_x") @ unit(f"teacher{k}_y").T for k in range(3)], axis=0)
    total = 0.0
    for s, t in ((student, target / 0.05), (student.T, target.T / 0.05)):
        log_s = s - np.log(np.exp(s).sum(1, keepdims=True))
        log_t = t - np.log(np.exp(t).sum(1, keepdims=True))
        total += (np.exp(log_t) * (log_t - log_s)).sum() / len(s)
    np.testing.assert_allclose(total, data["mean_loss"], rtol=1e-5)


def test_whitening() -> None:
    golden = np.load(GOLDEN / "pca_whitening.npz")
    shrinkage = spec().shrinkage
    assert shrinkage == 0.0
    whitener = Whitener(len(golden["projection"]), shrinkage=0.0).fit(golden["fit"])
    signs = np.sign((whitener.projection_ * golden["projection"]).sum(axis=1))
    projection = whitener.projection_ * signs[:, None]
    np.testing.assert_allclose(projection, golden["projection"], rtol=1e-3, atol=1e-4)
    whitened = whitener.transform(golden["query"]) * signs
    np.testing.assert_allclose(whitened, golden["whitened"], rtol=1e-4, atol=1e-5)


def test_the_learning_rate_is_pytorchs_cosine() -> None:
    options, steps = spec(lr=1e-3, min_lr=1e-6, warmup=0.0), 500
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adam([parameter], lr=1e-3)
    published = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=1e-6)
    for step in range(steps):
        theirs = published.get_last_lr()[0]
        assert learning_rate(step, steps, options) == pytest.approx(theirs, rel=1e-9)
        optimizer.step()
        published.step()


@pytest.mark.parametrize(("optimizer", "decayed"), [("adam", 1.0), ("adamw", 0.0)])
def test_weight_decay_of_vectors_is_adams_alone(optimizer: str, decayed: float) -> None:
    options = spec(optimizer=optimizer, weight_decay=1.0)
    net, _ = build_student("timm:resnet18?pretrained=0&size=32", dim=8, size=32)
    made = make_optimizer(net, options)
    by_id = {id(p): group for group in made.param_groups for p in group["params"]}
    norms = [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert {by_id[id(norm.weight)]["weight_decay"] for norm in norms} == {decayed}
    assert by_id[id(net.projection.weight)]["weight_decay"] == 1.0
