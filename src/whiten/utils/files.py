"""Write files and folders atomically, and detect damaged files."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

from whiten.errors import ConfigError, refuse_later
from whiten.utils.arrays import Array


def write_atomically(path: Path, content: bytes) -> None:
    """Write under a temporary name, then rename; a failed write leaves nothing."""
    with renaming(path) as partial:
        partial.write_bytes(content)


def write_durably(path: Path, content: bytes) -> None:
    """Write atomically, and return once the file is on the disk and would survive a power cut."""
    with renaming(path) as partial, written_out(partial) as file:
        file.write(content)
    flush_folder(path.parent)


@contextmanager
def written_out(path: Path) -> Iterator[IO[bytes]]:
    """Open a file to write; it is on the disk when the block ends without error."""
    with path.open("wb") as file:
        yield file
        file.flush()
        flush(file.fileno())


@contextmanager
def renaming(path: Path) -> Iterator[Path]:
    """Yield a temporary name next to `path`, and rename it to that when the block ends.

    If the block raises, the temporary file is removed.
    """
    partial = partial_of(path)
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def remove_if_only(folder: Path, name: str) -> None:
    """Remove a folder if it holds nothing, or nothing but the file of this name."""
    with suppress(OSError):  # it was removed meanwhile
        if {path.name for path in folder.iterdir()} <= {name}:
            (folder / name).unlink(missing_ok=True)
            folder.rmdir()


def partial_of(path: Path) -> Path:
    """Return the temporary name under which a file is written."""
    return path.with_name(f".{path.name}.partial")


_temporary: set[Path] = set()


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield a new folder that is removed when the block ends; see `what_stays`."""
    with tempfile.TemporaryDirectory(prefix="whiten-") as name:
        folder = Path(name)
        _temporary.add(folder)
        try:
            yield folder
        finally:
            _temporary.discard(folder)


def what_stays(path: Path, what: str) -> str:
    """Return for the error of a write what is kept of the work so far, and what to do.

    Args:
        path: what could not be written.
        what: what was written before it: "shards".
    """
    if any(folder in path.parents for folder in _temporary):
        return (
            "the folder is temporary and nothing in it is kept, make room there, set TMPDIR to a "
            "larger disk, or keep embeddings with --cache FOLDER"
        )
    return f"the {what} before it are kept, make room or give access and run again"


_HEADER, _OLD_HEADER = "whiten.2", "whiten"  # the old one had no checksum


def save_sealed(path: Path, arrays: Mapping[str, Array], facts: Mapping[str, Any]) -> None:
    """Write arrays and JSON-serialisable facts, atomically; equal content gives equal bytes."""
    from safetensors.numpy import save

    tensors = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    facts = {**facts, "checksum": _checksum(facts, tensors)}
    # One JSON value under one key: safetensors writes several keys in random order.
    header = {_HEADER: json.dumps(facts, sort_keys=True)}
    write_atomically(path, save(tensors, metadata=header))


def load_sealed(path: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    """Read the facts and the arrays.

    Raises:
        OSError: the file cannot be read.
        ValueError, KeyError: the file is damaged, or holds something else.
        StoreError: the file is of a later version.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(os.fspath(path), framework="numpy") as file:
            headers = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    numbers = [name.removeprefix("whiten.") for name in headers if name.startswith("whiten.")]
    for number in numbers:
        refuse_later(path, "file", number, int(_HEADER.removeprefix("whiten.")))
    is_sealed = _HEADER in headers
    facts = json.loads(headers[_HEADER if is_sealed else _OLD_HEADER])
    if not isinstance(facts, dict):
        raise ValueError("its header is no mapping")
    if is_sealed and facts.pop("checksum") != _checksum(facts, tensors):
        raise ValueError("its content does not have the checksum it was saved with")
    return facts, tensors


def _checksum(facts: Mapping[str, Any], tensors: Mapping[str, Array]) -> str:
    digest = hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}|{tensor.shape}|{tensor.dtype}|".encode())
        digest.update(np.ascontiguousarray(tensor).data)
    return digest.hexdigest()


# What file systems answer that cannot do it: network mounts, FUSE, some of Windows.
_CANNOT = frozenset(
    {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK, errno.EBADF}
)


def flush(file: int) -> None:
    """Flush an open file or folder to the disk, on file systems that can."""
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise


def flush_folder(folder: Path) -> None:
    """Flush a folder, so that a rename in it is durable, on file systems that can."""
    if not hasattr(os, "O_DIRECTORY"):  # Windows
        return
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        if error.errno in _CANNOT | {errno.EACCES, errno.EPERM}:
            return
        raise
    try:
        flush(handle)
    finally:
        os.close(handle)


def lock(file: IO[Any] | int) -> bool:
    """Lock an open file or folder for this process until it is closed; return whether one can.

    Raises:
        BlockingIOError: another process has locked it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _CANNOT:
            return False
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise BlockingIOError(*error.args) from error
        raise
    return True


@contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Lock a folder itself for the time of the block, on systems that can.

    Raises:
        BlockingIOError: another process, or another thread, holds it.
    """
    if not hasattr(os, "O_DIRECTORY"):  # Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        lock(handle)
        yield
    finally:
        os.close(handle)


@contextmanager
def replacing(target: Path, marker: str, what: str) -> Iterator[Path]:
    """Yield a new folder that replaces `target` when the block ends without error.

    Args:
        target: the folder to write or to replace.
        marker: file that every folder of this kind contains; others are not replaced.
        what: description of such a folder for the message: "an export".

    Raises:
        ConfigError: `target` is a file, or holds something else.
    """
    if target.exists() and not target.is_dir():
        raise ConfigError(f"{target} is a file: name another --out")
    if target.is_dir() and any(target.iterdir()) and not (target / marker).is_file():
        raise ConfigError(f"{target} holds something else than {what}: name another --out")
    target = target.absolute()
    partial, old = (target.with_name(f".{target.name}.{end}") for end in ("partial", "old"))
    # A kill between these two renames leaves only the earlier folder, under the name `old`.
    if old.exists() and not target.exists():
        os.replace(old, target)
    for left in (partial, old):
        shutil.rmtree(left, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if target.exists():
            os.replace(target, old)
        os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
