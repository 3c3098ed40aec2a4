"""The command line in this process or in one of its own, and a small run to try it on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from whiten import cli

STUDENT = "timm:test_efficientnet?pretrained=0&size=64"
SMALL = ["--dim", "4", "--whiten-dim", "3", "--epochs", "1", "--batch-size", "4"]

Captured = pytest.CaptureFixture[str]


def fails(capsys: Captured, *arguments: object, progress: str = "") -> str:
    """Exit code 2 and one line of stderr, which is returned; before it at most the `progress`."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert caught.value.code == 2
    assert out == ""
    if progress:
        done, err = err.split("\n", 1)
        assert done.startswith(progress)
    assert err.startswith("whiten: ")
    assert err.count("\n") == 1 and err.endswith("\n"), err
    return err


def prints(capsys: Captured, *arguments: object) -> tuple[str, str]:
    """What a command that succeeds writes to stdout and stderr."""
    capsys.readouterr()
    cli.main([str(argument) for argument in arguments])
    return capsys.readouterr()


def start(*arguments: object, code: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "whiten", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(code)},
        timeout=120,
    )
