"""Batch waiting requests for a single thread, and limit how many may wait."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from typing import Generic, TypeVar

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


class BusyError(Exception):
    """Raised if too many requests wait already."""


class Batcher(Generic[Asked, Answer]):
    """Calls a function with all requests that arrived during its previous call.

    Batches form only when requests arrive faster than they are processed; a single request never
    waits for others.

    Args:
        name: name of the thread.
        call: processes several requests; returns for each the answer, or the exception to raise.
        batch: maximum requests per call.
        waiting: maximum waiting requests, besides those in process.
    """

    def __init__(
        self,
        name: str,
        call: Callable[[Sequence[Asked]], Sequence[Answer | Exception]],
        *,
        batch: int,
        waiting: int,
    ) -> None:
        self._call = call
        self._batch = batch
        self._queue: queue.Queue[tuple[Asked, Future[Answer]] | None] = queue.Queue(waiting)
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        return self._queue.qsize()

    async def ask(self, asked: Asked) -> Answer:
        """Return the answer; a request cancelled while it waits is not processed.

        Raises:
            BusyError: too many wait.
        """
        future: Future[Answer] = Future()
        try:
            self._queue.put_nowait((asked, future))
        except queue.Full:
            raise BusyError from None
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Process the waiting requests, then end."""
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (first := self._queue.get()) is not None:
            taken = [first]
            is_last = False
            while len(taken) < self._batch and not is_last:
                try:
                    following = self._queue.get_nowait()
                except queue.Empty:
                    break
                if following is None:
                    is_last = True
                else:
                    taken.append(following)
            self._answer([one for one in taken if one[1].set_running_or_notify_cancel()])
            if is_last:
                return

    def _answer(self, taken: list[tuple[Asked, Future[Answer]]]) -> None:
        if not taken:
            return
        answers: Sequence[Answer | Exception]
        try:
            answers = self._call([asked for asked, _ in taken])
        except Exception as error:  # raised where the answers are awaited; the thread goes on
            answers = [error] * len(taken)
        for (_, future), answer in zip(taken, answers, strict=True):
            try:
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)
            except InvalidStateError:
                pass  # its request was cancelled
