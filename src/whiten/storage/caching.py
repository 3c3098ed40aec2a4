"""Keep what was read most recently, within a limit of bytes; threads that want the same wait."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Cache(Generic[Value]):
    """Values by key; the least recently used ones go once all together weigh more than `most`.

    Args:
        most: limit of the sum of the weights; the last value is kept whatever its weight.
        weigh: returns the weight of a value.
    """

    def __init__(self, most: int, weigh: Callable[[Value], int]) -> None:
        self._most, self._weigh = most, weigh
        self._found: OrderedDict[Hashable, Future[Value]] = OrderedDict()
        self._weight = 0
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """Return the value of a key, made by the first thread that asks for it."""
        with self._lock:
            future = self._found.get(key)
            is_new = future is None
            if future is None:
                future = self._found[key] = Future()
            self._found.move_to_end(key)
        if not is_new:
            return future.result()
        try:
            value = make()
        except BaseException as error:
            with self._lock:
                self._found.pop(key, None)
            future.set_exception(error)
            raise
        future.set_result(value)
        with self._lock:
            if key in self._found:
                self._weight += self._weigh(value)
            self._shrink()
        return value

    def forget(self, is_it: Callable[[Hashable], bool]) -> None:
        """Forget the values of some keys."""
        with self._lock:
            for key in [key for key in self._found if is_it(key)]:
                self._drop(key)

    def _shrink(self) -> None:
        for key in list(self._found)[:-1]:
            if self._weight <= self._most:
                return
            if self._found[key].done():
                self._drop(key)

    def _drop(self, key: Hashable) -> None:
        future = self._found.pop(key)
        if future.done() and future.exception() is None:
            self._weight -= self._weigh(future.result())
