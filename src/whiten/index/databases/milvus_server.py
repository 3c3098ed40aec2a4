"""Connect to Milvus: to a server, or to a file, which the client serves from a thread."""

from __future__ import annotations

import atexit
import logging
import os
import re
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

from whiten.errors import ConfigError, LockedError, MissingExtraError, StoreError, causes, one_line
from whiten.index.databases.addresses import Address
from whiten.utils.files import lock

TOKEN = "WHITEN_MILVUS_TOKEN"  # environment variable: a token, or `user:password`
_SECONDS = 10.0  # timeout to connect to a server
_OLDEST = (2, 3)  # version of a server that can replace rows, and delete by any condition
_NULLS = (2, 5)  # version with nullable fields
_users: Counter[str] = Counter()  # open clients per file
_writers: set[tuple[str, str]] = set()
_lock = threading.Lock()
# Clients whose owners are gone. The garbage collector may find out anywhere, even while a lock of
# gRPC or ours is held, so that it only appends to this queue, which is always safe.
_left: SimpleQueue[tuple[Any, str]] = SimpleQueue()


class Client:
    """The methods of pymilvus' `MilvusClient`, with one-line errors."""

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
    """Return a client that lives as long as its owner; None if the file is missing and not created.

    Raises:
        MissingExtraError: pymilvus, or for a file milvus-lite, is not installed.
        StoreError: the file holds something else or is open in another process, or no server
            answers.
        ConfigError: the address is neither a file nor a server.
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


def keeps_nulls(client: Client, address: Address) -> bool:
    """Return whether fields may be nullable: on servers since 2.5, and in Milvus Lite.

    Raises:
        StoreError: the server is older than any that this works with.
    """
    if "://" not in address.server:
        return True
    version = str(client.get_server_version())
    numbers = re.search(r"(\d+)\.(\d+)", version)
    if numbers is None:  # a build of their development branch
        return True
    found = (int(numbers[1]), int(numbers[2]))
    if found < _OLDEST:
        raise StoreError(
            f"{address.place}: the server is Milvus {version}, too old to keep an index: "
            f"{'.'.join(map(str, _OLDEST))} or later is needed"
        )
    return found >= _NULLS


def _is_lite(path: Path, address: Address) -> bool:
    """Return whether a file is a Milvus Lite database; False if it is missing."""
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

    # Errors are raised; these loggers would also print them with a traceback.
    for name in ("pymilvus", "milvus_lite"):
        logging.getLogger(name).setLevel(logging.CRITICAL)

    _start_closing()
    try:
        with _lock:
            _users[server] += 1  # first, so that no other client stops the server
            client = MilvusClient(server, token=token, timeout=_SECONDS)
    except (MilvusException, ValueError, OSError) as error:
        _users[server] -= 1
        raise StoreError(f"{address.place}: {_why_not(address, server, error)}") from error
    weakref.finalize(owner, _left.put, (client, server))
    return Client(client, address.place)


@cache
def _start_closing() -> None:
    """Start a thread that closes abandoned clients, and close the rest at exit."""
    atexit.register(_close_rest)  # registered before the finalizers, so it runs after them
    threading.Thread(target=_close_left, name="whiten-milvus", daemon=True).start()


def _close_left() -> None:
    while True:
        client, server = _left.get()
        with suppress(Exception):  # the server may be gone
            _disconnect(client, server)


def _close_rest() -> None:
    with suppress(Exception):  # best effort at exit
        while True:
            _disconnect(*_left.get_nowait())


def _disconnect(client: Any, server: str) -> None:
    """Close a client; the last of a file stops its server, so other processes may open it."""
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
    if _is_refused(error):
        return (
            f"the server refuses the token ({reason}): set {TOKEN} to the server's token, or to "
            "USER:PASSWORD"
        )
    return f"no Milvus server answers there ({reason}): start it, or correct the address"


def _is_refused(error: BaseException) -> bool:
    """Return whether a server was reached that wants another token; clients hide that deeper."""
    return any("auth" in _reason(cause).lower() for cause in causes(error))


def _is_locked(path: Path) -> bool:
    try:
        with path.open("r+") as file:
            lock(file)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _reason(error: BaseException) -> str:
    message = getattr(error, "message", None) or getattr(error, "details", lambda: None)()
    return " ".join(str(message).split()) if message else one_line(error)


@contextmanager
def one_writer(address: Address) -> Iterator[None]:
    """Lock out other writers of this process.

    Raises:
        StoreError: there is another writer.
    """
    key = (str(Path(address.server).resolve()), address.name)
    with _lock:
        if key in _writers:
            raise LockedError(f"another process is changing {address.place}: wait until it is done")
        _writers.add(key)
    try:
        yield
    finally:
        with _lock:
            _writers.remove(key)
