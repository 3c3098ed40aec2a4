"""The device of a run, and compilation, on a machine without a GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import whiten
from command_line import SMALL, STUDENT, Captured, fails, prints
from helpers import TEACHER
from small_runs import OPTIONS, TEACHERS, losses
from whiten.distillation import distill as module
from whiten.errors import ConfigError
from whiten.models import choice
from whiten.runs.folder import RunFolder
from whiten.runs.spec import DistillSpec
from whiten.views.on_device import model_input, normalized
from whiten.views.rendering import Preprocess


@pytest.mark.parametrize("channels", ["rgb", "bgr"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_a_device_normalises_as_the_cpu(channels: str, layout: str) -> None:
    preprocess = Preprocess.from_mapping(
        {"size": [5, 7], "channels": channels, "layout": layout, "mean": [0.1, 0.2, 0.3]}
    )
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 7, 3), np.uint8)
    expected = preprocess.normalize(pixels)
    found = normalized(preprocess, torch.from_numpy(pixels))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)
    assert found.stride() == torch.from_numpy(expected).stride()  # channels last
    frozen = pixels[:, ::-1]
    frozen.flags.writeable = False
    same = model_input(preprocess, frozen, torch.device("cpu"))
    assert np.array_equal(same.numpy(), preprocess.normalize(frozen))


def test_all_of_a_run_computes_on_its_device(
    shared_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = []
    train = module.train

    def trained(fabric: object, *rest: object) -> None:
        devices.append((choice.chosen_device().type, fabric.device.type))  # type: ignore[attr-defined]
        train(fabric, *rest)  # type: ignore[arg-type]

    # A machine with a GPU, which is not there: touching it raises.
    monkeypatch.setattr(choice, "best_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(module, "train", trained)
    options = OPTIONS | {"epochs": 1, "device": "cpu"}
    whiten.distill(shared_images, TEACHERS, tmp_path / "run", show_progress=False, **options)
    assert devices == [("cpu", "cpu")]
    assert choice.chosen() == choice.Choice()


def test_a_device_that_is_not_there(
    shared_images: Path, tmp_path: Path, colour_teachers: None, capsys: Captured
) -> None:
    command = ("--teachers", TEACHER, "--student", STUDENT, *SMALL, "--out", tmp_path / "run")
    for device, reason in (("cuda", "torch finds no device cuda"), ("gpu", "not 'gpu'")):
        for option in ("--device", "--accelerator"):
            assert reason in fails(capsys, "distill", shared_images, *command, option, device)
    assert "cuda:1 is a single one" in fails(
        capsys, "distill", shared_images, *command, "--device", "cuda:1", "--devices", "2"
    )
    assert not (tmp_path / "run").exists()


def test_an_earlier_configuration_names_an_accelerator(
    shared_images: Path, tmp_path: Path, colour_teachers: None, capsys: Captured
) -> None:
    spec = DistillSpec.from_mapping({"teachers": [TEACHER], "accelerator": "cpu"})
    assert spec.device == "cpu"
    earlier = tmp_path / "earlier.yaml"
    earlier.write_text(f"teachers: [{TEACHER}]\naccelerator: cpu\n")
    options = ("--student", STUDENT, *SMALL, "--out", tmp_path / "run")
    prints(capsys, "distill", shared_images, "--config", earlier, *options)
    assert RunFolder(tmp_path / "run").read_config()[1].device == "cpu"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0")
def test_a_compiled_student_learns_the_same(
    shared_images: Path, cache: Path, tmp_path: Path
) -> None:
    for name, is_compiled in (("plain", False), ("compiled", True)):
        options = OPTIONS | {"epochs": 2, "compile": is_compiled}
        whiten.distill(
            shared_images, TEACHERS, tmp_path / name, cache=cache, show_progress=False, **options
        )
    found = losses(tmp_path / "compiled")
    np.testing.assert_allclose(found, losses(tmp_path / "plain"), rtol=1e-3)
    assert whiten.load(tmp_path / "compiled" / "student").dim == OPTIONS["dim"]


def test_no_compiler_is_told_before_anything_is_embedded(
    shared_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compiled(_: torch.nn.Module) -> None:
        raise RuntimeError("no working C++ compiler")

    monkeypatch.setattr(torch, "compile", compiled)
    with pytest.raises(ConfigError, match=r"no working C\+\+ compiler.*leave out --compile"):
        whiten.distill(shared_images, TEACHERS, tmp_path / "run", **OPTIONS, compile=True)
    assert not (tmp_path / "run").exists()
