"""Train on a Ray cluster: its processes have the environment of torchrun.

If one dies, all end, and the next attempt goes on from the last checkpoint.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

from whiten.distillation import deadline
from whiten.distillation.rank import Rank
from whiten.distillation.training_set import TrainingSet
from whiten.embedding.cluster import Cluster
from whiten.embedding.setup import Setup
from whiten.errors import ClusterError, WhitenError, one_line
from whiten.models.choice import chosen
from whiten.runs.folder import RunFolder
from whiten.runs.spec import DistillSpec
from whiten.utils.progress import announce, progress

_ATTEMPTS = 3  # that may die without a new checkpoint
_WAIT_SECONDS = 30.0


def train_on_cluster(
    cluster: Cluster, run: RunFolder, spec: DistillSpec, began: float, show_progress: bool
) -> None:
    """Train from the last checkpoint to the end, in `spec.devices * spec.nodes` processes.

    The folder of the run must be on storage that all nodes share.

    Raises:
        ClusterError: attempts die without any progress.
    """
    data = TrainingSet.open(run, spec)
    assert data.spec.epochs is not None
    total = data.spec.epochs * data.plan.batches_per_epoch
    failed = 0
    while True:
        step = run.load_checkpoint()["step"]
        try:
            with progress("distil", enabled=show_progress) as update:
                _attempt(cluster.ray, run, spec, began, lambda: update(_steps(run), total))
            return
        except (ConnectionError, cluster.ray.exceptions.RayError) as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, WhitenError):
                raise cause from error
            why = one_line(error)[:200]
            failed = 1 if run.load_checkpoint()["step"] > step else failed + 1
            if failed == _ATTEMPTS:
                raise ClusterError(
                    f"training has died {failed} times since step {step}, last: {why}; "
                    "finished work is kept, --resume continues"
                ) from error
            announce(f"a process has died, going on from the last checkpoint: {why}")


def _attempt(ray: Any, run: RunFolder, spec: DistillSpec, began: float, tell: Any) -> None:
    """Start the processes, and wait for their end; end all if one dies."""
    count = spec.devices * spec.nodes
    needs, cores = _wait_for_room(ray, count)
    remote = ray.remote(Rank).options(**needs, scheduling_strategy="SPREAD")
    ranks = [remote.remote(Setup.here(cores, has_gpu="num_gpus" in needs)) for _ in range(count)]
    try:
        address, port = ray.get(ranks[0].meet.remote())
        calls = [
            rank.train.remote(
                _environment(number, count, address, port),
                str(run.root.absolute()),
                spec.to_mapping(),
                deadline.clock() - began,
            )
            for number, rank in enumerate(ranks)
        ]
        while calls:
            done, calls = ray.wait(calls, timeout=1.0)
            ray.get(done)  # raises what one of them died of
            tell()
    finally:
        for rank in ranks:
            with suppress(Exception):  # it may be dead
                ray.kill(rank)


def _environment(number: int, count: int, address: str, port: int) -> dict[str, str]:
    """Return what torchrun sets for nodes of one process each."""
    return {
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        "RANK": str(number),
        "WORLD_SIZE": str(count),
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "GROUP_RANK": str(number),
        "TORCHELASTIC_RUN_ID": "ray",
    }


def _wait_for_room(ray: Any, count: int) -> tuple[dict[str, int], int]:
    """Wait until the cluster has as many GPUs, or cores, as there are processes.

    Returns:
        What each process needs, and its cores.
    """
    begun = time.monotonic()
    while True:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cores, gpus = (sum(int(node.get(kind, 0)) for node in nodes) for kind in ("CPU", "GPU"))
        device = chosen().device.partition(":")[0]
        wants_gpu = device == "cuda" or (device == "auto" and gpus > 0)
        if (gpus if wants_gpu else cores) >= count and cores >= count:
            return {"num_cpus": 1} | ({"num_gpus": 1} if wants_gpu else {}), cores // count
        if time.monotonic() - begun > _WAIT_SECONDS:
            kind, found = ("GPUs", gpus) if wants_gpu else ("cores", cores)
            raise ClusterError(
                f"the cluster has {found} {kind}, and {count} processes need one each: use fewer "
                "--devices, or add nodes and --resume"
            )
        time.sleep(1.0)


def _steps(run: RunFolder) -> int:
    records = run.read_metrics()
    return int(records[-1]["step"]) if records else 0
