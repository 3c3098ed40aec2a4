"""An environment of its own for each rival, so that none decides on another's versions."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


class UnavailableError(Exception):
    """A rival cannot be had here; the message is one line."""


@dataclass(frozen=True)
class Environment:
    """A virtual environment with some packages.

    Attributes:
        python: its interpreter.
        versions: what was installed, by name.
    """

    python: Path
    versions: dict[str, str]

    def run(self, *arguments: object, limit_s: float) -> str:
        """Run its interpreter and return what it prints.

        Raises:
            UnavailableError: it failed or took too long.
        """
        return _run([str(self.python), *map(str, arguments)], limit_s)


def make(folder: Path, packages: list[str], *, python: str | None = None) -> Environment:
    """Make an environment, or use the one that an earlier run made.

    Args:
        python: interpreter that the packages need, such as `python3.12`; by default this one.

    Raises:
        UnavailableError: the interpreter is missing, or the packages cannot be installed.
    """
    base = sys.executable if python is None else shutil.which(python)
    if base is None:
        raise UnavailableError(f"needs {python}, which is not installed")
    own = folder / "bin" / "python"
    mark = folder / "packages.json"
    if not (mark.is_file() and json.loads(mark.read_text()) == packages):
        shutil.rmtree(folder, ignore_errors=True)
        # A shim of pyenv starts a version that is not the current one only if told so.
        chosen = {} if python is None else {"PYENV_VERSION": python.removeprefix("python")}
        _run([base, "-m", "venv", str(folder)], 300, chosen)
        _run([str(own), "-I", "-m", "pip", "install", "--quiet", *packages], 1800)
        mark.write_text(json.dumps(packages))
    listed = json.loads(_run([str(own), "-I", "-m", "pip", "list", "--format", "json"], 120))
    version = _run([str(own), "-c", "import platform; print(platform.python_version())"], 60)
    versions = {one["name"].lower(): one["version"] for one in listed}
    return Environment(own, {"python": version.strip(), **versions})


def _run(command: list[str], limit_s: float, more: dict[str, str] | None = None) -> str:
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=limit_s,
            env={**os.environ, **(more or {})},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(" ".join(str(error).split())[-300:]) from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise UnavailableError(lines[-1].strip()[:300] if lines else f"exit code {done.returncode}")
    return done.stdout
