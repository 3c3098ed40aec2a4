"""One of several training processes on a cluster; needs nothing of Ray."""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whiten.distillation import deadline
from whiten.distillation.launched import make_fabric
from whiten.distillation.training import train
from whiten.errors import ClusterError
from whiten.models.choice import choose, chosen
from whiten.runs.folder import RunFolder
from whiten.runs.spec import DistillSpec
from whiten.utils.progress import be_quiet, logging_to


@dataclass(frozen=True)
class Setup:
    """What a process takes over from the one that started it.

    Attributes:
        folder: working folder, which relative paths start from.
        paths: import path, for modules of `python:` teachers.
        runtime, device: see `choose`.
        cores: threads that decode and compute.
    """

    folder: str
    paths: tuple[str, ...]
    runtime: str
    device: str
    cores: int

    @classmethod
    def here(cls, cores: int, *, has_gpu: bool) -> Setup:
        """Return the setup of this process, with the cores of a node, and its GPU if it has one."""
        paths = tuple(str(Path(folder).absolute()) for folder in sys.path)
        device = "cuda" if has_gpu else chosen().device
        return cls(str(Path.cwd()), paths, chosen().runtime, device, cores)

    def apply(self) -> None:
        """Take it over.

        Raises:
            ClusterError: the folder is not there.
        """
        import torch

        try:
            os.chdir(self.folder)
        except OSError as error:
            raise ClusterError(
                f"a node of the cluster has no folder {self.folder}: start in a folder that all "
                "nodes share"
            ) from error
        sys.path += [folder for folder in self.paths if folder not in sys.path]
        choose(self.runtime, self.device)
        torch.set_num_threads(self.cores)


class Rank:
    """A process that a launcher such as torchrun would start."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup

    def meet(self) -> tuple[str, int]:
        """Return the address and a free port where others find this process."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
            way.connect(("192.0.2.1", 9))  # sends nothing: it chooses the network's interface
            address = way.getsockname()[0]
        with socket.socket() as free:
            free.bind(("", 0))
            return address, free.getsockname()[1]

    def train(
        self, environment: dict[str, str], root: str, options: dict[str, Any], spent: float
    ) -> None:
        """Train as one of several processes.

        Args:
            environment: the variables that torchrun sets.
            root, options: the run and its options.
            spent: seconds since the run began; clocks of machines differ.
        """
        self._setup.apply()
        os.environ.update(environment)
        be_quiet(True)
        run, spec = RunFolder(Path(root)), DistillSpec.from_mapping(options)
        fabric = make_fabric(spec, devices=1, nodes=spec.devices * spec.nodes, are_started=True)
        with logging_to(run.log, enabled=environment["RANK"] == "0"):
            fabric.launch()
            train(fabric, run, spec, deadline.clock() - spent, show_progress=True)
