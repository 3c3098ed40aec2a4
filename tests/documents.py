"""The commands and code blocks of a page, run as a reader would."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from warm import run_command

# What a reader puts in place of the long-running defaults.
SMALLER = {"--epochs": "2", "--batch-size": "16", "--whiten-dim": "16", "--views": "2"}


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


def commands(page: str) -> list[str]:
    """Its lines of shell that call whiten, but for `serve`, which does not end by itself."""
    lines = [
        line
        for block in blocks(page, "sh")
        for line in block.replace("\\\n", " ").splitlines()
        if line.startswith("whiten ")
    ]
    return [line for line in lines if not line.startswith("whiten serve ")]


def run(command: str, folder: Path) -> None:
    """Run a command in a folder; it must end well and print something."""
    words = shlex.split(command, comments=True)[1:]
    if words[0] == "distill":
        words += [word for option in SMALLER.items() if option[0] not in words for word in option]
    done = run_command(*words, folder=folder)
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    assert done.stdout, command
