"""Training on a Ray cluster of two local nodes, of which one is lost and replaced."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from small_runs import OPTIONS, TEACHERS, losses
from whiten.distillation.distill import distill
from whiten.runs.folder import RunFolder

pytestmark = [
    pytest.mark.slow,
    # Ray's own test cluster leaves files to the garbage collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}


@pytest.fixture(scope="module")
def groups() -> dict[str, int]:
    return dict.fromkeys("abcdefgh", 8)


def test_two_nodes_train_as_two_processes_of_one_machine(
    nodes: Any, shared_images: Path, tmp_path: Path
) -> None:
    options = {**OPTIONS, "batch_size": 8, "device": "cpu", "devices": 2, "epochs": 20}
    one, two = RunFolder(tmp_path / "one"), RunFolder(tmp_path / "two")
    distill(shared_images, TEACHERS, one.root, show_progress=False, **options)
    found = [nodes.add_node(**NODE), nodes.add_node(**NODE)]
    with ThreadPoolExecutor(1) as pool:  # nodes are added in the main thread alone
        training = pool.submit(
            distill,
            shared_images,
            TEACHERS,
            two.root,
            show_progress=False,
            cluster="ray",
            **options,
        )
        while len(two.read_metrics()) < 5 and not training.done():
            time.sleep(0.02)
        nodes.remove_node(found[0])
        lost = len(two.read_metrics())
        nodes.add_node(**NODE)
        training.result()
    assert lost < len(losses(one.root))
    assert losses(two.root) == losses(one.root)
    ours, theirs = (load_file(run.student / "model.safetensors") for run in (one, two))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
