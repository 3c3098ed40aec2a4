"""A service in this process, or in one of its own."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from fastapi.testclient import TestClient
from PIL import Image

Serve = Callable[..., TestClient]
EVIL = "<img src=x onerror=document.title='broken'>"  # the name of an image


def as_bytes(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


class Service:
    """`whiten serve` on a free port; a context.

    Attributes:
        url: with a slash at its end.
    """

    def __init__(
        self, index: Path, *options: object, code: Path, token: str = "", port: int | None = 0
    ) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(code), *sys.path])}
        environment.pop("WHITEN_TOKEN", None)
        if token:
            environment["WHITEN_TOKEN"] = token
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "whiten.cli", "serve", str(index), "--port", str(port)),
                *map(str, options),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
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
        assert self.process.stdout is not None and self.process.stderr is not None
        self.process.stdout.close()
        self.process.stderr.close()
