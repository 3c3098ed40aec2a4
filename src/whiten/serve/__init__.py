"""Serve an index: an HTTP interface and a search page.

Takes uploads, ids and filters; returns JSON, thumbnails and a page. It only responds to requests
and makes none of its own.
"""

from whiten.errors import MissingExtraError

try:
    import fastapi  # noqa: F401
    import prometheus_client  # noqa: F401
    import python_multipart  # noqa: F401
    import uvicorn  # noqa: F401
except ImportError:
    raise MissingExtraError("serving an index", "serve") from None

from whiten.serve.app import create_app
from whiten.serve.settings import Settings

__all__ = ["Settings", "create_app"]
