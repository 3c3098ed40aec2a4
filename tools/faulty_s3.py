"""A real S3 server on loopback, and a proxy before it that fails as services do."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Plan = Callable[[str, str], str]
"""Called with method and path; returns "", "500", "503", "403", "cut", "drop" or "slow"."""

_HOP = ("connection", "transfer-encoding", "keep-alive", "content-length")


class FaultyS3:
    """The server behind a proxy.

    Attributes:
        url: of the proxy.
        plan: what goes wrong with a request; nothing by default.
        requests: (method, path) so far.
        faults: how often something went wrong.
    """

    def __init__(self, port: int) -> None:
        self.plan: Plan = lambda method, path: ""
        self.requests: list[tuple[str, str]] = []
        self.faults = 0
        self._port = port
        self._proxy = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._proxy.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._proxy.server_address[1]}"
        threading.Thread(target=self._proxy.serve_forever, daemon=True).start()

    @cached_property
    def _client(self) -> Any:
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{self._port}",
            region_name="us-east-1",
            aws_access_key_id="anyone",
            aws_secret_access_key="secret",
        )

    def client(self) -> Any:
        """A client of the server itself, for what tests prepare and check."""
        return self._client

    def put(self, bucket: str, key: str, data: bytes) -> None:
        self.client().put_object(Bucket=bucket, Key=key, Body=data)

    def stop(self) -> None:
        self._proxy.shutdown()
        self._proxy.server_close()

    def _handler(outer) -> type[BaseHTTPRequestHandler]:  # noqa: N805
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def _pass_on(self) -> None:
                size = int(self.headers.get("Content-Length", 0))
                body = self.rfile.read(size) if size else b""
                fault = outer.plan(self.command, self.path)
                outer.requests.append((self.command, self.path))
                outer.faults += bool(fault)
                if fault == "slow":
                    time.sleep(0.3)
                elif fault == "drop":
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                elif fault.isdecimal():
                    self._answer(int(fault), {}, b"")
                    return
                server = http.client.HTTPConnection("127.0.0.1", outer._port, timeout=60)
                headers = {k: v for k, v in self.headers.items() if k.lower() != "expect"}
                server.request(self.command, self.path, body, headers)
                found = server.getresponse()
                data = found.read()
                sent = {k: v for k, v in found.getheaders() if k.lower() not in _HOP}
                size = int(found.headers.get("Content-Length", len(data)))
                server.close()
                is_head = self.command == "HEAD"
                self._answer(
                    found.status,
                    sent,
                    data,
                    size if is_head else len(data),
                    cut=fault == "cut" and len(data) > 1,
                )

            def _answer(
                self,
                status: int,
                headers: dict[str, str],
                data: bytes,
                size: int = 0,
                *,
                cut: bool = False,
            ) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    if name.lower() not in ("server", "date"):
                        self.send_header(name, value)
                self.send_header("Content-Length", str(size))
                self.end_headers()
                self.wfile.write(data[: len(data) // 2] if cut else data)
                if cut:
                    self.close_connection = True

            do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _pass_on  # noqa: N815

        return Handler


@contextmanager
def serving() -> Iterator[FaultyS3]:
    """Run a server with an empty bucket `photos`."""
    from moto.server import ThreadedMotoServer

    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    _, port = moto.get_host_and_port()
    faulty = FaultyS3(port)
    try:
        yield faulty
    finally:
        faulty.stop()
        moto.stop()
