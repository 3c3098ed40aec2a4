"""One's own factory as a teacher."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from teacher_helpers import check_same, make_pixels, mean_colours
from whiten.errors import ConfigError, TeacherError
from whiten.models.registry import open_teacher

FACTORIES = '''
import functools
import torch
from torch import nn
from whiten.models.teacher import Teacher
from whiten.views.rendering import Preprocess

class Mean(nn.Module):
    """Mean colours, `repeat` times; has no weights."""
    def __init__(self, repeat):
        super().__init__()
        self.repeat = repeat
    def forward(self, images):
        assert not self.training
        return images.mean((2, 3)).repeat(1, self.repeat)

def module(repeat="1"): return Mean(int(repeat))
def dropped(): return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))
def pair(): return Mean(1), Preprocess(size=(16, 16), mean=(0.0,) * 3, std=(1.0,) * 3)
def teacher(): return Teacher("x", "mine", 3, Preprocess(), "0" * 32, Mean(1))
def maps(): return nn.Identity()
def tokens(): return nn.Flatten(2)
def scores(): return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 1000))
def wide(): return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 128))
def number(): return 3
def swapped(): return Preprocess(), Mean(1)
def broken(): raise ValueError("no luck\\nat all")
def script(): raise SystemExit("usage: script")
@functools.cache
def kept(name="x"): return teacher()
constant = 1
'''


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI's beginning of a module in the current folder, which is not on the path."""
    (tmp_path / "my_teachers.py").write_text(FACTORIES)
    (tmp_path / "my_broken.py").write_text("import nothing_of_this_name")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [p for p in sys.path if p not in ("", ".")])
    monkeypatch.delitem(sys.modules, "my_teachers", raising=False)
    return "python:my_teachers:"


def test_python_module(factories: str) -> None:
    pixels = make_pixels(224)
    teacher = open_teacher(f"{factories}module?repeat=2")
    check_same(teacher.embed(pixels), mean_colours(pixels).repeat(1, 2))
    assert teacher.uri == f"{factories}module?repeat=2"
    assert teacher.fingerprint() == open_teacher(teacher.uri).fingerprint()
    # Weightless modules are told apart by what made them.
    assert teacher.weights_hash != open_teacher(f"{factories}module?repeat=1").weights_hash
    assert teacher.weights_hash != open_teacher(f"{factories}pair").weights_hash


def test_python_tuple_and_teacher(factories: str) -> None:
    pixels = make_pixels(16)
    pair = open_teacher(f"{factories}pair")
    assert pair.preprocess.size == (16, 16)
    raw = torch.from_numpy(pixels.reshape(2, -1, 3).mean(1) / 255).float()
    check_same(pair.embed(pixels), raw)
    own = open_teacher(f"{factories}teacher")
    assert open_teacher(f"{factories}wide").dim == 128
    assert (own.name, own.weights_hash, own.uri) == ("mine", "0" * 32, f"{factories}teacher")


def test_a_teacher_that_the_factory_keeps(factories: str) -> None:
    """Opening it leaves the factory's own as it is: the next time it is the same model."""
    first = open_teacher(f"{factories}kept")
    prints = {open_teacher(f"{factories}kept").fingerprint() for _ in range(3)}
    assert prints == {first.fingerprint()}
    assert open_teacher(f"{factories}kept?name=y").fingerprint() != first.fingerprint()
    assert first.uri == f"{factories}kept"


def test_python_weights_make_the_identity(factories: str) -> None:
    torch.manual_seed(0)
    first = open_teacher(f"{factories}dropped")
    second = open_teacher(f"{factories}dropped")  # the factory draws new weights
    assert first.weights_hash != second.weights_hash
    torch.manual_seed(0)
    assert first.weights_hash == open_teacher(f"{factories}dropped").weights_hash


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        ("my_teachers:modul", TeacherError, "did you mean 'module'"),
        ("my_teachers:constant", TeacherError, "no function 'constant'"),
        ("my_teachers:broken", TeacherError, r"ValueError: no luck\)"),
        ("my_teachers:script", TeacherError, r"SystemExit: usage: script\)"),
        ("my_teachers:module?size=3", TeacherError, "unexpected keyword argument 'size'"),
        ("my_teachers:number", TeacherError, "returned int"),
        ("my_teachers:swapped", TeacherError, r"returned \(Preprocess, Mean\)"),
        ("my_teachers:maps", TeacherError, r"\(1, 3, 224, 224\) \(feature maps\).*: pool it"),
        ("my_teachers:tokens", TeacherError, r"\(1, 3, 50176\) \(tokens\).*: pool it"),
        ("my_teachers:scores", TeacherError, "1000 class scores .*, not an embedding: return the"),
        ("my_broken:make", TeacherError, "No module named 'nothing_of_this_name'"),
        ("my_absent:make", TeacherError, "cannot import my_absent"),
        ("my_teachers", ConfigError, "python:pkg.module:factory"),
    ],
)
def test_python_mistakes(factories: str, target: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        open_teacher(f"python:{target}")
    assert "\n" not in str(caught.value)


def test_a_module_of_the_same_name_in_another_folder(
    factories: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_teacher(f"{factories}module?repeat=2")
    other = tmp_path / "other"
    other.mkdir()
    (other / "my_parts.py").write_text("times = 3")
    edited = FACTORIES.replace("repeat(1, self", "repeat(1, my_parts.times * self")
    (other / "my_teachers.py").write_text(f"import my_parts\n{edited}")
    monkeypatch.chdir(other)
    assert open_teacher(f"{factories}module?repeat=2").dim == 18
    (other / "my_teachers.py").unlink()
    monkeypatch.chdir(tmp_path)
    again = open_teacher(f"{factories}module?repeat=2")
    assert (again.dim, again.fingerprint()) == (6, first.fingerprint())
