"""The constraints of `make check-lowest`."""

from __future__ import annotations

from lowest import constraints


def test_lower_bounds_become_constraints() -> None:
    pyproject = """
        [project]
        dependencies = ["numpy>=2", "free"]
        [project.optional-dependencies]
        one = ["psycopg[binary]>=3.2.1", "uvicorn>=0.34,<0.55", "numpy>=2.1"]
        two = ["uvicorn>=0.9"]
        all = ["whiten[one]"]
    """
    assert [*constraints(pyproject)] == ["numpy==2.1", "psycopg==3.2.1", "uvicorn==0.34"]
