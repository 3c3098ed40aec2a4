"""Damaged artefacts: each is refused in a line or loads to exactly what was saved, never wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from store_helpers import content_hashes
from whiten.errors import RunError, StoreError, TeacherError, WhitenError, WhiteningError
from whiten.media.reading import Skipped
from whiten.models.student import build_student, load_student, save_student
from whiten.runs.folder import RunFolder
from whiten.runs.spec import DistillSpec
from whiten.store.shards import Origin, Row
from whiten.store.store import Store
from whiten.whitening.whitener import Whitener

FUZZ = settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
Read = Callable[[], Any]


# --- ways to damage a file --------------------------------------------------------------------


@st.composite
def damages(draw: st.DrawFn, content: bytes) -> bytes:
    """The content with a flipped bit, a part lost, doubled, zeroed or overwritten."""
    start = draw(st.integers(0, len(content) - 1))
    end = start + draw(st.integers(1, 64))
    head, part, tail = content[:start], content[start:end], content[end:]
    match draw(st.sampled_from(["flip", "cut", "lose", "double", "zero", "write"])):
        case "flip":
            return head + bytes([part[0] ^ 1 << draw(st.integers(0, 7))]) + part[1:] + tail
        case "cut":
            return head
        case "lose":
            return head + tail
        case "double":
            return head + part + part + tail
        case "zero":
            return head + bytes(len(part)) + tail
    return head + draw(st.binary(min_size=1, max_size=16)) + tail


def check_damaged(data: st.DataObject, file: Path, content: bytes, read: Read) -> None:
    """Damage a file and read it: refused, or exactly what was there."""
    whole = read()
    file.write_bytes(data.draw(damages(content)))
    try:
        found = read()
    except WhitenError as error:
        assert str(error) and "\n" not in str(error)
    else:
        assert found == whole
    finally:
        file.write_bytes(content)


# --- stores -----------------------------------------------------------------------------------

ORIGIN = Origin(uri="timm:x", fingerprint="f" * 32, dim=6, plan="p" * 32, plan_seed=3)


def make_store(folder: Path) -> Path:
    store = Store.create_or_resume(folder, ORIGIN)
    vectors = np.random.default_rng(0).standard_normal((8, 6)).astype(np.float32)
    rows = [
        Row(f"g/{n}.png", f"/photos/{n}.png", "g" if n % 2 else None, n % 3, f"{n:032x}", vector)
        for n, vector in enumerate(vectors)
    ]
    store.append(rows, [Skipped("bad.png", "empty file")])
    return store.shards[0].path


def read_store(folder: Path) -> Any:
    store = Store.open(folder)
    blocks = [(ids, views, vectors.tobytes()) for ids, views, vectors in store.blocks()]
    return store.origin, store.skipped, content_hashes(store), blocks


@FUZZ
@given(data=st.data())
def test_a_damaged_shard(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("store")
    file = make_store(folder)
    check_damaged(data, file, file.read_bytes(), lambda: read_store(folder))


TABLES = {
    "no columns": {},
    "no metadata": {"id": ["a"], "view": [0], "embedding": [[1.0]]},
    "nulls": {"id": [None], "view": [None], "embedding": [None]},
    "other types": {"id": [1], "view": ["a"], "embedding": [3]},
}


@pytest.mark.parametrize("columns", TABLES.values(), ids=TABLES.keys())
@pytest.mark.parametrize("keeps_header", [True, False])
def test_a_shard_of_another_schema(
    tmp_path: Path, columns: dict[str, Any], keeps_header: bool
) -> None:
    file = make_store(tmp_path / "s")
    header = pq.read_schema(file).metadata if keeps_header else None
    pq.write_table(pa.table(columns).replace_schema_metadata(header), file)
    with pytest.raises(StoreError, match=r"part-000000\.parquet"):
        read_store(tmp_path / "s")


# --- whiteners ----------------------------------------------------------------------------------


def make_whitener(path: Path) -> None:
    samples = np.random.default_rng(0).standard_normal((100, 5))
    whitener = Whitener(3, shrinkage=0.1).fit(samples)
    whitener.metadata = {"model": "timm:x", "fingerprint": "f" * 32}
    whitener.save(path)


def read_whitener(path: Path) -> Any:
    found = Whitener.load(path)
    assert found.mean_ is not None
    arrays = (found.mean_, found.projection_, found.eigenvalues_)
    facts = (found.n_, found.dim, found.shrinkage, found.spectrum_mean_, found.metadata)
    return [array.tobytes() for array in arrays], facts


@FUZZ
@given(data=st.data())
def test_a_damaged_whitener(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    file = tmp_path_factory.mktemp("whitener") / "w.safetensors"
    make_whitener(file)
    check_damaged(data, file, file.read_bytes(), lambda: read_whitener(file))


OTHER_TENSORS: dict[str, Callable[[dict[str, torch.Tensor]], Any]] = {
    "another type": lambda tensors: {name: t.half() for name, t in tensors.items()},
    "whole numbers": lambda tensors: {name: t.long() for name, t in tensors.items()},
    "another shape": lambda tensors: {name: t.unsqueeze(0) for name, t in tensors.items()},
    "a number short": lambda tensors: {name: t[1:] for name, t in tensors.items()},
    "no number": lambda tensors: {name: t * float("nan") for name, t in tensors.items()},
    "doubled": lambda tensors: {name: t * 2 for name, t in tensors.items()},
    "one tensor": lambda tensors: dict(list(tensors.items())[:1]),
}


@pytest.mark.parametrize("change", OTHER_TENSORS.values(), ids=OTHER_TENSORS.keys())
def test_a_whitener_of_other_tensors(tmp_path: Path, change: Callable[..., Any]) -> None:
    from safetensors import safe_open

    file = tmp_path / "w.safetensors"
    make_whitener(file)
    with safe_open(file, framework="pt") as opened:
        header = opened.metadata()
    tensors = {name: t.contiguous() for name, t in change(load_file(file)).items()}
    save_file(tensors, file, metadata=header)
    with pytest.raises(WhiteningError, match=r"w\.safetensors"):
        Whitener.load(file)


# --- students -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student's folder; who damages it mends it."""
    net, config = build_student("timm:test_efficientnet?pretrained=0", dim=4, size=32)
    folder = tmp_path_factory.mktemp("run") / "student"
    save_student(net, config, folder, "a card")
    return folder


