"""Training in processes that torchrun or SLURM has started, on two nodes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lightning_fabric.plugins.environments import SLURMEnvironment

from small_runs import OPTIONS, TEACHERS, losses
from torture_training import (
    command,
    environment,
    free_port,
    require_same,
    train_through_kills,
)
from whiten.distillation.distill import distill
from whiten.distillation.launched import is_launched, rank, require_processes
from whiten.errors import ConfigError
from whiten.runs.folder import RunFolder
from whiten.runs.spec import DistillSpec

RECIPE = Path(__file__).parents[1] / "recipes" / "slurm.sbatch"
TRAINING = {**OPTIONS, "batch_size": 8, "device": "cpu", "epochs": 10}


@pytest.fixture(scope="module")
def groups() -> dict[str, int]:
    return dict.fromkeys("abcdefgh", 8)


@pytest.fixture(scope="module")
def whole(shared_images: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The same training in two processes of one machine."""
    run = RunFolder(tmp_path_factory.mktemp("whole") / "run")
    options: dict[str, Any] = {**TRAINING, "devices": 2, "cache": cache}
    distill(shared_images, TEACHERS, out=run.root, show_progress=False, **options)
    return run


def arguments(images: Path, cache: Path, out: Path) -> list[str]:
    return command(images, TEACHERS, out, {**TRAINING, "cache": cache})


def require_finished(run: RunFolder, whole: RunFolder) -> None:
    require_same(run, whole)
    assert (run.root / "report.html").is_file()


@pytest.mark.slow
def test_two_agents_go_on_after_a_process_was_killed(
    shared_images: Path, cache: Path, tmp_path: Path, whole: RunFolder
) -> None:
    run = RunFolder(tmp_path / "run")
    words = arguments(shared_images, cache, run.root)
    steps = len(losses(whole.root))
    said = train_through_kills(words, run, steps=steps, kills=1)
    assert "".join(said).count("student  ") == 1  # the first process reports for all
    require_finished(run, whole)


@pytest.mark.slow
def test_two_tasks_of_slurm_train_as_one_run(
    shared_images: Path, cache: Path, tmp_path: Path, whole: RunFolder
) -> None:
    run = RunFolder(tmp_path / "run")
    job = {"SLURM_JOB_ID": 7, "SLURM_JOB_NAME": "whiten", "SLURM_NTASKS": 2, "SLURM_NNODES": 2}
    job |= {"SLURM_NTASKS_PER_NODE": 1, "SLURM_LOCALID": 0, "SLURM_NODELIST": "localhost"}
    job |= {"MASTER_PORT": free_port()}
    tasks = [
        subprocess.Popen(
            [sys.executable, "-m", "whiten", *arguments(shared_images, cache, run.root)],
            env=environment(**job, SLURM_PROCID=number, SLURM_NODEID=number),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(2)
    ]
    said = [task.communicate(timeout=400)[0] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], said
    assert ["student  " in one for one in said] == [True, False]
    require_finished(run, whole)


# --- variables --------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("SLURM_") or name in ("RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID"):
            monkeypatch.delenv(name)


def spec(devices: int, nodes: int) -> DistillSpec:
    return DistillSpec(teachers=[TEACHERS[0]], devices=devices, nodes=nodes, batch_size=8)


def test_a_process_alone_is_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (is_launched(), rank()) == (False, 0)
    require_processes(spec(2, 1))
    with pytest.raises(ConfigError, match="torchrun, srun or --cluster ray"):
        require_processes(spec(1, 2))
    for name, value in {"NTASKS": "2", "PROCID": "1", "JOB_NAME": "interactive"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert (is_launched(), rank()) == (False, 0)


def test_variables_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": "3", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_NTASKS", "2")  # torchrun under srun
    monkeypatch.setenv("SLURM_PROCID", "1")
    assert (is_launched(), rank()) == (True, 3)
    require_processes(spec(2, 2))
    with pytest.raises(ConfigError, match="4 processes were started, and --devices 2 --nodes 1"):
        require_processes(spec(2, 1))


def test_variables_of_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"NTASKS": "8", "PROCID": "5", "NTASKS_PER_NODE": "4"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert (is_launched(), rank()) == (True, 5)
    require_processes(spec(4, 2))
    with pytest.raises(ConfigError, match="--ntasks-per-node=2 --nodes=4"):
        require_processes(spec(2, 4))
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE")
    with pytest.raises(ConfigError, match="--ntasks-per-node=4 --nodes=2"):
        require_processes(spec(4, 2))


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu[03-06]", "gpu03"),
        ("gpu[3,5-6],cpu1", "gpu3"),
        ("gpu7", "gpu7"),
        ("node-a1,node-b2", "node-a1"),
    ],
)
def test_the_first_node_of_a_list_is_the_master(nodes: str, first: str) -> None:
    assert SLURMEnvironment.resolve_root_node_address(nodes) == first


def test_the_batch_script_asks_for_what_it_starts() -> None:
    text = RECIPE.read_text()
    asked = dict(
        line.removeprefix("#SBATCH --").split("=")
        for line in text.splitlines()
        if line.startswith("#SBATCH --") and "=" in line
    )
    assert f"--nodes {asked['nodes']} --devices {asked['ntasks-per-node']}" in text
    assert asked["gpus-per-node"] == asked["ntasks-per-node"]
    assert "srun --kill-on-bad-exit=1" in text and "--resume" in text
