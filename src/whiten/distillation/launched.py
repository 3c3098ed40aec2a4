"""Training processes: those that torchrun or SLURM's srun has started, and what joins them."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

from whiten.errors import ConfigError
from whiten.models.choice import chosen_device
from whiten.models.student import build_student
from whiten.runs.spec import DistillSpec
from whiten.utils.devices import computes_faster_in_bf16, resolve_precision

HOW = (
    "several nodes are started with torchrun, srun or --cluster ray: torchrun --nnodes N "
    "--nproc-per-node M -m whiten distill … --nodes N --devices M"
)


def is_launched() -> bool:
    """Return whether a launcher has started the processes.

    A batch script of SLURM has its variables, too, but only `srun` numbers the processes; an
    interactive shell is one of several only if it was asked to be.
    """
    return _is_torchrun() or _is_srun()


def rank() -> int:
    """Return the number of this process, 0 if it is alone; rank 0 works for all."""
    if _is_torchrun():
        return int(os.environ["RANK"])
    return int(os.environ["SLURM_PROCID"]) if _is_srun() else 0


def require_processes(spec: DistillSpec) -> None:
    """Refuse options that do not fit the processes that were started.

    Raises:
        ConfigError: there are other nodes or devices than the options say.
    """
    if not is_launched():
        if spec.nodes > 1:
            raise ConfigError(HOW)
        return
    started = int(os.environ["WORLD_SIZE" if _is_torchrun() else "SLURM_NTASKS"])
    if started != spec.devices * spec.nodes:
        raise ConfigError(
            f"{started} processes were started, and --devices {spec.devices} --nodes {spec.nodes} "
            f"are {spec.devices * spec.nodes}: let them agree"
        )
    if not _is_torchrun() and started > 1:
        per_node = os.environ.get("SLURM_NTASKS_PER_NODE")
        if per_node is None or int(per_node) != spec.devices:
            raise ConfigError(
                f"--devices {spec.devices} needs as many tasks per node: sbatch "
                f"--ntasks-per-node={spec.devices} --nodes={spec.nodes}"
            )


def _is_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def _is_srun() -> bool:
    """As Lightning sees it: a shell named so has SLURM's variables and is no task of a job."""
    is_shell = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    return "SLURM_NTASKS" in os.environ and "SLURM_PROCID" in os.environ and not is_shell


def make_fabric(spec: DistillSpec, *, devices: int, nodes: int, are_started: bool) -> Any:
    """Return what joins the training processes.

    Args:
        devices, nodes: processes per node, and nodes.
        are_started: whether a launcher has started them; else they are spawned.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy

    strategy: Any = "auto"
    if devices * nodes > 1:
        strategy = DDPStrategy(
            start_method="popen" if are_started else "spawn",
            timeout=timedelta(days=7),  # the others wait while rank 0 embeds
        )
    device = chosen_device()
    precision = _training_precision(spec, device.type)
    return Fabric(
        accelerator=device.type,
        devices=devices if device.index is None else [device.index],
        num_nodes=nodes,
        strategy=strategy,
        precision={"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}[precision],
    )


def _training_precision(spec: DistillSpec, device: str) -> str:
    if spec.backbone_lr == 0:
        return "32"  # the projection alone is too small to gain from lower precision
    precision = resolve_precision(spec.precision, device)
    if spec.precision == "auto" and precision == "bf16" and device == "cpu":
        net, _ = build_student(
            spec.student, dim=spec.dim, pool=spec.pooling, size=spec.size, pretrained=False
        )
        return "bf16" if computes_faster_in_bf16(net, device) else "32"
    return precision
