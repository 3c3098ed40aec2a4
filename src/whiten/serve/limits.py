"""Limit the size and duration of requests, and turn internal errors into responses."""

from __future__ import annotations

import asyncio
import logging

from h11 import LocalProtocolError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from whiten.serve.settings import Settings

RETRY = {"Retry-After": "1"}
_DRAINED = 4  # multiples of the limit read and discarded, so that the client gets the response

log = logging.getLogger("whiten.serve")


class Limits:
    """Ends requests that are too large or too slow, and turns internal errors into responses."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._max = settings.max_upload
        self._timeout = settings.timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        has_started = False
        has_arrived = False
        size = 0

        async def receive_some() -> Message:
            nonlocal has_arrived, size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self._max:
                await self._drain(receive, message)
                raise self._too_large()
            has_arrived = has_arrived or not message.get("more_body", False)
            return message

        async def send_and_note(message: Message) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        declared = Headers(scope=scope).get("content-length", "")
        answer: JSONResponse
        try:
            async with asyncio.timeout(self._timeout):
                if declared.isdecimal() and int(declared[:20]) > self._max:
                    if "expect" not in Headers(scope=scope):
                        await self._drain(receive, {"more_body": True})
                    raise self._too_large()
                await self._app(scope, receive_some, send_and_note)
                return
        except HTTPException as error:
            answer = JSONResponse({"detail": error.detail}, error.status_code)
        except TimeoutError:
            limit = f"{self._timeout:g} seconds"
            if has_arrived or scope["method"] != "POST":  # only that uploads
                answer = JSONResponse({"detail": f"no answer within {limit}"}, 503, RETRY)
            else:
                answer = JSONResponse({"detail": f"the upload took more than {limit}"}, 408)
        except LocalProtocolError:
            return  # the client disconnected or broke the protocol, and gets no response
        except Exception:
            log.exception("an error while answering %s %s", scope["method"], scope["path"])
            answer = JSONResponse({"detail": "an error of the service; its log has more"}, 500)
        if not has_started:
            await answer(scope, receive, send)

    def _too_large(self) -> HTTPException:
        return HTTPException(413, f"the upload is above the limit of {self._max:,} bytes")

    async def _drain(self, receive: Receive, message: Message) -> None:
        """Read and discard the rest: a client that is still sending does not read the response."""
        left = _DRAINED * self._max
        while message.get("more_body", False) and left > 0:
            message = await receive()
            left -= len(message.get("body", b""))
