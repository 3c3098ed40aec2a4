"""Two processes on the joined batches are one: the same losses and weights, and they resume.

The sums of a gradient are taken in another order, which Adam's division by the gradient's size
enlarges where that is nearly nothing. Losses agree to 1e-3 of themselves over a dozen steps, and
the weights to 2 % of the way that training has moved them. (The student is a transformer: on CPUs
each process has batch statistics of its own.)
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from small_runs import OPTIONS, TEACHERS, losses
from whiten.distillation.distill import distill
from whiten.runs.folder import RunFolder

pytestmark = pytest.mark.slow

LOSSES, WEIGHTS = 1e-3, 0.02
TRAINING = {**OPTIONS, "batch_size": 8, "device": "cpu"}


@pytest.fixture(scope="module")
def groups() -> dict[str, int]:
    return dict.fromkeys("abcdefgh", 8)


def run(shared_images: Path, out: Path, cache: Path, **options: Any) -> RunFolder:
    options = {**TRAINING, **options}
    distill(shared_images, TEACHERS, out=out, cache=cache, show_progress=False, **options)
    return RunFolder(out)


def weights(run: RunFolder) -> torch.Tensor:
    """All that a run's student has learnt, in one vector."""
    state = load_file(run.student / "model.safetensors")
    return torch.cat([state[name].double().flatten() for name in sorted(state)])


# The default and a frozen backbone are compared in test_distill.py.
WAYS: dict[str, dict[str, Any]] = {
    "each term": {
        **dict.fromkeys(("kl", "labels", "relational", "align", "queue"), 0.5),
        "pairs_per_class": 1,
    },
    "views, random fusion, moving average": {
        "recipe": "paper",
        "pairs": "views",
        "fusion": "maxrand",
        "ema": 0.9,
        "schedule": "onecycle",
    },
    "teachers online": {"recipe": "paper", "teachers_online": True, "epochs": 10},
}


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS.keys())
def test_two_processes_are_one(
    shared_images: Path, cache: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    start = run(shared_images, tmp_path / "start", cache, **{**options, "epochs": 1, "lr": 1e-12})
    one = run(shared_images, tmp_path / "one", cache, **options)
    two = run(shared_images, tmp_path / "two", cache, devices=2, **options)
    assert len(losses(one.root)) > 8
    np.testing.assert_allclose(losses(two.root), losses(one.root), rtol=LOSSES)
    apart, way = (weights(one) - weights(other) for other in (two, start))
    assert way.norm() > 1e-3
    assert apart.norm() < WEIGHTS * way.norm()


PROGRAM = """
import json, sys
from whiten.distillation.distill import distill
if __name__ == "__main__":
    images, teachers, out, options = json.loads(sys.argv[1])
    distill(images, teachers, out=out, resume=True, show_progress=False, **options)
"""


def test_two_killed_processes_go_on_as_if_never_killed(
    shared_images: Path, cache: Path, tmp_path: Path
) -> None:
    options = {**TRAINING, "devices": 2}
    whole = run(shared_images, tmp_path / "whole", cache, **options)
    program, parts = tmp_path / "program.py", RunFolder(tmp_path / "parts")
    program.write_text(PROGRAM)  # spawned processes import it again
    arguments = json.dumps([str(shared_images), TEACHERS, str(parts.root), options])
    process = subprocess.Popen(
        [sys.executable, str(program), arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    limit = time.monotonic() + 240
    while len(parts.read_metrics()) < 5:
        assert process.poll() is None and time.monotonic() < limit
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert (
        0 < parts.load_checkpoint()["step"] <= len(parts.read_metrics()) < len(losses(whole.root))
    )
    distill("", out=parts.root, resume=True, show_progress=False)
    assert losses(parts.root) == losses(whole.root)
    assert torch.equal(weights(parts), weights(whole))


def test_the_command_line_takes_devices(shared_images: Path, cache: Path, tmp_path: Path) -> None:
    command = ["distill", shared_images, "--teachers", TEACHERS[0], "--out", tmp_path / "run"]
    for name, value in {**TRAINING, "epochs": 1, "devices": 2, "embeddings": cache}.items():
        command += [f"--{name.replace('_', '-')}", value]
    done = subprocess.run(
        [sys.executable, "-m", "whiten", *map(str, command)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert f"student  {tmp_path / 'run' / 'student'}\n" in done.stdout
    assert "GLOBAL_RANK" not in done.stderr and "distributed_backend" not in done.stderr
    run = RunFolder(tmp_path / "run")
    assert run.is_finished and run.read_config()[1].devices == 2
