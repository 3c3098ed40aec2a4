"""The exported folder appears whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from whiten.errors import ConfigError
from whiten.exported import MANIFEST


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A new folder that takes the place of `target` at the end, unless there was an error.

    Raises:
        ConfigError: `target` holds something else than an export.
    """
    if target.exists() and not target.is_dir():
        raise ConfigError(f"{target} is a file: name another --out")
    if target.is_dir() and any(target.iterdir()) and not (target / MANIFEST).is_file():
        raise ConfigError(f"{target} holds something else than an export: name another --out")
    target = target.absolute()
    partial, old = (target.with_name(f".{target.name}.{end}") for end in ("partial", "old"))
    # What a kill has left; between the two renames below the earlier export is but here.
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
