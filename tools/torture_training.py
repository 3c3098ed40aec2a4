"""Train on two nodes whose processes are killed at random steps, again and again.

    python tools/torture_training.py --kills 20

Two agents of torchrun on loopback train a small student from random weights. A random one of the
two processes is killed at a random step, and the same command goes on from the last checkpoint. The
losses of all steps and the student must be those of two processes of one machine that nobody
killed. Exits with 1 otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from torture_storage import make_images
from whiten.distillation.distill import distill
from whiten.runs.folder import RunFolder

TEACHERS = ["timm:test_resnet?pretrained=0&size=48"]
OPTIONS: dict[str, Any] = {
    "student": "timm:test_vit?pretrained=0&size=32",
    "dim": 8,
    "whiten_dim": 8,
    "epochs": 60,
    "batch_size": 8,
    "checkpoint_every": 2,
    "precision": "32",
    "device": "cpu",
}
_SECONDS = 200.0  # until an attempt counts as hanging

Agents = list[subprocess.Popen[str]]


def command(images: Path, teachers: list[str], out: Path, options: dict[str, Any]) -> list[str]:
    """Arguments of `whiten` that begin a run on two nodes, or go on with it."""
    found = ["distill", str(images), "--teachers", *teachers, "--out", str(out), "--resume"]
    for name, value in {**options, "nodes": 2}.items():
        found += [f"--{name.replace('_', '-')}", str(value)]
    return found


def environment(**more: object) -> dict[str, str]:
    """Variables of a process that computes on one thread, outside of any job of SLURM."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    return {**own, "OMP_NUM_THREADS": "1", **{name: str(value) for name, value in more.items()}}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def start(arguments: list[str]) -> Agents:
    """Start torchrun on two nodes with the same command."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"]
    torchrun += ["--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "test"]
    torchrun += ["--rdzv-endpoint", f"127.0.0.1:{free_port()}", "--local-addr", "127.0.0.1"]
    return [
        subprocess.Popen(
            [*torchrun, "-m", "whiten", *arguments],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        for _ in range(2)
    ]


def workers(agent: subprocess.Popen[str]) -> list[int]:
    children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children")
    with suppress(OSError):
        return [int(child) for child in children.read_text().split()]
    return []


def stop(agents: Agents) -> None:
    """Kill agents, and their workers, which have sessions of their own."""
    for agent in agents:
        for worker in workers(agent):
            with suppress(OSError):
                os.kill(worker, signal.SIGKILL)
        agent.kill()
        agent.communicate()


def train_through_kills(
    arguments: list[str], run: RunFolder, *, steps: int, kills: int, seed: int = 0
) -> list[str]:
    """Train, and kill a process so many times, each time at a later random step.

    Args:
        steps: of the whole training.

    Returns:
        What each agent of the last attempt printed.

    Raises:
        AssertionError: an attempt hung, ended before its kill, or failed where nobody killed it.
    """
    draw = random.Random(seed)
    for left in range(kills, 0, -1):
        done = len(run.read_metrics())
        at = done + draw.randint(1, max(1, (steps - done) // (left + 1)))
        agents = start(arguments)
        try:
            limit = time.monotonic() + _SECONDS
            while len(run.read_metrics()) < at:
                assert time.monotonic() < limit, "the attempt hangs"
                assert all(agent.poll() is None for agent in agents), "it ended before its kill"
                time.sleep(0.005)
            killed = draw.choice(agents)
            os.kill(workers(killed)[-1], signal.SIGKILL)
            assert killed.wait(timeout=_SECONDS) != 0
        finally:
            stop(agents)
        assert at <= len(run.read_metrics()) < steps
    agents = start(arguments)
    try:
        said = [agent.communicate(timeout=_SECONDS)[0] for agent in agents]
    finally:
        stop(agents)
    assert [agent.returncode for agent in agents] == [0, 0], said
    return said


def require_same(run: RunFolder, whole: RunFolder) -> None:
    """
    Raises:
        AssertionError: the losses or the students of two runs differ.
    """
    ours, theirs = ([one["loss"] for one in each.read_metrics()] for each in (run, whole))
    assert ours == theirs, "other losses"
    state, wanted = (load_file(one.student / "model.safetensors") for one in (run, whole))
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[name], wanted[name]) for name in wanted), "another student"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="whiten-") as temporary:
        work = Path(temporary)
        images = make_images(work / "images", 80)
        options = {**OPTIONS, "cache": work / "cache"}
        whole, run = RunFolder(work / "whole"), RunFolder(work / "run")
        os.environ["OMP_NUM_THREADS"] = "1"
        torch.set_num_threads(1)
        distill(images, TEACHERS, whole.root, devices=2, show_progress=False, **options)
        steps = len(whole.read_metrics())
        arguments = command(images, TEACHERS, run.root, options)
        train_through_kills(arguments, run, steps=steps, kills=asked.kills, seed=asked.seed)
        require_same(run, whole)
    print(json.dumps({"steps": steps, "kills": asked.kills, "same losses and student": True}))


if __name__ == "__main__":
    main()
