"""Export, the whole way: files, embeddings, figures, refusals."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import whiten
from command_line import Captured, fails, prints
from exporting import DIM, write_student
from helpers import write_groups
from whiten.datasets.finding import find_items
from whiten.errors import ConfigError, StoreError, TeacherError
from whiten.evaluation.evaluate import evaluate
from whiten.export import Exports, export
from whiten.export.images import split
from whiten.export.parity import LEAST_COSINE
from whiten.models.exported import Exported, read_manifest
from whiten.models.student import load_student, save_student

ALL = ["onnx", "openvino", "torchscript"]
pytestmark = pytest.mark.slow

# How far single values may lie from torch's.
EXACT = {"fp32": 1e-5, "fp16": 3e-2, "bf16": 0.1, "int8": 0.5}


@pytest.fixture(autouse=True, scope="module")
def short_turns() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("whiten.export.speed.ROUNDS", 1)
        patch.setattr("whiten.export.speed.SECONDS", 0.0)
        patch.setattr("whiten.export.speed.PAUSE", 0.0)
        yield


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_student(tmp_path_factory.mktemp("run") / "student")


@pytest.fixture(scope="module")
def groups() -> dict[str, int]:
    return {f"group{number}": 4 for number in range(12)}


@pytest.fixture(scope="module")
def done(student: Path, shared_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Exports:
    pytest.importorskip("openvino")
    return export(
        student,
        tmp_path_factory.mktemp("out") / "exported",
        formats=ALL,
        precisions=["int8", "fp16", "fp32", "bf16"],
        images=shared_images,
        int8_floor=-1,
        int8_loss=1,
    )


def files_of(folder: Path) -> list[str]:
    return [str(path) for path in sorted(folder.rglob("*.png"))]


def test_every_format_has_the_precisions_that_it_can(done: Exports) -> None:
    assert [(v.format, v.precision) for v in done.manifest.variants] == [
        *(("onnx", precision) for precision in ("fp32", "fp16", "int8")),
        *(("openvino", precision) for precision in ("fp32", "bf16", "fp16", "int8")),
        *(("torchscript", precision) for precision in ("fp32", "bf16", "fp16")),
    ]
    assert done.left_out == ["onnx has no bf16: left out", "torchscript has no int8: left out"]
    there = {path.name for path in done.folder.iterdir()}
    named = {name for v in done.manifest.variants for name in v.files}
    assert there == named | {"export.json", "README.md"}
    assert read_manifest(done.folder) == done.manifest


def test_embeddings_are_those_of_torch(done: Exports, student: Path, shared_images: Path) -> None:
    files = files_of(shared_images)
    expected = whiten.load(student).embed(files)
    for variant in done.manifest.variants:
        model = Exported(done.folder, format=variant.format, precision=variant.precision)
        found = model.embed(files)
        assert found.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
        np.testing.assert_allclose(found, expected, atol=EXACT[variant.precision])
        # Through the verbs' way in, too; and each alone, as the batch is dynamic.
        uri = f"{variant.format}:{done.folder}?precision={variant.precision}"
        np.testing.assert_array_equal(whiten.load(uri).embed(files), found)
        np.testing.assert_allclose(
            model.embed(files[7]), found[7:8], atol=EXACT[variant.precision], err_msg=uri
        )
        assert whiten.load(uri).parts[0].teacher.fingerprint() == model.fingerprint()


def test_fp32_asks_what_torch_has_indexed(
    done: Exports, student: Path, shared_images: Path, tmp_path: Path
) -> None:
    whiten.Index.build(str(student), shared_images, tmp_path / "index")
    query = find_items(shared_images)[5]
    exported = whiten.load(f"onnx:{done.folder}?precision=fp32")
    asking = whiten.Index.open(tmp_path / "index", exported)
    assert asking.search(query.path, k=1)[0][0].id == query.id
    with pytest.raises(StoreError, match="was made with another model"):
        whiten.Index.open(tmp_path / "index", whiten.load(f"onnx:{done.folder}?precision=int8"))
    with pytest.raises(StoreError, match="was made with another model"):
        asking.add(shared_images)  # it asks, and does not add


def test_the_most_exact_precision_is_the_default(done: Exports) -> None:
    assert Exported(done.folder).variant.precision == "fp32"
    assert Exported(done.folder, precision="bf16").variant.format == "openvino"
    prints_ = {
        Exported(done.folder, format=v.format, precision=v.precision).fingerprint()
        for v in done.manifest.variants
    }
    assert len(prints_) == len(done.manifest.variants)


def test_parity_is_measured_on_held_out_images(
    done: Exports, student: Path, shared_images: Path
) -> None:
    held_out, calibration = split(find_items(shared_images))
    assert done.manifest.measured["held_out"] == len(held_out) == 24
    assert done.manifest.measured["calibration"] == len(calibration) == 24
    files = [item.path for item in held_out]
    reference = whiten.load(student).embed(files).astype(np.float64)
    for variant in done.manifest.variants:
        model = Exported(done.folder, format=variant.format, precision=variant.precision)
        found = model.embed(files).astype(np.float64)
        cosines = (reference * found).sum(axis=1)
        assert variant.parity["cosine"] == pytest.approx(cosines.mean(), abs=1e-6)
        assert variant.parity["lowest_cosine"] == pytest.approx(cosines.min(), abs=1e-6)
        a, b = (v - reference.mean(axis=0) for v in (reference, found))
        centred = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        assert variant.parity["centred"] == pytest.approx(centred.mean(), abs=1e-5)
    least = {v.precision: v.parity["lowest_cosine"] for v in done.manifest.variants}
    assert least["fp32"] >= 0.9999 and least["fp16"] >= 0.999


def test_retrieval_is_measured_on_groups(
    done: Exports, student: Path, shared_images: Path, tmp_path: Path
) -> None:
    rows = [f"{item.path},{item.group}" for item in split(find_items(shared_images))[0]]
    table = tmp_path / "held_out.csv"
    table.write_text("\n".join(["path,group", *rows]) + "\n")
    assert done.manifest.measured["map_by"] == "groups"
    expected = evaluate(str(student), table).figures["map"].value
    assert done.manifest.measured["torch"]["map"] == pytest.approx(expected)
    int8 = next(v for v in done.manifest.variants if v.precision == "int8")
    uri = f"{int8.format}:{done.folder}?precision=int8"
    found = evaluate(uri, table).figures["map"].value
    assert int8.parity["map"] == pytest.approx(found)
    assert int8.parity["map_lost"] == pytest.approx(expected - found)


def test_it_says_what_it_was_made_of(done: Exports, student: Path) -> None:
    teacher = whiten.load(student).parts[0].teacher
    assert done.manifest.source_fingerprint == teacher.fingerprint()
    assert done.manifest.preprocess == teacher.preprocess
    assert (done.manifest.dim, done.manifest.params) == (DIM, teacher.params)
    sizes = {(v.format, v.precision): v.bytes for v in done.manifest.variants}
    assert sizes["onnx", "int8"] < sizes["onnx", "fp16"] < sizes["onnx", "fp32"]
    for variant in done.manifest.variants:
        files = [done.folder / name for name in variant.files]
        assert sum(file.stat().st_size for file in files) == variant.bytes
        assert set(variant.speed) == {"1", "16"} and min(variant.speed.values()) > 0
    card = (done.folder / "README.md").read_text()
    assert "| onnx int8 |" in card and "int8 is calibrated on 24 others" in card
    assert "### test_efficientnet student, 8 dimensions" in card  # the student's own, below
    assert "#### Teachers" in card
    assert "fp16, computed in fp32" in card


def test_files_know_their_preprocessing(done: Exports) -> None:
    import onnx
    import openvino
    import torch

    expected = json.loads(json.dumps(done.manifest.preprocess.__dict__))
    graph = onnx.load(done.folder / "student-int8.onnx")
    facts = {entry.key: entry.value for entry in graph.metadata_props}
    assert json.loads(facts["whiten.preprocess"]) == expected
    assert facts["whiten.precision"] == "int8"
    assert facts["whiten.source_fingerprint"] == done.manifest.source_fingerprint
    model = openvino.Core().read_model(done.folder / "student-fp16.xml")
    assert json.loads(model.get_rt_info(["whiten", "preprocess"]).astype(str)) == expected
    assert model.get_rt_info(["whiten", "dim"]).astype(str) == str(DIM)
    extra = {"whiten.preprocess": "", "whiten.input": ""}
    with pytest.warns(FutureWarning):  # TorchScript is deprecated
        torch.jit.load(done.folder / "student-fp32.pt", _extra_files=extra)
    as_text = {k: v.decode() if isinstance(v, bytes) else v for k, v in extra.items()}
    assert json.loads(as_text["whiten.preprocess"]) == expected
    assert as_text["whiten.input"] == "normalised"


def test_normalisation_can_be_folded_in(
    done: Exports, student: Path, shared_images: Path, tmp_path: Path
) -> None:
    import onnxruntime

    out = tmp_path / "folded"
    kept = export(
        student,
        out,
        formats=ALL,
        precisions=["fp32", "int8"],
        images=shared_images,
        fold_normalisation=True,
        int8_floor=-1,
        int8_loss=1,
    )
    assert kept.manifest.input == "pixels"
    feed = onnxruntime.InferenceSession(out / "student-fp32.onnx").get_inputs()[0]
    assert (feed.type, feed.shape[1:]) == ("tensor(uint8)", [64, 64, 3])
    assert isinstance(feed.shape[0], str)
    files = files_of(shared_images)
    for name in ALL:
        plain = Exported(done.folder, format=name).embed(files)
        np.testing.assert_allclose(Exported(out, format=name).embed(files), plain, atol=1e-5)
    assert Exported(out).fingerprint() != Exported(done.folder).fingerprint()


# --- without images, again, refused -------------------------------------------------------


def test_without_images_made_up_ones_are_compared(student: Path, tmp_path: Path) -> None:
    kept = export(student, tmp_path / "out")
    known = kept.manifest.measured
    assert (known["held_out"], known["drawn"], known["map_by"]) == (0, 64, "neighbours")
    assert known["torch"]["map"] == 1
    assert kept.manifest.variants[0].parity["map"] == pytest.approx(1)
    assert any("synthetic images" in line for line in kept.lines())


def test_a_run_is_exported_by_its_folder(student: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("images: none\n")
    (run / "student").symlink_to(student, target_is_directory=True)
    assert export(run, tmp_path / "out").manifest.dim == DIM


def test_an_earlier_export_is_replaced(student: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(student, out, precisions=["fp16"])
    assert not (out / "student-fp32.onnx").exists()  # which is measured, not kept
    export(student, out)
    assert {path.name for path in out.iterdir()} == {
        "student-fp32.onnx",
        "export.json",
        "README.md",
    }
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_is_not_good_enough_is_not_written(
    capsys: Captured, student: Path, shared_images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = [
        "export",
        "--model",
        student,
        "--out",
        out,
        "--precision",
        "fp32",
        "int8",
        "--images",
        shared_images,
    ]
    assert "must be numbers, not nan" in fails(capsys, *arguments, "--int8-floor", "nan")
    line = fails(capsys, *arguments, "--int8-floor", "1.5")
    assert "onnx int8 is refused: its mean-centred cosine to torch is" in line
    assert "below the floor 1.5" in line and "--int8-floor" in line
    assert list(tmp_path.iterdir()) == []
    export(student, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    fails(capsys, *arguments, "--int8-floor", "1.5")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    line = fails(capsys, *arguments, "--int8-floor", "-1", "--int8-loss", "-2")
    assert "of the mAP, more than -2" in line


def test_wrong_options_are_one_line(
    capsys: Captured, student: Path, shared_images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for options, message in (
        (["--format", "onx"], "format must be one of onnx, openvino, torchscript, not 'onx'; did"),
        (["--precision", "fp8"], "precision must be one of fp32, bf16, fp16, int8, not 'fp8'"),
        (["--format", "torchscript", "--precision", "int8"], "torchscript has no int8: name one"),
        (["--precision", "int8"], "int8 is calibrated on images: add --images"),
        (["--images", tmp_path / "none"], "none"),
    ):
        assert message in fails(capsys, "export", "--model", student, "--out", out, *options)
    assert not out.exists()
    assert "is not a student folder" in fails(
        capsys, "export", "--model", shared_images, "--out", out
    )
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "note.txt").write_text("mine")
    assert "holds something else than an export" in fails(
        capsys, "export", "--model", student, "--out", foreign
    )
    assert "is a file" in fails(capsys, "export", "--model", student, "--out", foreign / "note.txt")
    assert [path.name for path in foreign.iterdir()] == ["note.txt"]


def test_one_image_is_too_few_for_int8(student: Path, tmp_path: Path) -> None:
    alone = write_groups(tmp_path / "alone", {"a": 1})
    with pytest.raises(ConfigError, match="has too few: add more"):
        export(student, tmp_path / "out", precisions=["int8"], images=alone)
    kept = export(student, tmp_path / "out", images=alone)
    parity = kept.manifest.variants[0].parity
    assert parity["centred"] is None and parity["map"] is None
    assert any("mAP is left out" in line for line in kept.lines())


def test_images_that_cannot_be_read_are_named(
    capsys: Captured, student: Path, shared_images: Path, tmp_path: Path
) -> None:
    some = write_groups(tmp_path / "some", {"a": 3, "b": 3, "c": 3, "d": 3})
    for group in "abcd":
        (some / group / "broken.png").write_bytes(b"no image")
    out, err = prints(
        capsys, "export", "--model", student, "--out", tmp_path / "out", "--images", some
    )
    assert "onnx fp32" in out and out.endswith(f"{tmp_path / 'out'}\n")
    assert "4 images skipped:" in err


def test_fp32_must_be_exact(student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LEAST_COSINE, "fp32", 1.1)
    with pytest.raises(TeacherError, match=r"onnx fp32 is refused: its lowest cosine .* below 1.1"):
        export(student, tmp_path / "out")


def test_a_precision_that_is_not_exact_is_refused_by_its_name(tmp_path: Path) -> None:
    net, config = load_student(write_student(tmp_path / "small"))
    layers = list(net.backbone.modules())
    last = [layer for layer in layers if isinstance(layer, torch.nn.BatchNorm2d)][-1]
    with torch.no_grad():  # a scale that the normalisation takes away, except in half precision
        for parameter in last.parameters():
            parameter.mul_(1e7)
    save_student(net, config, tmp_path / "large", "")
    reason = "onnx fp16 is refused: .*: export another precision"
    with pytest.raises(TeacherError, match=reason):
        export(tmp_path / "large", tmp_path / "out", precisions=["fp32", "fp16"])
    assert not (tmp_path / "out").exists()


def test_json(capsys: Captured, student: Path, tmp_path: Path) -> None:
    out, _ = prints(capsys, "export", "--model", student, "--out", tmp_path / "out", "--json")
    facts = json.loads(out)
    assert facts["folder"] == str(tmp_path / "out")
    [variant] = facts["variants"]
    assert (variant["format"], variant["precision"]) == ("onnx", "fp32")
    assert variant["parity"]["lowest_cosine"] > 0.9999
    assert facts["measured"]["torch"]["speed"]["16"] > 0


def test_the_same_student_gives_the_same_files(
    done: Exports, student: Path, shared_images: Path, tmp_path: Path
) -> None:
    again = export(
        student,
        tmp_path / "again",
        formats=["onnx", "openvino"],  # TorchScript numbers its classes
        precisions=["fp32", "fp16", "int8"],
        images=shared_images,
        int8_floor=-1,
        int8_loss=1,
    )
    files = {(v.format, v.precision): v.files for v in done.manifest.variants}
    for variant in again.manifest.variants:
        assert variant.files == files[variant.format, variant.precision]
