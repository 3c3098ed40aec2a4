"""Mapping on threads: in order, a bounded way ahead."""

from __future__ import annotations

import threading
import time

import pytest

from whiten.utils.threads import ordered_map


def test_ordered_map_keeps_the_order() -> None:
    def slow_when_early(number: int) -> int:
        time.sleep(0.002 * (10 - number % 10))
        return number * number

    out = ordered_map(slow_when_early, range(50), workers=4, ahead=8)
    assert list(out) == [n * n for n in range(50)]
    assert list(ordered_map(slow_when_early, [], workers=4, ahead=8)) == []


def test_ordered_map_looks_ahead_no_further_than_asked() -> None:
    started: list[int] = []
    lead = []
    for taken, _ in enumerate(ordered_map(started.append, range(100), workers=3, ahead=5)):
        time.sleep(0.001)  # time enough for threads that would run away
        lead.append(len(started) - (taken + 1))
    assert len(started) == 100
    assert 0 < max(lead) <= 5


def test_ordered_map_hands_on_exceptions_in_order_and_stops() -> None:
    started: list[int] = []

    def fail_at_seven(number: int) -> int:
        started.append(number)
        if number == 7:
            raise ValueError("seven")
        return number

    got = []
    with pytest.raises(ValueError, match="seven"):
        for number in ordered_map(fail_at_seven, range(1000), workers=2, ahead=4):
            got.append(number)
    assert got == list(range(7))
    assert len(started) <= 12


def test_ordered_map_ends_its_threads_when_it_is_left() -> None:
    results = ordered_map(lambda n: n, range(1000), workers=2, ahead=4)
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]
    for thread in threading.enumerate():
        if thread.name.startswith("whiten-media"):
            thread.join(30)
            assert not thread.is_alive()


def test_an_abandoned_map_joins_no_thread() -> None:
    """The garbage collector may close it where that would wait forever."""
    go_on = threading.Event()

    def wait_but_for_the_first(number: int) -> int:
        assert number == 0 or go_on.wait(60)
        return number

    results = ordered_map(wait_but_for_the_first, range(3), workers=1)
    assert next(results) == 0
    closing = threading.Thread(target=results.close)  # type: ignore[attr-defined]
    closing.start()
    closing.join(30)
    is_closed = not closing.is_alive()
    go_on.set()
    closing.join()
    assert is_closed
