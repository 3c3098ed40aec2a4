"""One of several training processes on a cluster; needs nothing of Ray."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

from whiten.distillation import deadline
from whiten.distillation.launched import make_fabric
from whiten.distillation.training import train
from whiten.embedding.setup import Setup
from whiten.runs.folder import RunFolder
from whiten.runs.spec import DistillSpec
from whiten.utils.progress import be_quiet, logging_to


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
