"""Equal seeds give equal bytes; another number of threads gives equal results to rounding.

A thread more may change the order in which products are summed, and nothing else. Embeddings then
differ by less than 1e-5, whitened targets by less than 1e-4 (weak axes are amplified), losses by
less than 1e-4 of themselves after the dozen steps that carry a difference on, and the student's
embeddings by less than 1e-3. On an AMD EPYC, 1 and 2 threads gave equal embeddings and whiteners to
the last bit, and losses that differ by 2e-6.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import whiten
from small_runs import OPTIONS, TEACHERS, losses
from whiten.runs.folder import RunFolder
from whiten.store.store import Store
from whiten.whitening.whitener import Whitener

pytestmark = pytest.mark.slow

EMBEDDINGS, TARGETS, LOSSES, STUDENTS = 1e-5, 1e-4, 1e-4, 1e-3

TRAINING = {**OPTIONS, "batch_size": 8, "pairs": "views"}
PROGRAM = """
import json, sys
from whiten.distillation.distill import distill
images, out, teachers, options = json.loads(sys.argv[1])
distill(images, teachers, out=out, show_progress=False, **options)
"""


def train(shared_images: Path, out: Path, threads: int) -> RunFolder:
    """In a process of its own: nothing of a run is left to the next, and BLAS obeys too."""
    arguments = json.dumps([str(shared_images), str(out), TEACHERS, TRAINING])
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, arguments],
        capture_output=True,
        text=True,
        env=os.environ | dict.fromkeys(names, str(threads)),
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return RunFolder(out)


@pytest.fixture(scope="module")
def groups() -> dict[str, int]:
    return dict.fromkeys("abcdefgh", 4)


@pytest.fixture(scope="module")
def runs(shared_images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunFolder]:
    """Two runs on one thread, and two on two."""
    root = tmp_path_factory.mktemp("runs")
    return {
        f"{threads}{again}": train(shared_images, root / f"{threads}{again}", threads)
        for threads in (1, 2)
        for again in ("", " again")
    }


def products(run: RunFolder) -> dict[str, bytes]:
    folders = (run.embeddings, run.whiteners, run.student)
    return {
        str(path.relative_to(run.root)): path.read_bytes()
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("threads", [1, 2])
def test_equal_seeds_give_equal_bytes(runs: dict[str, RunFolder], threads: int) -> None:
    first, again = runs[f"{threads}"], runs[f"{threads} again"]
    assert products(first).keys() == products(again).keys()
    for name, content in products(first).items():
        assert content == products(again)[name], name
    assert losses(first.root) == losses(again.root)


def test_another_number_of_threads_gives_equal_results(
    runs: dict[str, RunFolder], shared_images: Path
) -> None:
    one, two = runs["1"], runs["2"]
    stores = sorted(path.name for path in one.embeddings.iterdir())
    assert stores == sorted(path.name for path in two.embeddings.iterdir())
    for name in stores:
        both = (Store.open(run.embeddings / name).blocks() for run in (one, two))
        for (ids, views, first), (other_ids, other_views, second) in zip(*both, strict=True):
            assert (ids, views) == (other_ids, other_views)
            np.testing.assert_allclose(first, second, rtol=0, atol=EMBEDDINGS)
    for path in sorted(one.whiteners.glob("[0-9]*.safetensors")):
        first, second = Whitener.load(path), Whitener.load(two.whiteners / path.name)
        samples = first.inverse_transform(np.eye(len(first.projection_), dtype=np.float32))
        np.testing.assert_allclose(
            first.transform(samples), second.transform(samples), rtol=0, atol=TARGETS
        )
    np.testing.assert_allclose(losses(one.root), losses(two.root), rtol=LOSSES)
    files = sorted(shared_images.rglob("*.png"))
    first, second = (whiten.load(run.student).embed(files) for run in (one, two))
    np.testing.assert_allclose(first, second, rtol=0, atol=STUDENTS)
