"""SIGKILL at any moment: what is there is whole, and the work goes on to the very same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from helpers import write_groups
from killing import Reference, Work, attempt, kill_again_and_again
from small_runs import OPTIONS, TEACHERS
from warm import start_server
from whiten.models.student import load_student
from whiten.runs.folder import RunFolder
from whiten.runs.spec import DistillSpec
from whiten.store.shards import Origin, Row
from whiten.store.store import Store
from whiten.whitening.whitener import Whitener

KILLS = 50
TRAINING = {**OPTIONS, "align": 0.5, "ema": 0.9}


def images_of(folder: Path) -> Path:
    """Beside the folder of the work, shared by all attempts at it."""
    return folder.parent / "images"


# --- the work -------------------------------------------------------------------------------


def embed_images(folder: Path) -> None:
    from whiten.datasets.finding import find_items
    from whiten.embedding import embed as module
    from whiten.models.registry import open_teacher

    module.SHARD_ROWS, module.BATCH = 8, 4  # many shards, for there are few images
    items = find_items(images_of(folder))
    module.embed(items, open_teacher(TEACHERS[0]), folder, views=(0, 1, 2))


def fit_whiteners(folder: Path) -> None:
    store = Store.open(folder.parent / "store")
    folder.mkdir(exist_ok=True)
    for number in range(6):
        path = folder / f"{number}.safetensors"
        if not path.exists():
            blocks = (vectors for _, _, vectors in store.blocks())
            Whitener(64 * (number + 1), shrinkage=0.1).fit(blocks).save(path)


def distil(folder: Path) -> None:
    from whiten.distillation.distill import distill
    from whiten.embedding import embed as module

    module.SHARD_ROWS = 8
    # Nothing tells the first attempt from the later ones.
    distill(images_of(folder), TEACHERS, out=folder, resume=True, show_progress=False, **TRAINING)


# --- what must be whole after a kill ------------------------------------------------------------


def check_store(folder: Path) -> None:
    if any(folder.glob("[!.]*")):
        for names, _, vectors in Store.open(folder).blocks():
            assert len(names) == len(vectors) and np.isfinite(vectors).all()


def check_whiteners(folder: Path) -> None:
    for path in folder.glob("[!.]*.safetensors"):
        Whitener.load(path)


def check_run(folder: Path) -> None:
    run = RunFolder(folder)
    for store in run.embeddings.glob("*"):
        check_store(store)
    check_whiteners(run.whiteners)
    steps = len(run.read_metrics())
    if run.metrics.exists():
        assert run.metrics.read_bytes().count(b"\n") == steps  # all lines but a last one are whole
    if run.checkpoint.exists():
        assert run.load_checkpoint()["step"] <= steps
        run.read_config()
    for targets in run.targets.glob("[!.]*.npy"):
        assert np.isfinite(np.load(targets)).all()
    if (run.targets / "ready.json").exists() and not run.student.exists():
        pq.read_table(run.targets / "items.parquet")
    if run.student.exists():
        load_student(run.student)


# --- what must be the same in the end -----------------------------------------------------------


def read_files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def read_run(folder: Path) -> dict[str, bytes]:
    """All but the checkpoint, which holds no more than the student, and the log's speeds."""
    run = RunFolder(folder)
    found = {
        name: content
        for name, content in read_files(folder).items()
        if not name.startswith(("checkpoints", "metrics"))
    }
    assert {Path(name).parts[0] for name in found} == {
        "config.yaml",
        "embeddings",
        "student",
        "whiteners",
    }
    losses = [(record["step"], record["loss"].hex()) for record in run.read_metrics()]
    return found | {"losses": str(losses).encode()}


WORKS: dict[str, tuple[Work, Any, Any]] = {
    "embed": (embed_images, check_store, read_files),
    "fit": (fit_whiteners, check_whiteners, read_files),
    "distill": (distil, check_run, read_run),
}


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images and a store to work on."""
    root = tmp_path_factory.mktemp("workshop")
    write_groups(root / "images", dict.fromkeys("abcdefgh", 3))
    origin = Origin(uri="timm:x", fingerprint="f" * 32, dim=384, plan="", plan_seed=0)
    store = Store.create_or_resume(root / "store", origin)
    draw = np.random.default_rng(0)
    for shard in range(4):
        ids = [f"{shard}-{n}" for n in range(400)]
        vectors = draw.standard_normal((len(ids), 384)).astype(np.float32)
        store.append(
            [Row(i, i, None, 0, i, vector) for i, vector in zip(ids, vectors, strict=True)]
        )
    return root


@pytest.fixture(scope="module")
def references() -> dict[str, Reference]:
    return {}


@pytest.mark.slow
@pytest.mark.parametrize("at", ["time", "change"])
@pytest.mark.parametrize("name", WORKS)
def test_a_killed_work_goes_on_to_the_same_bytes(
    name: str, at: str, workshop: Path, references: dict[str, Reference]
) -> None:
    work, check, read = WORKS[name]
    if name not in references:
        references[name] = Reference.make(work, workshop / f"{name}-reference", read)
    wanted = KILLS if at == "time" else KILLS // 2
    killed, finished = kill_again_and_again(
        work,
        workshop / f"{name}-killed",
        references[name],
        kills=wanted,
        at=at,
        check=check,
        read=read,
    )
    assert killed >= wanted
    assert finished > 0


SPEC = DistillSpec(teachers=["demo:mobilenetv2"])


def begin_anew(folder: Path) -> None:
    RunFolder(folder).begin("images", SPEC, resume=False, overwrite=True)


@pytest.mark.slow
def test_a_killed_deletion_can_be_repeated(tmp_path: Path) -> None:
    start_server()
    done, event = False, 0
    while not done:
        folder, event = tmp_path / str(event), event + 1
        for name in ("checkpoints/last.ckpt", "student/config.json", "whiteners/0.safetensors"):
            (folder / name).parent.mkdir(parents=True)
            (folder / name).write_text("of the last run")
        (folder / "config.yaml").write_text("of the last run")
        done = attempt(begin_anew, folder, event=event)
        begin_anew(folder)
        run = RunFolder(folder)
        assert run.read_config() == ("images", SPEC)
        assert not run.checkpoint.exists() and not run.is_finished
    assert event > 8
