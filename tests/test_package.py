"""The public names: all there, cheap to import, and what they say they are."""

from __future__ import annotations

import subprocess
import sys
from importlib import resources
from types import ModuleType

import pytest

import whiten
import whiten.distillation.distill
import whiten.evaluation.evaluate


def test_public_names_are_what_they_say() -> None:
    for name in whiten.__all__:
        assert name in dir(whiten)
        value = getattr(whiten, name)
        assert isinstance(value, ModuleType) == (name == "metrics")
        assert value.__doc__


def test_functions_are_not_shadowed_by_their_modules() -> None:
    for _ in range(2):
        assert callable(whiten.evaluate)
        assert callable(whiten.distill)
        _ = whiten.Index  # imports the module evaluate


@pytest.mark.parametrize("module", ["whiten", "whiten.cli"])
def test_importing_is_cheap(module: str) -> None:
    program = (
        f"import sys, {module}; "
        "print([m for m in ('torch', 'numpy', 'PIL', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(whiten, "nonsense")


def test_types_are_told_to_users() -> None:
    assert (resources.files("whiten") / "py.typed").is_file()
