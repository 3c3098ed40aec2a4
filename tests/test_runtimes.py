"""Students without torch: the graph beside their weights, the choice of a runtime, and teachers."""

from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

import whiten
from command_line import Captured, fails, prints
from exporting import DIM, write_student
from helpers import TEACHER, write_groups
from whiten.datasets.finding import find_items
from whiten.embedding.embed import embed
from whiten.errors import ConfigError, MissingExtraError, TeacherError
from whiten.models import choice, graphs, runtimes, student_graph
from whiten.models.choice import Choice, choice_restored, choose, describe_auto
from whiten.models.graphs import UntraceableError
from whiten.models.opening import for_many, open_model, runtime_of
from whiten.models.registry import open_network
from whiten.models.student_folder import read_student
from whiten.models.student_graph import finish_student
from whiten.models.teacher import Teacher, drawn_pixels
from whiten.utils import devices

SOURCE = Path(__file__).parent.parent / "src"
LIGHT = """
import sys
from whiten.cli import main

for verb in sys.stdin.read().splitlines():
    main(verb.split("|"))
    heavy = {"torch", "torchvision", "timm"} & set(sys.modules)
    assert not heavy, (verb, heavy)
"""
SERVE = """
import sys
from whiten.index import Index
from whiten.serve import Settings, create_app

index = Index.open(sys.argv[1])
create_app(index, Settings())
assert len(index.encoder.embed([sys.argv[2]])) == 1
assert not {"torch", "torchvision", "timm"} & set(sys.modules)
"""


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whiten.models.choice.may_have_gpu", lambda: False)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student with its graph."""
    folder = write_student(tmp_path_factory.mktemp("made") / "student")
    assert finish_student(folder) == ""
    return folder


@pytest.fixture
def student(made: Path, tmp_path: Path) -> Path:
    """A copy of it, for a test to change as it likes."""
    return Path(shutil.copytree(made, tmp_path / "student"))


def teacher_of(folder: Path, runtime: str | None = None) -> Teacher:
    teacher = whiten.load(folder, runtime=runtime).parts[0].teacher
    assert isinstance(teacher, Teacher)
    return teacher


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# --- the graph of a student -------------------------------------------------------------


def test_the_graph_is_the_student_in_torch(made: Path) -> None:
    fast, plain = teacher_of(made), teacher_of(made, "torch")
    assert (fast.runtime, plain.runtime) == ("onnx", "torch")
    for name in ("name", "uri", "dim", "preprocess", "licence", "params", "compatible_with"):
        assert getattr(fast, name) == getattr(plain, name), name
    assert fast.fingerprint() == plain.fingerprint()
    assert fast.count_macs() == plain.count_macs() != 0
    pixels = drawn_pixels(plain.preprocess, 7)
    np.testing.assert_allclose(fast.embed(pixels), plain.embed(pixels), atol=1e-5)
    again = pickle.loads(pickle.dumps(fast))
    assert again.runtime == "onnx"
    np.testing.assert_array_equal(again.embed(pixels), fast.embed(pixels))
    assert fast.in_torch().module is not None
    assert fast.in_torch().fingerprint() == fast.fingerprint()


def test_the_graph_is_a_valid_onnx_model(made: Path) -> None:
    onnx.checker.check_model(onnx.load(made / "model.onnx"))
    alone = open_network(f"onnx:{made / 'model.onnx'}")
    assert alone.dim == DIM and alone.preprocess == teacher_of(made).preprocess
    pixels = drawn_pixels(alone.preprocess, 3)
    np.testing.assert_allclose(alone.embed(pixels), teacher_of(made).embed(pixels), atol=1e-6)


def test_openvino_runs_the_same_graph(made: Path) -> None:
    pytest.importorskip("openvino")
    fast, plain = teacher_of(made, "openvino"), teacher_of(made, "torch")
    assert fast.runtime == "openvino" and fast.fingerprint() == plain.fingerprint()
    pixels = drawn_pixels(plain.preprocess, 5)
    np.testing.assert_allclose(fast.embed(pixels), plain.embed(pixels), atol=1e-5)


