"""A Milvus server for tests, from the package milvus; see test-servers.txt."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

TOKEN = "root:Milvus"  # of a new server that asks for one
_ETCD = (2379, 2380)  # ports of the etcd in it; the second cannot be changed
_SECONDS = 300.0  # to start: it unpacks 300 MB first


def why_not() -> str:
    """Return why no server can be started here; "" if one can."""
    if find_spec("milvus") is None:
        return "needs pip install --no-deps -r test-servers.txt"
    for port in _ETCD:
        with socket.socket() as own:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                own.bind(("127.0.0.1", port))
            except OSError:
                return f"port {port}, which the server's etcd needs, is in use"
    return ""


class MilvusServer:
    """Runs until it is stopped, in its own process and folder; asks for a token."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="whiten-milvus-"))
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        launch = [sys.executable, "-c", "from milvus import main; main()"]
        options = ["--proxy-port", str(self.port), "--authorization-enabled", "true"]
        self._process = subprocess.Popen(
            [*launch, "--data", self.folder, *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # to end the server together with its launcher
        )
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise

    def _wait(self) -> None:
        from pymilvus import MilvusClient, MilvusException

        end = time.monotonic() + _SECONDS
        while True:
            try:
                client = MilvusClient(self.address, token=TOKEN, timeout=5)
                client.list_collections()
                client.close()
                return
            except MilvusException as error:
                if time.monotonic() > end or self._process.poll() is not None:
                    raise RuntimeError(f"the server did not start: {error}") from error
                time.sleep(1)

    def stop(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
