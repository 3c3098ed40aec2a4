"""Processes forked from a warm server that has imported everything and computed nothing.

Each costs a few hundredths of a second instead of an interpreter's start, and no thread pool is
copied by a fork.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import os
import resource
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest

CONTEXT = multiprocessing.get_context("forkserver")
PRELOADED = [
    "pytest",
    "timm",
    "whiten.cli",
    "whiten.distillation.distill",
    "whiten.embedding.embed",
    "whiten.evaluation.evaluate",
    "whiten.index",
    "scipy.linalg",
]


def start_server(*more: str) -> None:
    """Start the server, computing on one thread so that no run differs from another.

    Args:
        more: modules that it imports, too, if it has not started.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            patch.setenv(name, "1")
        CONTEXT.set_forkserver_preload([*PRELOADED, *more])
        multiprocessing.forkserver.ensure_running()


def run_command(
    *arguments: object, folder: Path, file_bytes: int | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own.

    Args:
        folder: it works in.
        file_bytes: that its files may not grow beyond.
    """
    start_server()
    words = [str(argument) for argument in arguments]
    with tempfile.TemporaryDirectory() as said:
        process = CONTEXT.Process(target=_run_command, args=(words, folder, said, file_bytes))
        process.start()
        process.join(300)
        process.kill()
        process.join()
        out, err = ((Path(said) / name).read_text() for name in ("out", "err"))
    assert process.exitcode is not None
    return subprocess.CompletedProcess(words, process.exitcode, out, err)


def _run_command(words: list[str], folder: Path, said: str, file_bytes: int | None) -> None:
    import torch

    from whiten import cli

    for number, name in enumerate(("out", "err"), start=1):
        os.dup2(os.open(Path(said) / name, os.O_WRONLY | os.O_CREAT), number)
    os.chdir(folder)
    torch.set_num_threads(1)
    if file_bytes is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, resource.RLIM_INFINITY))
    cli.main(words)
