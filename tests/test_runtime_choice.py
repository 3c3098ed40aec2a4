"""Which runtime and device compute: as chosen, as the machine allows, or as the model does."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import whiten
from command_line import Captured, fails, prints
from exporting import teacher_of
from helpers import TEACHER, write_groups
from whiten.datasets.finding import find_items
from whiten.embedding.embed import embed
from whiten.errors import ConfigError, TeacherError
from whiten.models import choice, graphs, runtimes
from whiten.models.choice import Choice, choice_restored, choose, describe_auto
from whiten.models.opening import for_many, open_model, runtime_of
from whiten.models.registry import open_network
from whiten.models.teacher import Teacher, drawn_pixels
from whiten.utils import devices

pytestmark = pytest.mark.usefixtures("on_a_cpu")


# --- the choice -------------------------------------------------------------------------


def test_the_choice_is_checked(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"auto, torch, onnx, openvino, not 'onxx'.*'onnx'"):
        whiten.load(made, runtime="onxx")
    with pytest.raises(ConfigError, match="device must be one of auto, cpu, cuda, mps"):
        whiten.load(made, device="gpu")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match="finds no device cuda on this machine"):
        whiten.load(made, device="cuda")
    monkeypatch.setattr("whiten.models.choice.require_device", lambda name: None)
    with pytest.raises(ConfigError, match="openvino does not compute on cuda"):
        whiten.load(made, device="cuda", runtime="openvino")


def test_auto_is_torch_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [Choice(device=name).resolved for name in ("auto", "cpu", "cuda", "mps")] == [
        *("onnx", "onnx", "torch", "torch")
    ]
    assert describe_auto() == "auto is onnx, on the CPU; torch for models that cannot be traced"

    class Gpu:
        type = "cuda"

    monkeypatch.setattr("whiten.models.choice.may_have_gpu", lambda: True)
    monkeypatch.setattr("whiten.models.choice.best_device", Gpu)
    assert Choice().resolved == "torch"
    assert describe_auto() == "auto is torch, on the GPU"


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("auto", ["CUDAExecutionProvider", "CPUExecutionProvider"]),
        ("cpu", ["CPUExecutionProvider"]),
        ("cuda", ["CUDAExecutionProvider", "CPUExecutionProvider"]),
        ("cuda:1", [("CUDAExecutionProvider", {"device_id": "1"}), "CPUExecutionProvider"]),
        ("mps", ["CPUExecutionProvider"]),
    ],
)
def test_onnx_files_compute_on_the_chosen_device(
    device: str,
    expected: list[runtimes.Provider],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    known = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    ort = SimpleNamespace(get_available_providers=lambda: known)
    monkeypatch.setattr(choice, "_chosen", Choice(device=device))
    assert runtimes.providers(ort, "x.onnx") == expected
    assert ("x.onnx runs on the CPU" in caplog.text) == (device == "mps")


def test_a_student_computes_on_the_gpu_of_the_chosen_number(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ort = runtimes.import_onnxruntime("a test")
    passed = []

    def on_the_cpu(graph: bytes, options: Any, providers: list[runtimes.Provider]) -> Any:
        passed.append(providers)
        return open_session(graph, options, providers=["CPUExecutionProvider"])

    open_session = ort.InferenceSession
    known = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: known)
    monkeypatch.setattr(ort, "InferenceSession", on_the_cpu)
    monkeypatch.setattr("whiten.models.choice.require_device", lambda name: None)
    for device in ("cuda:1", "cuda", "cpu"):
        open_model(f"whiten:{made}", runtime="onnx", device=device)
    with_number = ("CUDAExecutionProvider", {"device_id": "1"})
    assert passed == [[with_number, known[1]], known, known[1:]]


def test_a_hidden_gpu_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("os.path.exists", lambda path: path == "/dev/nvidia0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert devices.may_have_gpu()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not devices.may_have_gpu()


def test_wrong_runtimes_are_one_line(
    made: Path, images: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("embed", images, "--model", made, "--out", tmp_path / "store", "--runtime")
    assert "onxx" in fails(capsys, *command, "onxx")
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert "pip install 'whiten[openvino]'" in fails(capsys, *command, "openvino")
    assert not (tmp_path / "store").exists()


def test_the_command_lines_choice_ends_with_it(
    made: Path, images: Path, tmp_path: Path, capsys: Captured
) -> None:
    with choice_restored():
        choose("torch")
        assert teacher_of(made).runtime == "torch"
    assert teacher_of(made).runtime == "onnx"
    prints(
        capsys, "embed", images, "--model", made, "--out", tmp_path / "store", "--runtime", "torch"
    )
    assert teacher_of(made).runtime == "onnx"


# --- teachers ---------------------------------------------------------------------------


@pytest.mark.usefixtures("colour_teachers")
def test_a_teacher_of_many_images_is_traced(tmp_path: Path) -> None:
    teacher = open_network(TEACHER)
    assert for_many(teacher, 10) is teacher
    fast = for_many(teacher, 1000)
    assert (fast.runtime, runtime_of(teacher)) == ("onnx", "onnx")
    assert fast is for_many(teacher, 10)  # traced already
    assert fast.fingerprint() == teacher.fingerprint()
    pixels = drawn_pixels(teacher.preprocess, 9)
    np.testing.assert_allclose(fast.embed(pixels), teacher.embed(pixels), atol=1e-5)
    assert fast.in_torch().module is teacher.module


@pytest.mark.usefixtures("colour_teachers")
def test_a_list_of_many_images_is_embedded_by_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whiten.models.opening._FEWEST", 3)
    encoder = whiten.load(TEACHER)
    images = [np.full((40, 40, 3), level, np.uint8) for level in (10, 90, 200)]
    few = encoder.embed(images[:2])
    assert encoder.runtime == "torch"
    many = encoder.embed(images)
    assert encoder.runtime == "onnx"
    np.testing.assert_allclose(many[:2], few, atol=1e-5)


@pytest.mark.usefixtures("colour_teachers")
def test_stores_of_traced_teachers_continue_those_of_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = write_groups(tmp_path / "images", {"a": 3, "b": 3})
    items = find_items(images)
    plain = open_model(TEACHER, runtime="torch")
    embed(items[:2], plain, tmp_path / "store")
    monkeypatch.setattr("whiten.models.opening._FEWEST", 1)
    assert isinstance(plain, Teacher) and for_many(plain, 1000) is plain  # torch was asked for
    teacher = open_model(TEACHER)
    store = embed(items, teacher, tmp_path / "store")
    assert runtime_of(teacher) == "onnx"
    found = store.gather(items.ids.to_pylist())
    expected = embed(items, plain, tmp_path / "plain").gather(items.ids.to_pylist())
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_teachers_that_cannot_be_traced_stay_in_torch(
    colour_teachers: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(graphs, "_LEAST_COSINE", 1.1)
    teacher = open_network(TEACHER)
    with caplog.at_level(logging.WARNING, "whiten.models"):
        assert for_many(teacher, 1000) is teacher
        assert for_many(teacher, 1000) is teacher
    assert caplog.text.count(f"{TEACHER} runs in torch: the graph's lowest cosine") == 1
    with pytest.raises(TeacherError, match="cannot run in onnx"):
        open_model(TEACHER, runtime="onnx")
