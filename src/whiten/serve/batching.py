"""Requests that wait are answered together, by one thread, and no more than so many may wait."""

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
    """So many wait already that one more would wait too long."""


class Batcher(Generic[Asked, Answer]):
    """Calls a function with what has come in while it was called the last time.

    A batch forms by itself when requests come faster than they are answered; one that is alone
    never waits for company.

    Args:
        name: of the thread.
        call: answers several at once; for each the answer, or the exception to raise.
        batch: at most so many.
        waiting: at most so many wait, beside those that are being answered.
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
        """The answer; what is given up on while it waits costs nothing.

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
        """Answer what waits, then end."""
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
        except Exception as error:  # is raised where the answers are awaited; the thread lives on
            answers = [error] * len(taken)
        for (_, future), answer in zip(taken, answers, strict=True):
            try:
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)
            except InvalidStateError:
                pass  # nobody waits for it any more
