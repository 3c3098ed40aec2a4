"""Listen on an address, run the service, and shut it down."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import math
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from whiten.errors import ConfigError, one_line

_CONNECTIONS = 1000  # at once; further clients are told to retry
_ENDING_SECONDS = 10  # to finish requests after a signal


def listen(host: str, port: int) -> socket.socket:
    """Bind an address before anything heavy is loaded.

    Raises:
        ConfigError: the port is taken, or the host is not this machine.
    """
    if not 0 <= port < 1 << 16:
        raise ConfigError(f"port {port} does not exist: name one from 1 to 65535, or 0 for any")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = found[0]
        # Without the protocol asyncio does not recognise TCP, and leaves Nagle's algorithm on: then
        # a response's body waits 40 ms for the acknowledgement of its head.
        made = socket.socket(family, kind, protocol or socket.IPPROTO_TCP)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(address)
            made.listen(2048)
        except BaseException:
            made.close()
            raise
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise ConfigError(
            f"cannot listen on {host} port {port} ({reason}): choose another with --port or --host"
        ) from error
    return made


def url_of(listening: socket.socket) -> str:
    """Return the URL for a browser on this machine."""
    host, port = listening.getsockname()[:2]
    address = ipaddress.ip_address(host)
    if address.is_unspecified:
        host = "::1" if address.version == 6 else "127.0.0.1"
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def is_loopback(listening: socket.socket) -> bool:
    """Return whether only this machine can reach it."""
    return ipaddress.ip_address(listening.getsockname()[0]).is_loopback


class _Protocol(H11Protocol):
    """Closes connections whose clients do not complete a request's head in time.

    uvicorn waits for it forever, and the number of connections is limited.
    """

    seconds = 30.0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._arm()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._is_waiting():
            self._arm()
        else:
            self._disarm()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._disarm()

    def _is_waiting(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _arm(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(self.seconds, self._close)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close(self) -> None:
        if self._is_waiting() and not self.transport.is_closing():
            self.transport.close()


class _Server(uvicorn.Server):
    """Shuts down gracefully at the first signal, and at once at the second."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        ending = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in ending}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def run(
    app: FastAPI, listening: socket.socket, ready: Callable[[], None], *, timeout: float
) -> None:
    """Serve until SIGINT or SIGTERM, then finish pending requests.

    Args:
        ready: called once the service accepts requests.
        timeout: seconds within which the head of each request must arrive.
    """
    # Invalid requests are answered, not logged.
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)
    config = uvicorn.Config(
        app,
        http=type("Protocol", (_Protocol,), {"seconds": timeout}),
        loop="asyncio",
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        limit_concurrency=_CONNECTIONS,
        timeout_keep_alive=math.ceil(timeout),
        timeout_graceful_shutdown=_ENDING_SECONDS,
        proxy_headers=False,
        ws="none",
    )
    server = _Server(config, ready)
    with suppress(KeyboardInterrupt):
        server.run(sockets=[listening])
