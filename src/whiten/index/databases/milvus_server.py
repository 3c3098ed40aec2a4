"""Connections to Milvus: to a server, or to a file, for which the client starts one in a thread."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from whiten.errors import ConfigError, MissingExtraError, StoreError, one_line
from whiten.index.databases.addresses import Address

TOKEN = "WHITEN_MILVUS_TOKEN"  # environment variable: a token, or `user:password`
_SECONDS = 10.0  # to wait for a server
_users: Counter[str] = Counter()  # open clients of each file
_writers: set[tuple[str, str]] = set()
_lock = threading.Lock()
# Clients whose owners are gone. The collector finds that out anywhere, inside of a lock of gRPC's
# or ours too, so that it only puts them here: that is safe wherever it happens.
_left: SimpleQueue[tuple[Any, str]] = SimpleQueue()


class Client:
    """The methods of pymilvus' `MilvusClient`; what they raise becomes one line."""

    def __init__(self, client: Any, place: str) -> None:
        self._client, self._place = client, place

    def __getattr__(self, name: str) -> Callable[..., Any]:
        from grpc import RpcError
        from pymilvus import MilvusException

        method = getattr(self._client, name)

        def call(*arguments: Any, **options: Any) -> Any:
            try:
                return method(*arguments, **options)
            except (MilvusException, RpcError) as error:
                raise StoreError(f"{self._place}: {_reason(error)}") from error

        return call


def connect(owner: object, address: Address, *, create: bool) -> Client | None:
    """A client that lives as long as its owner; None where there is no file, unless it is created.

    Raises:
        MissingExtraError: pymilvus, or for a file milvus-lite, is not installed.
        StoreError: something else is there, another process has it open, or no server answers.
        ConfigError: the address is neither a file nor a server's.
    """
    is_file = "://" not in address.server
    if find_spec("pymilvus") is None or (is_file and find_spec("milvus_lite") is None):
        raise MissingExtraError(address.place, "milvus")
    if not is_file:
        return _connect(owner, address, address.server, os.environ.get(TOKEN, ""))
    path = str(Path(address.server).resolve())
    if not path.endswith(".db"):
        raise ConfigError(
            f"{address.place}: a Milvus database is a server, http://HOST:19530, or a file whose "
            "name ends in .db"
        )
    if not _is_lite(Path(path), address) and not create:
        return None
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    return _connect(owner, address, path, "")


def _is_lite(path: Path, address: Address) -> bool:
    """Whether it is a database of Milvus Lite; not if there is nothing."""
    if path.is_dir() and ((path / "LOCK").exists() or not any(path.iterdir())):
        return True
    if path.exists():
        raise StoreError(
            f"{address.place} is no database of Milvus Lite 3 (its databases are folders): name "
            "another place"
        )
    return False


def _connect(owner: object, address: Address, server: str, token: str) -> Client:
    from pymilvus import MilvusClient, MilvusException

    # What goes wrong is raised; these would print it with a traceback, too.
    for name in ("pymilvus", "milvus_lite"):
        logging.getLogger(name).setLevel(logging.CRITICAL)

    _start_closing()
    try:
        with _lock:
            _users[server] += 1  # first, so that nobody else ends the server
            client = MilvusClient(server, token=token, timeout=_SECONDS)
    except (MilvusException, ValueError, OSError) as error:
        _users[server] -= 1
        raise StoreError(f"{address.place}: {_why_not(address, server, error)}") from error
    weakref.finalize(owner, _left.put, (client, server))
    return Client(client, address.place)


@cache
def _start_closing() -> None:
    """Close what is left behind, in a thread of its own, and the rest at the end."""
    atexit.register(_close_rest)  # after the finalizers, which are registered later
    threading.Thread(target=_close_left, name="whiten-milvus", daemon=True).start()


def _close_left() -> None:
    while True:
        client, server = _left.get()
        with suppress(Exception):  # of a server that is gone, too
            _disconnect(client, server)


def _close_rest() -> None:
    with suppress(Exception):  # at last that nothing is left
        while True:
            _disconnect(*_left.get_nowait())


def _disconnect(client: Any, server: str) -> None:
    """The last one out of a file ends its server, so that other processes may open it."""
    client.close()
    with _lock:
        _users[server] -= 1
        if not _users[server] and "://" not in server:
            from milvus_lite.server_manager import server_manager_instance

            server_manager_instance.release_server(server)


def _why_not(address: Address, server: str, error: BaseException) -> str:
    if "://" not in server:
        if _is_locked(Path(server) / "LOCK"):
            return (
                "another process has it open, and Milvus Lite is for one at a time: wait until it "
                "is done, or use a Milvus server"
            )
        return f"Milvus Lite cannot open it ({one_line(error)}): delete it and index again"
    reason = _reason(error)
    if "auth" in reason.lower():
        return f"{reason}: set {TOKEN} to the server's token, or to USER:PASSWORD"
    return f"no Milvus server answers there ({reason}): start it, or correct the address"


def _is_locked(path: Path) -> bool:
    try:
        import fcntl

        with path.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:  # Windows: nobody can tell
        return False
    except OSError:
        return path.exists()
    return False


def _reason(error: BaseException) -> str:
    message = getattr(error, "message", None) or getattr(error, "details", lambda: None)()
    return " ".join(str(message).split()) if message else one_line(error)


@contextmanager
def one_writer(address: Address) -> Iterator[None]:
    """Keeps other writers of this process out.

    Raises:
        StoreError: there is one.
    """
    key = (str(Path(address.server).resolve()), address.name)
    with _lock:
        if key in _writers:
            raise StoreError(f"another process is changing {address.place}: wait until it is done")
        _writers.add(key)
    try:
        yield
    finally:
        with _lock:
            _writers.remove(key)
