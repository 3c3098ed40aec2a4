"""What tests of models that a hub may hold share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

from whiten.models.sources import hub


@pytest.fixture
def empty_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No model that the machine has at hand, and no look outside."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    # transformers 4 has copied it.
    own = "transformers.utils.hub.TRANSFORMERS_CACHE"
    monkeypatch.setattr(own, str(tmp_path / "hf"), raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(hub, "answers", refuse_network)


def refuse_network(server: str) -> bool:
    raise AssertionError(f"a local model asked {server}")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """For files of 100 to 200 MB, which pytest would keep."""
    yield tmp_path
    for path in tmp_path.iterdir():
        path.unlink()
