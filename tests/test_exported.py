"""Exported folders: damaged, foreign and newer ones, missing libraries, and the verbs."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from command_line import Captured, fails, prints
from exporting import DIM, write_student
from helpers import draw
from whiten.embedding.opening import load
from whiten.errors import ConfigError, ImageError, MissingExtraError, TeacherError
from whiten.export.building import Builder
from whiten.models.exported import Exported, Manifest, manifest_text, open_variant
from whiten.models.registry import open_teacher
from whiten.models.student import as_teacher, load_student
from whiten.store.store import Store
from whiten.utils.hashing import fingerprint
from whiten.views.rendering import Preprocess

SOURCE = Path(__file__).parent.parent / "src"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export that was not measured, which takes no time."""
    root = tmp_path_factory.mktemp("whole")
    folder = root / "exported"
    folder.mkdir()
    student = write_student(root / "student")
    teacher = as_teacher(*load_student(student), f"whiten:{student}")
    manifest = Manifest(
        name="small",
        dim=DIM,
        preprocess=teacher.preprocess,
        input="normalised",
        licence="MIT",
        params=teacher.params or 0,
        source_fingerprint=teacher.fingerprint(),
        variants=[],
    )
    with Builder(student, manifest, np.zeros((0, 64, 64, 3), np.uint8)) as builder:
        variants = [builder.write(folder, "onnx", precision) for precision in ("fp16", "fp32")]
    manifest = dataclasses.replace(manifest, variants=variants)
    (folder / "export.json").write_text(manifest_text(manifest))
    return folder


@pytest.fixture
def exported(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "exported"))


@pytest.fixture(scope="module")
def groups() -> dict[str, int]:
    return dict.fromkeys("abc", 7)


# --- use --------------------------------------------------------------------------------


def test_the_verbs_give_the_very_same_embeddings(
    capsys: Captured, exported: Path, images: Path, tmp_path: Path
) -> None:
    model = f"onnx:{exported}"
    prints(capsys, "embed", images, "--teacher", model, "--out", tmp_path / "store")
    store = Store.open(tmp_path / "store")
    files = sorted(images.rglob("*.png"))
    ids = [file.relative_to(images).as_posix() for file in files]
    own = Exported(exported)
    np.testing.assert_array_equal(own.embed(files), store.gather(ids))
    assert store.origin.fingerprint == own.fingerprint()
    out, _ = prints(
        capsys, "search", files[5], "--student", model, "--in", images, "--index", tmp_path / "i"
    )
    assert out.splitlines()[0] == f"1.0000  {files[5]}"
    found = json.loads(prints(capsys, "evaluate", images, "--model", model, "--json")[0])
    assert (found["queries"], found["dim"]) == (21, DIM)
    facts = json.loads(prints(capsys, "teachers", model, "--json")[0])
    assert facts["fingerprint"] == own.fingerprint()
    assert facts["licence"] == "MIT"


def test_paths_pixels_and_pil_agree(exported: Path, images: Path) -> None:
    own = Exported(exported)
    path = images / "a" / "0.png"
    image = Image.open(path)
    pixels = np.asarray(image)
    found = own.embed([path, str(path), image, pixels])
    np.testing.assert_array_equal(found, np.broadcast_to(found[:1], found.shape))
    np.testing.assert_array_equal(own.embed(np.stack([pixels] * 3)), found[:3])
    assert own.embed([]).shape == (0, DIM)
    with pytest.raises(ImageError, match=r"cannot read .*none\.png"):
        own.embed("none.png")
    with pytest.raises(ImageError, match=r"must be \(h, w, 3\) uint8 RGB"):
        own.embed(np.zeros((4, 4, 3), np.float32))


