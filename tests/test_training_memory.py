"""Memory of training: targets and features stay in mapped files, micro-batches bound the rest."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import write_groups

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")

READ = """
import json, sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from whiten.distillation import training_set as files
from whiten.runs.folder import RunFolder
from whiten.runs.recipes import DECIDED, complete
from whiten.runs.spec import DistillSpec

run, count = RunFolder(Path(sys.argv[1])), int(sys.argv[2])
run.targets.mkdir(parents=True)
spec, _ = complete(DistillSpec(teachers=["demo:mobilenetv2"], dim=256, backbone_lr=0.0), "views")
for path in (files.target_path(run, 0), files.fused_path(run), files.features_path(run)):
    np.lib.format.open_memmap(path, "w+", np.float32, (count, 2, 256))  # a hole, read as zeros
names = pa.array([f"{n:07}" for n in range(count)])
table = pa.table({"id": names, "path": names, "group": pa.nulls(count, pa.string())})
pq.write_table(table.append_column("content_hash", names), files.items_path(run))
facts = {
    "views": 2, "source": "views", "held_out": 64, "recipe": "", "measured": {}, "skipped": [],
    "options": {name: getattr(spec, name) for name in DECIDED},
    "teachers": [{"name": "one", "uri": "demo:mobilenetv2"}],
}
files.facts_path(run).write_text(json.dumps(facts))
del names, table
data = files.TrainingSet.open(run, spec)
cpu, generator = torch.device("cpu"), torch.Generator().manual_seed(0)
for number, batch in enumerate(data.plan.epoch(0)):
    data.teacher_targets(batch, cpu)
    data.fused_targets(batch, cpu)
    data.features(batch, cpu)
    data.queue(generator, cpu)
    if number == 40:
        break
status = Path("/proc/self/status").read_text().splitlines()
print(next(line.split()[1] for line in status if line.startswith("VmHWM:")))
"""

TRAIN = """
import sys
from pathlib import Path

import torch

torch.set_num_threads(1)
from whiten.distillation.distill import distill

distill(
    sys.argv[1], ["timm:test_resnet?pretrained=0&size=32"], sys.argv[2], views=2, dim=64,
    student="demo:efficientnet-lite0", size=160, batch_size=64, epochs=1, held_out=0.0,
    start="random", pairs="views", precision="32", micro_batch=32, show_progress=False,
)
status = Path("/proc/self/status").read_text().splitlines()
print(next(line.split()[1] for line in status if line.startswith("VmHWM:")))
"""


def peak(program: str, *arguments: object) -> float:
    """MB of memory that a process takes at most."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    return int(done.stdout) / 1024


@pytest.mark.slow
def test_memory_does_not_grow_with_the_collection(tmp_path: Path) -> None:
    few, many = (peak(READ, tmp_path / str(count), count) for count in (10_000, 200_000))
    files = 190_000 * 2 * 256 * 4 * 3 / 1e6  # MB more of targets and features
    assert files > 1000
    # Ids and the plan of the pairs, and the pages around the rows that a queue reads at once.
    assert many - few < 0.3 * files


@pytest.mark.slow
def test_micro_batches_bound_the_memory_of_large_inputs(tmp_path: Path) -> None:
    """128 views at 160 px."""
    images = write_groups(tmp_path / "images", {"a": 32, "b": 32})
    assert peak(TRAIN, images, tmp_path / "run") < 2400  # measured: 2,060
