"""A service in this process, or in one of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from fastapi.testclient import TestClient

from warm import CONTEXT, start_server

Serve = Callable[..., TestClient]
EVIL = "<img src=x onerror=document.title='broken'>"  # the name of an image


class Forked:
    """A command line in a process of the warm server, used like a `subprocess.Popen`."""

    stdout = None

    def __init__(self, words: list[str], environment: dict[str, str]) -> None:
        start_server("whiten.serve.running")
        with tempfile.TemporaryDirectory() as folder:
            said = Path(folder) / "said"
            os.mkfifo(said)
            self._process = CONTEXT.Process(target=_run, args=(words, environment, said))
            self._process.start()
            self.stderr = said.open()  # until the process has opened it, too
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()

    def wait(self, seconds: float) -> int | None:
        self._process.join(seconds)
        return self._process.exitcode


def _run(words: list[str], environment: dict[str, str], said: Path) -> None:
    from whiten import cli

    os.dup2(os.open(said, os.O_WRONLY), 2)
    os.environ.update(environment)
    sys.path[:0] = environment["PYTHONPATH"].split(os.pathsep)
    cli.main(words)


class Service:
    """`whiten serve` on a free port; a context.

    Args:
        is_warm: fork it from a process that has imported everything.

    Attributes:
        url: with a slash at its end.
    """

    def __init__(
        self,
        index: Path,
        *options: object,
        code: Path,
        token: str = "",
        port: int | None = 0,
        is_warm: bool = False,
    ) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(code), *sys.path])}
        environment.pop("WHITEN_TOKEN", None)
        if token:
            environment["WHITEN_TOKEN"] = token
        words = ["serve", str(index), "--port", str(port), *map(str, options)]
        self.process: Any
        if is_warm:
            self.process = Forked(words, environment)
        else:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "whiten", *words],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
            )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))

    def __enter__(self) -> Service:
        for _ in range(1800):  # on a busy machine imports take long
            found = re.search(r"on (http://\S+/)$", "\n".join(self.lines), re.MULTILINE)
            if found:
                self.url = found[1]
                return self
            if self.process.poll() is not None:
                break
            time.sleep(0.1)
        self.process.kill()
        raise AssertionError("\n".join(self.lines) or "no line in three minutes")

    def end(self, number: int = signal.SIGTERM) -> int:
        """Signal it, and wait for its exit code."""
        self.process.send_signal(number)
        code = self.process.wait(30)
        self._reader.join(10)
        return code

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(30)
        self._reader.join(10)
        for stream in filter(None, (self.process.stdout, self.process.stderr)):
            stream.close()
