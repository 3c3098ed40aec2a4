"""A small student and its export, for the tests of both."""

from __future__ import annotations

from pathlib import Path

import torch

import whiten
from command_line import STUDENT
from whiten.models.card import model_card
from whiten.models.student import build_student, save_student
from whiten.models.teacher import Teacher

DIM = 8


def write_student(folder: Path, *, dim: int = DIM, seed: int = 0) -> Path:
    """A student of random weights, whose batch statistics are those of noise."""
    torch.manual_seed(seed)
    net, config = build_student(STUDENT, dim=dim, pool="stages")
    net.train()
    with torch.no_grad():
        for _ in range(5):
            net(torch.randn(16, 3, *config.preprocess.size))
    save_student(net.eval(), config, folder, model_card(config))
    return folder


def teacher_of(folder: Path, runtime: str | None = None) -> Teacher:
    """The network that a folder of a student or an export opens as."""
    teacher = whiten.load(folder, runtime=runtime).parts[0].teacher
    assert isinstance(teacher, Teacher)
    return teacher
