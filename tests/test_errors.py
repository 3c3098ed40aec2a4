"""What stands behind an error."""

from __future__ import annotations

import pytest

from whiten.errors import causes, counted
from whiten.storage.retrying import status_of


def raised(error: Exception, cause: Exception | None) -> Exception:
    error.__cause__ = cause
    return error


def test_causes_in_their_order() -> None:
    first = OSError("cable")
    second = raised(ValueError("no answer"), first)
    assert list(causes(raised(RuntimeError("failed"), second)))[1:] == [second, first]


def test_an_error_may_be_its_own_cause() -> None:
    """Clients of gRPC raise one from itself when they try again."""
    error = ValueError("again")
    assert list(causes(raised(error, error))) == [error]
    assert status_of(error) is None


def test_two_errors_may_be_each_others_cause() -> None:
    one, other = ValueError("one"), OSError("other")
    assert list(causes(raised(one, raised(other, one)))) == [one, other]


def test_a_handled_error_is_no_cause() -> None:
    """A missing object that was being handled says nothing about a connection that then broke."""
    missing = OSError("missing")
    missing.status = 404  # type: ignore[attr-defined]
    broken = ConnectionError("broken")
    broken.__context__ = missing
    assert list(causes(broken)) == [broken]
    assert list(causes(broken, contexts=True)) == [broken, missing]
    assert status_of(broken) is None
    assert status_of(raised(broken, missing)) == 404


@pytest.mark.parametrize(
    ("count", "what", "text"),
    [
        (1, "image", "1 image"),
        (0, "image", "0 images"),
        (2000, "query", "2,000 queries"),
        (2, "exact copy", "2 exact copies"),
        (1, "exact copy", "1 exact copy"),
        (3, "tar file", "3 tar files"),
    ],
)
def test_counted(count: int, what: str, text: str) -> None:
    assert counted(count, what) == text
