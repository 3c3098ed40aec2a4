"""Images to which a model gives zeros or NaN: left out and named, as unreadable ones are."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import whiten
from command_line import Captured, fails, prints
from helpers import write_groups
from whiten.errors import ImageError
from whiten.models import teacher

FACTORY = """
import torch
from torch import nn

from whiten.views import Preprocess


class Colours(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())

    def forward(self, images):
        colours = self.layers(images)
        return torch.where(colours.mean(dim=1, keepdim=True) == 1, torch.nan, colours)


def make():
    return Colours(), Preprocess(size=(32, 32), mean=(0, 0, 0), std=(1, 1, 1))
"""
MODEL = "python:dark_teachers:make"
REASONS = {
    "black.png": f"{MODEL} returned only zeros",
    "white.png": f"{MODEL} returned NaN or infinity: check that its weights match the model",
}


@pytest.fixture(autouse=True)
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "dark_teachers.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("dark_teachers", None)


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """Nine drawings, and two images without an embedding."""
    folder = write_groups(tmp_path / "odd", dict.fromkeys("abc", 3))
    for name, colour in (("black", "black"), ("white", "white")):
        Image.new("RGB", (32, 32), colour).save(folder / f"{name}.png")
    return folder


@pytest.mark.parametrize(
    "command",
    [
        ("dedup", "--model", MODEL, "--threshold", "0.99"),
        ("diagnose", "--teachers", MODEL),
        ("embed", "--model", MODEL, "--out", "out"),
        ("index", "--model", MODEL, "--store", "out"),
        ("evaluate", "--model", MODEL),
    ],
)
def test_every_verb_leaves_them_out_and_names_them(
    odd: Path, tmp_path: Path, capsys: Captured, command: tuple[str, ...]
) -> None:
    verb, *options = [str(tmp_path / "out") if word == "out" else word for word in command]
    out, _ = prints(capsys, verb, odd, *options, "--json")
    skipped = json.loads(out)["skipped"]
    assert {skip["id"]: skip["reason"] for skip in skipped} == REASONS


def test_in_python_they_are_errors_with_a_name(odd: Path) -> None:
    encoder = whiten.load(MODEL)
    paths = [odd / "a" / "0.png", odd / "black.png", odd / "white.png"]
    with pytest.raises(ImageError, match=r"cannot embed .*black\.png: .* returned only zeros"):
        encoder.embed(paths)
    with pytest.raises(ImageError, match="image 1 of 2, counted from 0: cannot embed the image: "):
        encoder.embed([Image.open(paths[0]), Image.new("RGB", (32, 32))])
    found = encoder.embed(paths, errors="skip")
    assert [skip.position for skip in found.skipped] == [1, 2]
    assert found.rows.tolist() == [0]


def test_a_model_that_embeds_nothing_says_so(tmp_path: Path, capsys: Captured, odd: Path) -> None:
    command = ("embed", odd, "--include", "black.png", "--model", MODEL, "--out")
    line = fails(capsys, *command, tmp_path / "none", "--quiet")
    assert f"first 'black.png': {REASONS['black.png']}" in line


def test_stores_of_earlier_versions_hold_them(
    odd: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    (odd / "white.png").unlink()
    store = tmp_path / "store"
    with monkeypatch.context() as earlier:
        earlier.setattr(teacher, "has_direction", lambda rows: np.ones(len(rows), bool))
        prints(capsys, "embed", odd, "--model", MODEL, "--out", store)
    out, _ = prints(capsys, "dedup", store, "--threshold", "0.99", "--json")
    told = json.loads(out)
    assert told["count"] == 9
    assert told["skipped"] == [{"id": "black.png", "reason": "its embedding is zero or not finite"}]


OUTPUTS = """
import torch
from torch import nn


class Changed(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.change = change

    def forward(self, images):
        means = images.mean((2, 3))
        match self.change:
            case "1e-30" | "1e30" | "1":
                return means * float(self.change)
            case "bfloat16":
                return means.bfloat16()
            case "numpy":
                return means.numpy()
            case "batches" if len(images) > 1:
                raise RuntimeError("one at a time\\nplease")
        return means


make = Changed
"""


@pytest.fixture
def outputs(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "changed_outputs.py").write_text(OUTPUTS)
    yield "python:changed_outputs:make?change="
    sys.modules.pop("changed_outputs", None)


@pytest.mark.parametrize("change", ["1e-30", "1e30", "bfloat16", "numpy"])
def test_embeddings_of_any_length_and_type_have_length_1(
    outputs: str, odd: Path, change: str
) -> None:
    paths = sorted(odd.glob("?/*.png"))
    found = whiten.load(outputs + change).embed(paths)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    expected = whiten.load(f"{outputs}1").embed(paths)
    np.testing.assert_allclose(found, expected, atol=2e-2 if change == "bfloat16" else 1e-6)


def test_a_model_that_raises_is_told_in_one_line(outputs: str, odd: Path, capsys: Captured) -> None:
    told = fails(capsys, "evaluate", odd, "--model", f"{outputs}batches")
    assert "failed (RuntimeError: one at a time): it must embed any batch of 224x224" in told
