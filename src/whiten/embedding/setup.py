"""Settings that a process on a node of a cluster takes over from the process that started it."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from whiten.models.choice import choose, chosen


@dataclass(frozen=True)
class Setup:
    """Settings of a process.

    Attributes:
        folder: working folder, which relative paths start from; nodes may lack it.
        paths: import path, for modules of `python:` models.
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
        """Return the settings of this process, with the cores of a node, and its GPU if any."""
        paths = tuple(str(Path(folder).absolute()) for folder in sys.path)
        device = "cuda" if has_gpu else chosen().device
        return cls(str(Path.cwd()), paths, chosen().runtime, device, cores)

    def apply(self) -> None:
        import torch

        os.environ["OMP_NUM_THREADS"] = str(self.cores)
        torch.set_num_threads(self.cores)
        sys.path += [folder for folder in self.paths if folder not in sys.path]
        if os.path.isdir(self.folder):  # noqa: PTH112 - imports less
            os.chdir(self.folder)
        choose(self.runtime, self.device)