def test_the_fingerprint_is_of_the_content(exported: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(exported, tmp_path / "moved")
    assert Exported(moved).fingerprint() == Exported(exported).fingerprint()
    manifest = Exported(exported).manifest
    other = dataclasses.replace(manifest.preprocess, interpolation="bilinear")
    text = manifest_text(dataclasses.replace(manifest, preprocess=other))
    (moved / "export.json").write_text(text)
    assert Exported(moved).fingerprint() != Exported(exported).fingerprint()
    half = Exported(exported, precision="fp16")
    assert half.fingerprint() != Exported(exported).fingerprint()
    assert open_teacher(f"onnx:{exported}?precision=fp16").fingerprint() == half.fingerprint()


def test_a_lone_file_is_still_a_teacher(exported: Path) -> None:
    teacher = open_teacher(f"onnx:{exported / 'student-fp32.onnx'}")
    assert (teacher.dim, teacher.preprocess.size) == (DIM, (64, 64))


def test_a_lone_file_is_shown_images_as_it_says(exported: Path, images: Path) -> None:
    manifest = Exported(exported).manifest
    assert manifest.preprocess.crop_fraction != Preprocess().crop_fraction
    lone = exported.with_name("lone.onnx")
    shutil.copy(exported / "student-fp32.onnx", lone)
    teacher = open_teacher(f"onnx:{lone}")
    assert teacher.preprocess == manifest.preprocess
    assert teacher.licence == "MIT"
    files = sorted(images.rglob("*.png"))
    np.testing.assert_allclose(load(f"onnx:{lone}").embed(files), Exported(exported).embed(files))
    with pytest.raises(ConfigError, match="says itself how images are shown to it: leave out size"):
        open_teacher(f"onnx:{lone}?size=64")
    with pytest.raises(ConfigError, match="is an exported student: write onnx:"):
        open_teacher(str(exported))


def test_a_lone_file_that_lies_or_normalises_is_refused(exported: Path, tmp_path: Path) -> None:
    import onnx

    graph = onnx.load(exported / "student-fp32.onnx")
    known = {entry.key: entry.value for entry in graph.metadata_props}
    for change, message in (
        ({"whiten.preprocess": "{"}, "is damaged, what it says of its input cannot be read"),
        ({"whiten.preprocess": '{"size": 3}'}, "is damaged, what it says of its input"),
        ({"whiten.format": "2"}, "has export format 2, this version reads 1: it is of a later"),
        ({"whiten.input": "pixels"}, "normalises pixels itself: name the folder"),
    ):
        onnx.helper.set_model_props(graph, known | change)
        onnx.save(graph, tmp_path / "lone.onnx")
        with pytest.raises(TeacherError, match=message):
            open_teacher(f"onnx:{tmp_path / 'lone.onnx'}")


# --- refused ----------------------------------------------------------------------------


def resealed(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    """A change of `export.json` with a checksum that fits."""

    def apply(folder: Path) -> None:
        facts = json.loads((folder / "export.json").read_text())
        del facts["checksum"]
        change(facts)
        facts["checksum"] = fingerprint(facts)
        (folder / "export.json").write_text(json.dumps(facts))

    return apply


def rewritten(change: Callable[[bytes], bytes], name: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / name).write_bytes(change((folder / name).read_bytes()))

    return apply


def _escape(facts: dict[str, Any]) -> None:
    facts["variants"][1]["files"] = {"../student-fp32.onnx": "0" * 32}


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "no manifest": (lambda f: (f / "export.json").unlink(), "is no exported student, it lacks"),
    "cut": (rewritten(lambda b: b[: len(b) // 2], "export.json"), "is damaged"),
    "empty": (rewritten(lambda b: b"", "export.json"), "is damaged"),
    "not text": (rewritten(lambda b: b"\xff\xfe" + b, "export.json"), "is damaged"),
    "a list": (rewritten(lambda b: b"[]", "export.json"), "is damaged"),
    "nested": (rewritten(lambda b: b"[" * 100_000, "export.json"), "is damaged"),
    "another digit": (
        rewritten(lambda b: b.replace(b'"dim": 8', b'"dim": 9'), "export.json"),
        "does not have the checksum",
    ),
    "newer": (resealed(lambda d: d.update(format=2)), "has export format 2, this version reads 1"),
    "no size": (resealed(lambda d: d["preprocess"].update(size=[64])), "size must be 2 values"),
    "no variants": (resealed(lambda d: d.update(variants=[])), "it holds no variant"),
    "a foreign variant": (resealed(lambda d: d["variants"][0].update(format="x")), "variant 'x'"),
    "an extra fact": (resealed(lambda d: d.update(more=1)), "is damaged"),
    "a file elsewhere": (resealed(_escape), "names files outside"),
    "the wrong dim": (resealed(lambda d: d.update(dim=9)), "expected (1, 9)"),
    "no model": (lambda f: (f / "student-fp32.onnx").unlink(), "lacks student-fp32.onnx"),
    "a cut model": (rewritten(lambda b: b[:-9], "student-fp32.onnx"), "is damaged, its content"),
    "a flipped bit": (
        rewritten(lambda b: b[:5000] + bytes([b[5000] ^ 1]) + b[5001:], "student-fp32.onnx"),
        "is damaged, its content",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_and_foreign_folders_are_refused(
    kind: str, capsys: Captured, exported: Path, images: Path, tmp_path: Path
) -> None:
    damage, message = DAMAGE[kind]
    damage(exported)
    with pytest.raises(TeacherError) as caught:
        Exported(exported).embed(images / "a" / "0.png")
    assert message in str(caught.value)
    line = fails(
        capsys, "search", images / "a" / "0.png", "--student", f"onnx:{exported}", "--in", images
    )
    assert message in line


def test_a_sound_file_that_is_no_graph_is_refused(exported: Path) -> None:
    manifest = Exported(exported).manifest
    file = exported / "student-fp32.onnx"
    file.write_bytes(b"no graph")
    variant = dataclasses.replace(manifest.variants[1], files={file.name: _hash(file)})
    with pytest.raises(TeacherError, match=r"student-fp32\.onnx cannot be opened"):
        open_variant(exported, manifest, variant)


def _hash(file: Path) -> str:
    from whiten.utils.hashing import hash_file

    return hash_file(file)


def test_what_is_not_there_is_named(exported: Path) -> None:
    with pytest.raises(TeacherError, match="holds no onnx int8, it holds onnx fp16, onnx fp32"):
        open_teacher(f"onnx:{exported}?precision=int8")
    with pytest.raises(TeacherError, match="holds no openvino, it holds"):
        open_teacher(f"openvino:{exported}")
    with pytest.raises(ConfigError, match=r"precision must be one of .* not 'fp31'; did you mean"):
        Exported(exported, precision="fp31")
    with pytest.raises(ConfigError, match="format must be one of"):
        Exported(exported, format="tensorrt")
    with pytest.raises(ConfigError, match="has no option 'size'"):
        open_teacher(f"onnx:{exported}?size=32")
    with pytest.raises(TeacherError, match="is no exported student"):
        open_teacher(f"openvino:{exported.parent / 'none'}")


@pytest.mark.parametrize(
    ("module", "extra", "scheme"),
    [("onnxruntime", "onnx", "onnx"), ("openvino", "openvino", "openvino")],
)
def test_a_missing_library_is_named(
    module: str, extra: str, scheme: str, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from whiten.models.runtimes import RUNTIMES

    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"pip install 'whiten\[{extra}\]'"):
        RUNTIMES[scheme](exported / "student-fp32.onnx", "fp32")


def test_openvino_tells_nobody(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    code = (
        "from whiten.models.runtimes import import_openvino; import sys; "
        "print(import_openvino().Core().available_devices, 'openvino_telemetry' in sys.modules)"
    )
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(SOURCE)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.endswith("False\n"), done.stderr
    assert "CPU" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_onnx_runtime_comes_without_telemetry(exported: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from whiten.models.exported import Exported; from PIL import Image; "
        "print(Exported(sys.argv[1], format='onnx').embed(Image.new('RGB', (32, 32))).shape)"
    )
    home = tmp_path / "home"
    home.mkdir()
    environment = {**os.environ, "HOME": str(home), "PYTHONPATH": str(SOURCE)}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    done = subprocess.run(
        [sys.executable, "-c", code, str(exported)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == f"(1, {DIM})\n", done.stderr
    assert list(home.iterdir()) == []


def test_a_drawn_image_is_no_file(exported: Path) -> None:
    assert Exported(exported).embed(draw(3)).shape == (1, DIM)
