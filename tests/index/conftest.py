"""What tests of indexes share: six images."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def groups() -> dict[str, int]:
    return {"a": 3, "b": 3}
