"""A full disk and a folder that may not be written: one line, nothing broken, and it goes on.

Real limits: on the size of files and, where this process may mount one, a small file system.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers import write_groups
from small_runs import STUDENT, TEACHERS
from warm import run_command
from whiten.distillation.distill import distill
from whiten.errors import RunError, StoreError, TeacherError, WhitenError
from whiten.models.student import build_student, load_student, save_student
from whiten.runs.folder import RunFolder
from whiten.runs.spec import DistillSpec
from whiten.store.store import Store
from whiten.utils.files import temporary_folder, write_atomically
from whiten.whitening.whitener import Whitener

TEACHER = TEACHERS[0]
TRAIN = ["--student", STUDENT, "--dim", "8", "--batch-size", "4"]
TRAIN += ["--epochs", "2", "--pairs", "views"]


@pytest.fixture(scope="module")
def groups() -> dict[str, int]:
    return dict.fromkeys("abcdefgh", 4)


# Root may write everywhere, unless it starts without that right.
BOUND = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []


def start_bound(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Start the command line where permissions hold for root, too."""
    return subprocess.run(
        [*BOUND, sys.executable, "-m", "whiten", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=240,
    )


def check_one_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done
    assert done.stdout == ""
    told = [text for text in done.stderr.splitlines() if text.startswith("whiten: ")]
    # Where no temporary file can be written, a teacher is not traced, which is no error.
    [line] = [text for text in told if " runs in torch: " not in text]
    assert "Traceback" not in done.stderr
    assert "run again" in line or "--resume" in line
    return line


def check_whole(root: Path) -> None:
    """What bears its name is whole, whatever is missing."""
    run = RunFolder(root)
    for shard in run.embeddings.glob("*/[!.]*"):
        for _, _, vectors in Store.open(shard.parent).blocks():
            assert np.isfinite(vectors).all()
    for path in run.whiteners.glob("[!.]*.safetensors"):
        Whitener.load(path)
    for path in run.targets.glob("[!.]*.npy"):
        np.load(path)
    if run.checkpoint.exists():
        run.load_checkpoint()
    if run.student.exists():
        load_student(run.student)


# --- the disk is full ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [30, 300, 1500])
def test_distil_with_too_little_room_for_its_files(
    images: Path, tmp_path: Path, kilobytes: int
) -> None:
    """The larger the files may grow, the later it fails: from the options to the student."""
    command = ("distill", images, "--teachers", TEACHER, *TRAIN, "--out", tmp_path / "run")
    line = check_one_line(run_command(*command, folder=tmp_path, file_bytes=1024 * kilobytes))
    assert "too large" in line.lower()
    check_whole(tmp_path / "run")
    distill(images, resume=True, out=tmp_path / "run", show_progress=False)
    load_student(tmp_path / "run" / "student")


@pytest.mark.slow
def test_embed_with_too_little_room_for_its_files(images: Path, tmp_path: Path) -> None:
    command = ("embed", images, "--teacher", TEACHER, "--out", tmp_path / "store")
    assert "too large" in check_one_line(run_command(*command, folder=tmp_path, file_bytes=10_000))
    assert list((tmp_path / "store").iterdir()) == []
    assert run_command(*command, folder=tmp_path).returncode == 0
    assert len(Store.open(tmp_path / "store")) == 32


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB; where none may be mounted, the limits above must do."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode:
        pytest.skip(f"mounting is not permitted: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("free_kilobytes", [100, 2300])
def test_distil_on_a_small_disk(images: Path, small_disk: Path, free_kilobytes: int) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(3 * 2**20 - 1024 * free_kilobytes - 8192))
    command = ("distill", images, "--teachers", TEACHER, *TRAIN, "--out", small_disk / "run")
    assert (
        "no space left" in check_one_line(run_command(*command, folder=small_disk.parent)).lower()
    )
    check_whole(small_disk / "run")
    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,size=60m", str(small_disk)], check=True)
    distill(images, resume=True, out=small_disk / "run", show_progress=False)
    load_student(small_disk / "run" / "student")


# --- a folder loses its permission --------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(bool(BOUND and not shutil.which(BOUND[0])), reason="root has no setpriv")
def test_a_folder_that_may_no_longer_be_written(images: Path, tmp_path: Path) -> None:
    command = ("embed", images, "--teacher", TEACHER, "--out", tmp_path / "store")
    assert run_command(*command, folder=tmp_path).returncode == 0
    before = len(Store.open(tmp_path / "store"))
    write_groups(images / "more", {"z": 2})
    (tmp_path / "store").chmod(0o555)
    assert "permission denied" in check_one_line(start_bound(*command)).lower()
    assert len(Store.open(tmp_path / "store")) == before
    (tmp_path / "store").chmod(0o755)
    assert run_command(*command, folder=tmp_path).returncode == 0
    assert len(Store.open(tmp_path / "store")) == before + 2


Fail = Callable[..., Any]


@pytest.fixture(params=["renaming", "opening"])
def forbidden(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Fail:
    """Forbids to write below a folder, as its permissions would if this process were not root's."""

    def forbid(folder: Path) -> None:
        def refuse(path: Any) -> None:
            if str(path).startswith(str(folder)):
                raise PermissionError(13, "Permission denied", str(path))

        if request.param == "renaming":
            replace = os.replace
            monkeypatch.setattr(os, "replace", lambda a, b: (refuse(b), replace(a, b))[1])
            return
        mkdir, opening = Path.mkdir, Path.open

        def open_unless_written(path: Path, mode: str = "r", *rest: Any, **more: Any) -> Any:
            if "w" in mode:
                refuse(path)
            return opening(path, mode, *rest, **more)

        monkeypatch.setattr(Path, "mkdir", lambda p, *a, **k: (refuse(p), mkdir(p, *a, **k))[1])
        monkeypatch.setattr(Path, "open", open_unless_written)

    return forbid


def test_a_run_folder_that_may_not_be_written(tmp_path: Path, forbidden: Fail) -> None:
    run = RunFolder(tmp_path / "run")
    run.begin("photos", DistillSpec(teachers=["demo:x"]), resume=False, overwrite=False)
    state: dict[str, Any] = {"step": 1, "model": {}, "optimizer": {}, "ema": {}}
    run.save_checkpoint(state)
    forbidden(tmp_path)
    with pytest.raises(RunError, match=r"cannot write .*Permission denied.*--resume"):
        run.save_checkpoint({**state, "step": 2})
    assert run.load_checkpoint()["step"] == 1
    with pytest.raises(PermissionError):
        write_atomically(run.metrics, b"new")
    assert {path.name for path in run.root.iterdir()} == {"config.yaml", "checkpoints"}
    assert [path.name for path in run.checkpoint.parent.iterdir()] == ["last.ckpt"]


def test_ctrl_c_within_the_writing_of_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(tmp_path / "run")
    run.begin("photos", DistillSpec(teachers=["demo:x"]), resume=False, overwrite=False)
    state: dict[str, Any] = {"step": 1, "model": {}, "optimizer": {}, "ema": {}}
    run.save_checkpoint(state)

    class Interrupted(io.BytesIO):
        def write(self, content: Any) -> int:
            if self.tell():  # torch's writer passes the first one on as it is
                raise KeyboardInterrupt
            return super().write(content)

    opening = Path.open

    def open_to_be_interrupted(path: Path, mode: str = "r", *rest: Any, **more: Any) -> Any:
        return Interrupted() if mode == "wb" else opening(path, mode, *rest, **more)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "open", open_to_be_interrupted)
        run.save_checkpoint({**state, "step": 2})
    assert run.load_checkpoint()["step"] == 1


def test_a_student_that_may_not_be_written(tmp_path: Path, forbidden: Fail) -> None:
    net, config = build_student("timm:test_vit?pretrained=0", dim=4, size=32)
    folder = tmp_path / "run" / "student"
    folder.parent.mkdir()
    forbidden(tmp_path)
    with pytest.raises(TeacherError, match=r"cannot write .*student .*Permission denied"):
        save_student(net, config, folder, "card")
    assert list(folder.parent.iterdir()) == []


def test_a_whitener_that_may_not_be_written(tmp_path: Path, forbidden: Fail) -> None:
    samples = np.random.default_rng(0).standard_normal((100, 4))
    first, second = Whitener(2).fit(samples), Whitener(3).fit(samples)
    first.save(tmp_path / "w.safetensors")
    forbidden(tmp_path)
    with pytest.raises((PermissionError, WhitenError)):
        second.save(tmp_path / "w.safetensors")
    assert Whitener.load(tmp_path / "w.safetensors").dim == 2


def test_a_store_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from test_fuzz_files import make_store, read_store

    make_store(tmp_path / "s")
    before = read_store(tmp_path / "s")

    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        with pytest.raises(StoreError, match=r"cannot write .*permission denied.*are kept"):
            make_store(tmp_path / "s")
        with (
            temporary_folder() as folder,
            pytest.raises(StoreError, match=r"permission denied\): .* temporary and nothing in it"),
        ):
            make_store(folder / "s")
    assert read_store(tmp_path / "s") == before
    assert len(list((tmp_path / "s").iterdir())) == 1
