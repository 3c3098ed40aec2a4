"""HTTP methods: HEAD wherever GET works, and the `Allow` header of 405."""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.routing import Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Methods:
    """Answers HEAD like GET, without the body, which the server omits, and lists a path's methods.

    Args:
        router: the routes of the service; each knows only its own methods.
    """

    def __init__(self, app: ASGIApp, router: Router) -> None:
        self._app = app
        self._router = router

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        inner = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope

        async def send_with_allow(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 405:
                MutableHeaders(scope=message)["allow"] = ", ".join(self._allowed(scope))
            await send(message)

        try:
            await self._app(inner, receive, send_with_allow)
        finally:
            if "route" in inner:
                scope["route"] = inner["route"]  # for the counters

    def _allowed(self, scope: Scope) -> list[str]:
        found: set[str] = set()
        for route in self._router.routes:
            methods = getattr(route, "methods", None) or set()
            for method in methods:
                match, _ = route.matches({**scope, "method": method})
                if match.name == "FULL":
                    found.add(method)
        return sorted(found | {"HEAD"} if "GET" in found else found)
