"""A folder to work in, with images and teachers that cost nothing, and a finished run."""

from __future__ import annotations

from pathlib import Path

import pytest

from command_line import SMALL, STUDENT
from helpers import TEACHER, write_factory, write_groups
from whiten import cli


@pytest.fixture(autouse=True)
def place(colour_teachers: None) -> None:
    """Every test of the command line works in a folder of its own."""


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, groups: dict[str, int]) -> Path:
    """A finished run, with its report; made once."""
    root = tmp_path_factory.mktemp("finished")
    write_factory(root / "code")
    write_groups(root / "images", groups)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root / "code")
        command = ["distill", str(root / "images"), "--teachers", TEACHER, "--student", STUDENT]
        cli.main([*command, *SMALL, "--out", str(root / "run"), "--test", str(root / "images")])
    return root / "run"