def read_student(folder: Path) -> Any:
    net, config = load_student(folder)
    return config, {name: value.numpy().tobytes() for name, value in net.state_dict().items()}


@settings(FUZZ, max_examples=60)
@given(data=st.data())
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_damaged_student(student: Path, name: str, data: st.DataObject) -> None:
    file = student / name
    check_damaged(data, file, file.read_bytes(), lambda: read_student(student))


REMEDY = re.compile(r".*distil again or restore it.*")  # on one line


def refusal(folder: Path, file: Path, content: bytes) -> str:
    """What a student's folder with other content in one file is refused with."""
    whole = file.read_bytes()
    file.write_bytes(content)
    try:
        with pytest.raises(TeacherError) as caught:
            load_student(folder)
        return str(caught.value)
    finally:
        file.write_bytes(whole)


@pytest.mark.parametrize("change", OTHER_TENSORS.values(), ids=OTHER_TENSORS.keys())
def test_a_student_of_other_tensors(
    student: Path, tmp_path: Path, change: Callable[..., Any]
) -> None:
    state = load_file(student / "model.safetensors")
    weights = {name: t for name, t in state.items() if t.is_floating_point() and t.ndim}
    changed = {name: t.contiguous() for name, t in change(weights).items()}
    save_file(state | changed if len(changed) > 1 else changed, tmp_path / "w.safetensors")
    content = (tmp_path / "w.safetensors").read_bytes()
    assert REMEDY.fullmatch(refusal(student, student / "model.safetensors", content))