@pytest.mark.slow
def test_no_verb_imports_torch_for_a_student(made: Path, tmp_path: Path) -> None:
    images = write_groups(tmp_path / "images", {"a": 3, "b": 3})
    index, photo = tmp_path / "index", images / "a" / "0.png"
    verbs = [
        ["index", images, "--model", made, "--out", index, "--json"],
        ["search", photo, "--index", index, "--json"],
        ["search", photo, "--in", images, "--model", made],
        ["embed", images, "--model", made, "--out", tmp_path / "store"],
        ["dedup", images, "--model", made, "--threshold", "0.9"],
        ["compact", images, "--model", made, "--kinds", "int8"],
        ["evaluate", images, "--model", made, "--json"],
    ]
    lines = "\n".join("|".join(map(str, verb)) for verb in verbs)
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "CUDA_VISIBLE_DEVICES": ""}
    for code, arguments, text in ((LIGHT, [], lines), (SERVE, [index, photo], "")):
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            input=text,
            capture_output=True,
            text=True,
            env=environment,
        )
        assert done.returncode == 0, done.stderr


def test_indexes_and_stores_of_one_runtime_serve_the_other(
    made: Path, images: Path, tmp_path: Path, capsys: Captured
) -> None:
    index, store = tmp_path / "index", tmp_path / "store"
    for runtime, other in (("torch", "onnx"), ("onnx", "torch")):
        shutil.rmtree(index, ignore_errors=True)
        told = prints(
            capsys, "index", images, "--model", made, "--out", index, "--json", "--runtime", runtime
        )
        assert json.loads(told[0])["runtime"] == runtime
        query = ("search", images / "a" / "0.png", "--index", index, "--json", "--k", "3")
        found = [
            json.loads(prints(capsys, *query, "--runtime", one)[0]) for one in (runtime, other)
        ]
        assert [hit["id"] for hit in found[0]] == [hit["id"] for hit in found[1]]
        assert found[1][0]["score"] == pytest.approx(1, abs=1e-5)
    for runtime in ("torch", "onnx"):
        command = ("embed", images, "--model", made, "--out", store, "--precision", "32", "--json")
        told = prints(capsys, *command, "--runtime", runtime)
        assert json.loads(told[0])["runtime"] == runtime
    assert len(list(store.glob("part-*.parquet"))) == 1


# --- damaged, foreign and missing graphs ------------------------------------------------


def test_an_index_whose_student_has_moved_says_how_to_name_it(
    student: Path, images: Path, tmp_path: Path, capsys: Captured
) -> None:
    index, photo = tmp_path / "index", images / "a" / "0.png"
    prints(capsys, "index", images, "--model", student, "--out", index)
    moved = student.rename(tmp_path / "moved")
    line = fails(capsys, "search", photo, "--index", index)
    assert "is not a student folder" in line and "elsewhere now, name it with --model" in line
    assert "a/0.png" in prints(capsys, "search", photo, "--index", index, "--model", moved)[0]


def test_a_graph_of_other_weights_is_never_used(student: Path, tmp_path: Path) -> None:
    other = write_student(tmp_path / "other", seed=1)
    shutil.copy(student / "model.onnx", other / "model.onnx")
    pixels = drawn_pixels(teacher_of(student).preprocess, 2)
    expected = teacher_of(other, "torch").embed(pixels)
    np.testing.assert_allclose(teacher_of(other, "onnx").embed(pixels), expected, atol=1e-5)
    assert (other / "model.onnx").read_bytes() != (student / "model.onnx").read_bytes()


