"""Students without torch: the graph next to their weights, whole, damaged, foreign or missing."""

from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import whiten
from command_line import Captured, fails, prints
from exporting import DIM, teacher_of, write_student
from helpers import write_groups
from whiten.errors import MissingExtraError, TeacherError
from whiten.models import graphs, student_graph
from whiten.models.choice import describe_auto
from whiten.models.graphs import UntraceableError
from whiten.models.registry import open_network
from whiten.models.student_folder import read_student
from whiten.models.student_graph import finish_student
from whiten.models.teacher import drawn_pixels

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

pytestmark = pytest.mark.usefixtures("on_a_cpu")


@pytest.fixture
def student(made: Path, tmp_path: Path) -> Path:
    """A copy of it, for a test to change as it likes."""
    return Path(shutil.copytree(made, tmp_path / "student"))


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
