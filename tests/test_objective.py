"""The terms of the objective against plain loops, and their sum on a batch."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from whiten.distillation.fusion import fuse
from whiten.distillation.losses import distillation_loss
from whiten.distillation.objective import (
    Batch,
    objective,
    queue_kl,
    relational_kl,
    supervised_contrastive,
    with_all_positives,
)
from whiten.runs.recipes import complete
from whiten.runs.spec import DistillSpec

TAU = 0.1


def unit(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=1)


def test_supervised_contrastive_is_the_formula() -> None:
    z, labels = unit(6, 4), torch.tensor([0, 1, 0, 1, 1, 0])
    total = 0.0
    for i in range(6):
        others = [j for j in range(6) if j != i]
        denominator = sum(math.exp(z[i] @ z[j] / TAU) for j in others)
        positives = [j for j in others if labels[j] == labels[i]]
        total -= sum(math.log(math.exp(z[i] @ z[j] / TAU) / denominator) for j in positives) / len(
            positives
        )
    assert float(supervised_contrastive(z, labels, TAU)) == pytest.approx(total / 6)


def test_relational_kl_sees_different_things_alone() -> None:
    student, teacher = unit(6, 4), unit(6, 5, seed=1)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    s, t = student @ student.T, teacher @ teacher.T
    expected = 0.0
    for i in range(6):
        different = labels != labels[i]
        p = (t[i, different] / TAU).softmax(0)
        q = (s[i, different] / TAU).softmax(0)
        expected += float((p * (p.log() - q.log())).sum()) / 6
    assert float(relational_kl(s, t, labels, TAU)) == pytest.approx(expected)
    # What the teachers say of the same thing does not matter.
    same = labels[:, None] == labels[None]
    changed = torch.where(same, torch.zeros_like(t), t)
    assert float(relational_kl(s, changed, labels, TAU)) == pytest.approx(expected)


def test_a_student_in_the_teachers_place_has_nothing_to_learn() -> None:
    teacher, queue = unit(5, 4), unit(9, 4, seed=1)
    assert float(queue_kl(teacher, teacher, queue, TAU)) == pytest.approx(0, abs=1e-12)
    assert float(queue_kl(unit(5, 4, seed=2), teacher, queue, TAU)) > 0.1
    similarity = teacher @ teacher.T
    assert float(relational_kl(similarity, similarity, torch.arange(5), TAU)) == pytest.approx(0)


def batch(**more: Tensor) -> Batch:
    return Batch(
        student_x=unit(4, 6).float().requires_grad_(),
        student_y=unit(4, 6, seed=1).float().requires_grad_(),
        teachers_x=[unit(4, 5, seed=2).float(), unit(4, 3, seed=3).float()],
        teachers_y=[unit(4, 5, seed=4).float(), unit(4, 3, seed=5).float()],
        labels=torch.arange(4),
        **more,
    )


def weights(**terms: float) -> DistillSpec:
    none = dict.fromkeys(("kl", "labels", "relational", "align", "queue"), 0.0)
    given = {"teachers": ["demo:mobilenetv2"], **none, "pairs_per_class": 1, **terms}
    return complete(DistillSpec.from_mapping(given), "groups")[0]


def value(spec: DistillSpec, on: Batch) -> Tensor:
    return objective(on, spec, torch.Generator().manual_seed(0))[0]


def test_the_papers_term_is_the_papers_loss() -> None:
    on = batch()
    expected = distillation_loss(on.student_x, on.student_y, on.teachers_x, on.teachers_y)
    loss = value(weights(kl=1.0), on)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_all_pairs_of_a_label_are_fused_as_positives() -> None:
    teachers_x = [unit(4, 5, seed=k) for k in range(3)]
    teachers_y = [unit(4, 5, seed=k + 3) for k in range(3)]
    stack = torch.stack([x @ y.T for x, y in zip(teachers_x, teachers_y, strict=True)])
    labels = torch.tensor([7, 2, 7, 3])
    found = with_all_positives(fuse(stack, "maxmin"), teachers_x, teachers_y, labels)
    same = labels[:, None] == labels[None]
    expected = torch.where(same, stack.amax(0), stack.amin(0))
    torch.testing.assert_close(found, expected)
    fused = fuse(stack, "maxmin")
    assert with_all_positives(fused, teachers_x, teachers_y, torch.arange(4)) is fused


def test_terms_are_summed_by_their_weights() -> None:
    on = dataclasses.replace(
        batch(),
        fused_x=unit(4, 6, seed=6).float(),
        fused_y=unit(4, 6, seed=7).float(),
        queue=unit(20, 6, seed=8).float(),
    )
    each = {t: value(weights(**{t: 1.0}), on).item() for t in _TERMS}
    total = value(weights(**{t: 0.5 + i for i, t in enumerate(_TERMS)}), on)
    expected = sum((0.5 + i) * each[t] for i, t in enumerate(_TERMS))
    assert total.item() == pytest.approx(expected, rel=1e-5)
    assert len(set(each.values())) == len(_TERMS)
    total.backward()
    assert on.student_x.grad is not None and on.student_x.grad.abs().sum() > 0


_TERMS = ("kl", "labels", "relational", "align", "queue")