@pytest.mark.parametrize("where", [0, 1000, -100, -70, -20, -1])
def test_a_damaged_graph_is_replaced(student: Path, where: int) -> None:
    whole = (student / "model.onnx").read_bytes()
    damaged = bytearray(whole)
    damaged[where] ^= 1
    (student / "model.onnx").write_bytes(damaged)
    assert teacher_of(student).runtime == "onnx"
    assert (student / "model.onnx").read_bytes() == whole


@pytest.mark.parametrize("content", [b"", b"text", b"0" * 9, b"0" * 40, b"0" * 200])
def test_something_else_is_replaced(student: Path, content: bytes) -> None:
    (student / "model.onnx").write_bytes(content)
    assert teacher_of(student).runtime == "onnx"
    assert student_graph._read_graph(read_student(student)) is not None


def test_an_old_student_gets_its_graph_on_first_use(student: Path) -> None:
    (student / "model.onnx").unlink()
    before = names(student)
    assert teacher_of(student).runtime == "onnx"
    assert names(student) == before | {"model.onnx"}
    mode = (student / "model.safetensors").stat().st_mode
    assert (student / "model.onnx").stat().st_mode == mode


def test_where_the_folder_is_read_only_the_graph_stays_in_memory(
    student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (student / "model.onnx").unlink()

    def refuse(*_: Any, dir: Path | None = None, **__: Any) -> Any:  # noqa: A002
        assert dir == student
        raise PermissionError("read-only")

    monkeypatch.setattr(student_graph.tempfile, "mkstemp", refuse)
    before = names(student)
    assert teacher_of(student).runtime == "onnx"
    assert names(student) == before


def test_a_student_that_cannot_be_traced_runs_in_torch(
    student: Path,
    images: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: Captured,
) -> None:
    (student / "model.onnx").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(graphs, "_LEAST_COSINE", 1.1)
        reason = finish_student(student)
    assert "lowest cosine to torch is 1.00000" in reason
    assert f"Runs in torch alone: {reason}" in (student / "README.md").read_text()
    # Not tried again, as that takes seconds.
    monkeypatch.setattr(student_graph, "_trace", None)
    with caplog.at_level(logging.WARNING, "whiten.models"):
        assert teacher_of(student).runtime == "torch"
    assert f"runs in torch: {reason}" in caplog.text
    with pytest.raises(TeacherError, match=r"cannot run in onnx .*: use --runtime torch"):
        whiten.load(student, runtime="onnx")
    photo, out = images / "a" / "0.png", student.parent / "index"
    fails(capsys, "index", images, "--model", student, "--out", out, "--runtime", "onnx")
    assert not out.exists() and photo.exists()


def test_tracing_is_tried_again_once_what_prevented_it_may_be_gone(
    student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (student / "model.onnx").unlink()

    def fail(error: Exception) -> Any:
        def trace(*_: Any) -> None:
            raise UntraceableError("no") from error

        return trace

    for lack in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")):
        with monkeypatch.context() as patch:
            patch.setattr(student_graph, "_trace", fail(lack))
            assert finish_student(student) == "no"
        assert not (student / "no-graph.txt").exists()
    with monkeypatch.context() as patch:
        patch.setattr(student_graph, "_trace", fail(ValueError("unsupported operator")))
        assert finish_student(student) == "no"
        assert teacher_of(student).runtime == "torch"
    with monkeypatch.context() as patch:
        patch.setattr(student_graph, "version", lambda library: "99.0")  # an upgrade
        assert teacher_of(student).runtime == "onnx"


def test_without_onnx_runtime_students_run_in_torch(
    student: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    (student / "model.onnx").unlink()
    with caplog.at_level(logging.WARNING, "whiten.models"):
        assert teacher_of(student).runtime == "torch"
    assert "runs in torch" in caplog.text
    assert not (student / "no-graph.txt").exists()  # once installed, it will run
    with pytest.raises(MissingExtraError, match="pip install"):
        whiten.load(student, runtime="onnx")
    assert describe_auto().startswith("auto is torch")


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
