"""Serve an index with one process, or with several that share its mapped vectors."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from multiprocessing.process import BaseProcess
from typing import Any

from whiten.embedding.opening import load
from whiten.errors import ConfigError, WhitenError, one_line
from whiten.index import Index
from whiten.models.choice import choose
from whiten.serve.app import create_app
from whiten.serve.running import run
from whiten.serve.settings import Settings
from whiten.utils.memory import keep_freed_memory, share_pools
from whiten.utils.steady import share

_POOLS = 2  # of memory; with more, memory grows over thousands of requests
_ENDING_SECONDS = 15.0  # after which workers that do not end are killed; each takes 10 for itself


@dataclass(frozen=True)
class Job:
    """Places to serve, the URI of the model, settings, and the runtime of the model.

    Attributes:
        index: a place, or several that are searched as one.
    """

    index: str | tuple[str, ...]
    model: str | None
    background: str | None
    settings: Settings
    runtime: str = "auto"
    device: str = "auto"


def serve(job: Job, listening: socket.socket, ready: Callable[[int], None]) -> None:
    """Serve until SIGINT or SIGTERM; `ready` gets the number of images once requests are taken."""
    share_pools(_POOLS)
    opened = Index.open(job.index, None if job.model is None else load(job.model))
    background = None if job.background is None else Index.open(job.background)
    service = create_app(opened, job.settings, background=background)
    run(service, listening, lambda: ready(len(opened)), timeout=job.settings.timeout)


def serve_with(
    workers: int,
    job: Job,
    listening: socket.socket,
    ready: Callable[[int], None],
    tell: Callable[[str], None],
) -> None:
    """Serve with several processes until SIGINT or SIGTERM; one that dies is started again.

    Each has its own model and threads, and they map the same vectors. All take connections from
    the same socket.

    Raises:
        ConfigError: a worker cannot start, or the index cannot be written by several.
    """
    if job.settings.writable and Index.open(job.index).folder is None:
        raise ConfigError(
            "several workers cannot write to a database, whose columns each keeps in memory: leave "
            "out --workers or --writable"
        )
    share(workers)
    context = get_context("spawn")
    ending = threading.Event()
    wake, woken = os.pipe()

    def end(*_: object) -> None:
        ending.set()
        os.write(woken, b".")

    def start() -> tuple[BaseProcess, Any]:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(job, listening, theirs), daemon=True)
        process.start()
        theirs.close()
        return process, ours

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    running = [start() for _ in range(workers)]
    try:
        images = 0
        for _, told in running:
            images = _first_word(told, wake)
            if images < 0:
                return
        ready(images)
        while not ending.is_set():
            connection.wait([wake, *(process.sentinel for process, _ in running)])
            for number, (process, _) in enumerate(running):
                if not ending.is_set() and not process.is_alive():
                    tell(f"whiten: warning: a worker died ({process.exitcode}), starting another")
                    running[number] = start()
                    _first_word(running[number][1], wake)
    finally:
        for process, _ in running:
            process.terminate()  # SIGTERM: requests in progress are answered first
        end_at = time.monotonic() + _ENDING_SECONDS
        for process, _ in running:
            process.join(max(0.0, end_at - time.monotonic()))
            process.kill()
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(wake)
        os.close(woken)


def _first_word(told: Any, wake: int) -> int:
    """Return the number of images that a worker serves; -1 if all are to end before."""
    if wake in connection.wait([told, wake]):
        return -1
    try:
        word = told.recv()
    except EOFError:
        word = "a worker died while it started"
    if isinstance(word, str):
        raise ConfigError(word)
    return int(word)


def _work(job: Job, listening: socket.socket, told: Any) -> None:
    """Serve in a process of its own."""
    keep_freed_memory()
    choose(job.runtime, job.device)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        serve(job, listening, told.send)
    except WhitenError as error:
        told.send(one_line(error))


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
