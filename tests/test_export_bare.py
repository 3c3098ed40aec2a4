"""An exported folder where there is no torch: blocked in a process, and in an environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest

from exporting import write_student
from helpers import write_groups
from whiten.export import export
from whiten.models.exported import Exported
from whiten.store.store import Store

SOURCE = Path(__file__).parent.parent / "src"
CLASS_ALONE = ["numpy", "onnxruntime", "pillow"]
COMMAND_LINE = ["cyclopts", "pyarrow", "pyyaml", "rich"]

# Only these, the standard library, and what they import themselves.
ONLY = """
import sys

class Bare:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in {blocked} or (strict and path is None and top not in {allowed}):
            raise ModuleNotFoundError(f"no module named {{name!r}}", name=name)

strict = {strict}
sys.meta_path.insert(0, Bare())
"""
BLOCKED = {
    *("torch", "torchvision", "timm", "scipy", "safetensors", "matplotlib", "lightning_fabric"),
    *("onnx", "sklearn", "transformers", "open_clip"),
}
EMBED = """
import sys
import numpy as np
from whiten.models.exported import Exported

student = Exported(sys.argv[1])
np.save(sys.argv[2], student.embed(sys.argv[3:]))
print(student.fingerprint())
foreign = {"torch", "pyarrow", "yaml", "rich", "cyclopts", "onnx", "scipy"} & set(sys.modules)
assert not foreign, foreign
"""
MAIN = "from whiten.cli import main; main()"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, and a student that was exported on them."""
    root = tmp_path_factory.mktemp("bare")
    images = write_groups(root / "images", {"a": 6, "b": 6, "c": 6})
    student = write_student(root / "student")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("whiten.export.speed.ROUNDS", 1)
        patch.setattr("whiten.export.speed.SECONDS", 0.0)
        export(student, root / "exported", images=images)
    return root


def run(python: str, code: str, *arguments: object, path: str = "") -> str:
    done = subprocess.run(
        [python, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def check_class(python: str, prelude: str, folder: Path, work: Path, path: str = "") -> None:
    files = sorted((folder / "images").rglob("*.png"))
    out = run(python, prelude + EMBED, folder / "exported", work / "v.npy", *files, path=path)
    own = Exported(folder / "exported")
    assert out.strip() == own.fingerprint()
    expected = own.embed(files)
    found = np.load(work / "v.npy")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)


def check_verbs(python: str, prelude: str, folder: Path, work: Path, path: str = "") -> None:
    images, model = folder / "images", f"onnx:{folder / 'exported'}"
    code = prelude + MAIN
    run(python, code, "embed", images, "--teacher", model, "--out", work / "store", path=path)
    files = sorted(images.rglob("*.png"))
    stored = Store.open(work / "store").gather([p.relative_to(images).as_posix() for p in files])
    np.testing.assert_allclose(stored, Exported(folder / "exported").embed(files), atol=1e-6)
    options = ["--student", model, "--in", images, "--index", work / "index", "--paths-only"]
    found = run(python, code, "search", files[8], *options, path=path)
    assert found.splitlines()[0] == str(files[8])
    assert len(found.splitlines()) == 10
    run(python, code, "index", images, "--student", model, "--out", work / "named", path=path)
    found = run(python, code, "search", files[8], "--index", work / "named", "--json", path=path)
    assert json.loads(found)[0]["path"] == str(files[8])
    told = run(python, code, "evaluate", images, "--model", model, path=path)
    assert "18 queries, 18 images" in told
    # What it says of a model that needs torch is one line too.
    done = subprocess.run(
        [python, "-c", code, "embed", str(images), "--teacher", "timm:resnet18", "--out", "x"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        timeout=300,
    )
    assert done.returncode == 2
    assert "timm:resnet18 needs" in done.stderr and "Traceback" not in done.stderr


def test_the_class_needs_three_packages(folder: Path, tmp_path: Path) -> None:
    # What these three import themselves belongs to them.
    allowed = {"whiten", "numpy", "PIL", "onnxruntime", "packaging", "flatbuffers", "sympy"}
    prelude = ONLY.format(
        blocked=BLOCKED, allowed=allowed | set(sys.stdlib_module_names), strict=True
    )
    check_class(sys.executable, prelude, folder, tmp_path, str(SOURCE))


@pytest.mark.slow
def test_the_verbs_need_no_torch(folder: Path, tmp_path: Path) -> None:
    prelude = ONLY.format(blocked=BLOCKED, allowed=set(), strict=False)
    check_verbs(sys.executable, prelude, folder, tmp_path, str(SOURCE))


@pytest.mark.slow
def test_a_bare_environment(folder: Path, tmp_path: Path) -> None:
    """First with the three packages alone, then with those of the command line too."""
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=True)
    python = str(environment / "bin" / "python")
    _install(python, CLASS_ALONE)
    [packages] = environment.glob("lib/python*/site-packages")
    (packages / "whiten.pth").write_text(f"{SOURCE}\n")
    assert not list(packages.glob("torch*")) and not list(packages.glob("pyarrow*"))
    check_class(python, "", folder, tmp_path)
    _install(python, COMMAND_LINE)
    assert not list(packages.glob("torch*")) and not list(packages.glob("onnx-*"))
    check_verbs(python, "", folder, tmp_path)


def _install(python: str, packages: list[str]) -> None:
    done = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages],
        capture_output=True,
        text=True,
        timeout=600,
    )
    if done.returncode and "No matching distribution" in done.stderr:
        pytest.skip("pip cannot reach a package index")
    assert done.returncode == 0, done.stderr
