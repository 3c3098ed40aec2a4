"""Check each request's host, origin and token before it is read, and add security headers."""

from __future__ import annotations

import hmac
import ipaddress

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from whiten.serve.settings import Settings

# Open without a token: these reveal nothing about the index.
OPEN = frozenset(["/", "/docs", "/openapi.json", "/healthz"])

_PORTS = {"http": "80", "https": "443"}

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Guard:
    """Refuses requests before reading their body.

    A page of another site can make a visitor's browser send requests to a service on this machine.
    It cannot read the responses, because no foreign origin is allowed, except by pointing its own
    name at this machine (DNS rebinding): so the Host header must name this host. Nor can it make
    the service work, because browsers send the origin of a request, which must be the service's.

    Behind a proxy, the service's origin is not always in Host: either `X-Forwarded-Host` names it,
    which pages cannot set without permission, or Host lacks its port, which browsers never leave
    out.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._hosts = {host.lower().rstrip(".") for host in ("localhost", *settings.hosts)}
        self._token = None if settings.token is None else settings.token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        port = (scope.get("server") or ("", None))[1]
        refusal = self._refusal(scope["path"], Headers(scope=scope), port)
        await (refusal or self._app)(scope, receive, send_safely)

    def _refusal(self, path: str, headers: Headers, port: int | None) -> JSONResponse | None:
        host = headers.get("host", "")
        if not self._is_ours(host):
            return _refuse(421, "this service has another name: start it with --allow-host NAME")
        origin = headers.get("origin")
        is_foreign = origin is not None and not self._is_own(origin, headers, port)
        is_cross_site = headers.get("sec-fetch-site") in ("cross-site", "same-site")
        if is_foreign or (is_cross_site and headers.get("sec-fetch-mode") != "navigate"):
            return _refuse(
                403,
                "pages of other sites are not answered; if this is the service's own page, let the "
                "proxy pass on the host with its port (nginx: proxy_set_header Host $http_host)",
            )
        if self._token is not None and path not in OPEN and not self._is_known(headers):
            return _refuse(
                401, "send the token: Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"}
            )
        return None

    def _is_own(self, origin: str, headers: Headers, port: int | None) -> bool:
        """Return whether a request comes from the service's own page, as a browser sees it."""
        scheme, _, sent = origin.lower().partition("://")
        asked = headers.get("host", "").lower()
        forwarded = headers.get("x-forwarded-host", "").partition(",")[0].strip().lower()
        if sent == asked:
            return True
        if not self._is_ours(sent):  # a name that points at a proxy which replaces Host
            return False
        name, number = _split(sent)
        number = number or _PORTS.get(scheme, "")
        if forwarded:
            host, other = _split(forwarded)
            other = other or headers.get("x-forwarded-port", "").partition(",")[0].strip()
            return name == host and (other or number) == number
        host, other = _split(asked)
        # Browsers leave out a default port only: without one, a proxy has dropped it, unless the
        # service itself listens on a default port.
        return name == host and (other or (number if port not in (80, 443) else "")) == number

    def _is_ours(self, host: str) -> bool:
        """Return whether a Host header is an IP address or one of the allowed names."""
        name, _ = _split(host.lower())
        if name.rstrip(".") in self._hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True  # with a rebound name, the browser sends that name

    def _is_known(self, headers: Headers) -> bool:
        assert self._token is not None
        scheme, _, token = headers.get("authorization", "").partition(" ")
        sent = token.strip().encode("latin-1", "replace")
        return scheme.lower() == "bearer" and hmac.compare_digest(sent, self._token)


def _split(host: str) -> tuple[str, str]:
    """Split a host as in a URL into its name, without brackets, and its port; "" for none."""
    if host.startswith("["):
        name, _, rest = host[1:].partition("]")
        return name, rest.removeprefix(":")
    if host.count(":") == 1:
        name, _, port = host.partition(":")
        return name, port
    return host, ""


def _refuse(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"detail": message}, status, headers)