CHANGES: list[dict[str, Any]] = [
    {"architecture": "test_resnet"},
    {"dim": 5},
    {"dim": "4"},
    {"pool": "avg"},
    {"preprocess": {"size": [32, 32]}},
    {"preprocess": 3},
    {"teachers": None},
    {"checksum": None},
    {"more": 1},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_a_student_of_another_configuration(student: Path, change: dict[str, Any]) -> None:
    file = student / "config.json"
    facts = json.loads(file.read_text())
    assert REMEDY.fullmatch(refusal(student, file, json.dumps({**facts, **change}).encode()))


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'"x"', b"\xff", b"[" * 100_000, b"NaN"])
def test_a_student_without_a_configuration(student: Path, content: bytes) -> None:
    assert REMEDY.fullmatch(refusal(student, student / "config.json", content))


@pytest.mark.parametrize("change", [{}, {"dim": "4"}, {"pool": "max"}, {"preprocess": {"size": 3}}])
def test_a_student_from_before_there_were_checksums(student: Path, change: dict[str, Any]) -> None:
    file = student / "config.json"
    whole = file.read_bytes()
    facts = json.loads(whole)
    del facts["checksum"]
    content = json.dumps({**facts, "format": 1, **change}).encode()
    if change:
        assert REMEDY.fullmatch(refusal(student, file, content))
        return
    expected = read_student(student)
    file.write_bytes(content)
    assert read_student(student) == expected
    file.write_bytes(whole)


def test_a_student_of_a_later_version(student: Path) -> None:
    file = student / "config.json"
    whole = file.read_bytes()
    file.write_text(json.dumps({**json.loads(whole), "format": 9}))
    with pytest.raises(TeacherError, match="later version of whiten: upgrade"):
        load_student(student)
    file.write_bytes(whole)


# --- run folders --------------------------------------------------------------------------------

SPEC = DistillSpec(teachers=["demo:mobilenetv2"])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run with a checkpoint and a log; who damages it mends it."""
    made = RunFolder(tmp_path_factory.mktemp("runs") / "run")
    made.begin("photos", SPEC, resume=False, overwrite=False)
    draw = torch.Generator().manual_seed(0)
    model = {f"layer{n}": torch.randn(7, 5, generator=draw) for n in range(3)}
    made.save_checkpoint({"step": 3, "model": model, "optimizer": {}, "ema": {}})
    log = [{"step": n, "loss": 1 / n, "wins": {"a": 1.0}} for n in (1, 2, 3)]
    made.metrics.write_text("".join(json.dumps(record) + "\n" for record in log))
    return made


def read_checkpoint(run: RunFolder) -> Any:
    state = run.load_checkpoint()
    return state["step"], {name: t.numpy().tobytes() for name, t in state["model"].items()}


@FUZZ
@given(data=st.data())
def test_a_damaged_checkpoint(run: RunFolder, data: st.DataObject) -> None:
    file = run.checkpoint
    check_damaged(data, file, file.read_bytes(), lambda: read_checkpoint(run))


def test_a_checkpoint_of_something_else(run: RunFolder) -> None:
    whole = run.checkpoint.read_bytes()
    for other in ({"step": 3}, [1, 2], torch.zeros(3)):
        torch.save(other, run.checkpoint)
        with pytest.raises(RunError, match=r"last\.ckpt is damaged.*delete it"):
            run.load_checkpoint()
    run.checkpoint.write_bytes(whole)


def test_a_checkpoint_belongs_to_its_options(run: RunFolder) -> None:
    whole = run.config.read_bytes()
    run.config.write_bytes(whole.replace(b"seed: 0", b"seed: 1"))
    assert run.read_config()[1].seed == 1
    with pytest.raises(RunError, match=r"config\.yaml has changed since the run was begun"):
        run.load_checkpoint()
    run.config.write_bytes(whole)
    assert run.load_checkpoint()["step"] == 3


@FUZZ
@given(data=st.data())
def test_a_damaged_log_is_read_as_far_as_it_goes(run: RunFolder, data: st.DataObject) -> None:
    whole = run.metrics.read_bytes()
    run.metrics.write_bytes(data.draw(damages(whole) | st.binary(max_size=40)))
    for record in run.read_metrics():
        assert isinstance(record["step"], int | float)
        assert isinstance(record["loss"], int | float)
    run.truncate_metrics(2)
    assert all(record["step"] <= 2 for record in run.read_metrics())
    run.metrics.write_bytes(whole)
    assert [record["loss"] for record in run.read_metrics()] == [1, 1 / 2, 1 / 3]
