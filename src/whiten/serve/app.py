"""The routes of the service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import FastAPI, Form, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from pydantic import BaseModel
from pydantic_core import to_json
from starlette.exceptions import HTTPException

from whiten._version import __version__
from whiten.errors import ConfigError, ImageError, StoreError, one_line
from whiten.index import Index, Match
from whiten.media.reading import stamp_of
from whiten.serve.batching import Batcher, BusyError
from whiten.serve.description import REFUSALS, Problem, allowed_methods, describe, invalid_field
from whiten.serve.guard import Guard
from whiten.serve.limits import RETRY, Limits
from whiten.serve.live import LiveIndex, Question, UnknownImageError
from whiten.serve.metrics import CONTENT_TYPE, Measured, Metrics
from whiten.serve.pages import Page, reference_page, search_page
from whiten.serve.pictures import SIZES, Thumbnails
from whiten.serve.queries import Asked, Embedder, Named, RefusedError, Search, SearchSent, Sent
from whiten.serve.settings import Settings

FORM = "multipart/form-data"
_SEARCHES = 32  # that share a pass over the vectors
_MOST_LISTED = 1000
_JPEG = {"content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}}


class Item(BaseModel):
    """An indexed image."""

    id: str
    group: str | None = None
    frame_ms: int | None = None
    metadata: dict[str, Any] = {}


class Hit(Item):
    """An answer; its score is the cosine similarity to the query, -1 to 1."""

    score: float


class Hits(BaseModel):
    """Best first."""

    hits: list[Hit]


class Listing(BaseModel):
    """Some of the images, in the order of the index."""

    total: int
    offset: int
    items: list[Item]


class Embedding(BaseModel):
    """Of length 1."""

    dim: int
    embedding: list[float]


class About(BaseModel):
    """What is served, and its limits."""

    images: int
    model: str
    dim: int
    columns: dict[str, str]
    version: str
    max_upload: int
    max_pixels: int
    max_hits: int


def create_app(index: Index, settings: Settings | None = None) -> FastAPI:
    """The service of an index, for any ASGI server.

    Args:
        index: open; its encoder is loaded here. Changes of other processes are seen within a
            second.
        settings: limits, and to whom it is open; by default to this machine alone by name, but an
            address to listen on is the server's to choose.

    Raises:
        ConfigError, StoreError, TeacherError: the index's model cannot be opened.
    """
    settings = settings or Settings()
    live = LiveIndex(index)
    metrics = Metrics(lambda: len(live), lambda: embedder.waiting)
    embedder = Embedder(index.encoder, live, settings, metrics)
    searcher: Batcher[Question, list[Match]] = Batcher(
        "whiten-search", live.search, batch=_SEARCHES, waiting=settings.waiting + _SEARCHES
    )
    thumbnails = Thumbnails()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.gather(run_sync(embedder.close), run_sync(searcher.close))

    app = FastAPI(
        title="whiten",
        version=__version__,
        description="Search a collection of images by image.",
        docs_url=None,  # FastAPI's own page fetches scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
        responses={code: {"model": Problem} for code in REFUSALS},
    )
    # The last one added is the first one asked.
    app.add_middleware(Limits, settings=settings)
    app.add_middleware(Guard, settings=settings)
    app.add_middleware(Measured, metrics=metrics)
    _answer_errors(app)

    async def hits(asked: Asked, query: Named) -> Response:
        if asked.k > settings.max_hits:
            raise RefusedError(422, f"k must be at most {settings.max_hits}, not {asked.k}")
        where = await run_sync(live.read_where, asked.where) if asked.where else None
        vector = await embedder.vector(query)
        found = await searcher.ask(Question(vector, asked.k, where))
        least = -2.0 if asked.threshold is None else asked.threshold
        return _json(
            {"hits": [_shown(hit) | {"score": hit.score} for hit in found if hit.score >= least]}
        )

    @app.post(
        "/search",
        summary="Images that are like one that is sent, or named",
        response_model=Hits,
    )
    async def search(query: Annotated[SearchSent, Form(media_type=FORM)]) -> Response:
        return await hits(query, query)

    @app.get("/search", summary="Images that are like one that is named", response_model=Hits)
    async def search_named(query: Annotated[Search, Query()]) -> Response:
        return await hits(query, query)

    @app.post(
        "/embed",
        summary="The embedding of an image that is sent, or named",
        response_model=Embedding,
    )
    async def embed(query: Annotated[Sent, Form(media_type=FORM)]) -> Response:
        vector = await embedder.vector(query)
        return _json({"dim": len(vector), "embedding": vector.tolist()})

    @app.get("/items", summary="List the indexed images", response_model=Listing)
    async def items(
        offset: Annotated[int, Query(ge=0, le=1 << 40)] = 0,
        limit: Annotated[int, Query(ge=1, le=_MOST_LISTED)] = 100,
    ) -> Response:
        total, found = await run_sync(live.listing, offset, limit)
        return _json({"total": total, "offset": offset, "items": list(map(_shown, found))})

    @app.get("/item", summary="What is known of an indexed image", response_model=Item)
    async def item(id: Annotated[str, Query()]) -> Response:  # noqa: A002 - the name in the URL
        return _json(_shown(await run_sync(live.item, id)))

    @app.get(
        "/image",
        summary="An indexed image as a JPEG of at most `size` pixels",
        response_class=Response,
        responses={200: _JPEG, 304: {"description": "It has not changed"}},
    )
    async def image(
        request: Request,
        id: Annotated[str, Query()],  # noqa: A002
        size: Annotated[int, Query(ge=SIZES[0], le=SIZES[1])] = 320,
    ) -> Response:
        path = await run_sync(live.file, id)
        content = await run_sync(_stamp, path)
        tag = f'"{content}-{size}"'
        headers = {"ETag": tag, "Cache-Control": "private, max-age=60", "Vary": "Authorization"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        try:
            data, (width, height) = await run_sync(
                thumbnails.get, path, content, size, limiter=embedder.decoders
            )
        except ImageError as error:  # its file is gone, or is a video
            raise RefusedError(404, f"the image of {id[:200]!r} cannot be shown: {error}") from None
        headers |= {"X-Image-Width": str(width), "X-Image-Height": str(height)}
        return Response(data, media_type="image/jpeg", headers=headers)

    @app.get("/index", summary="What is served, and its limits")
    async def about() -> About:
        facts = await run_sync(lambda: live.facts)
        return About(
            images=await run_sync(lambda: len(live)),
            model=facts.name,
            dim=facts.dim,
            columns=facts.columns,
            version=__version__,
            max_upload=settings.max_upload,
            max_pixels=settings.max_pixels,
            max_hits=settings.max_hits,
        )

    @app.get("/healthz", summary="Whether the index can be read")
    async def healthz() -> dict[str, str]:
        await run_sync(lambda: len(live))
        return {"status": "ok"}

    @app.get(
        "/metrics",
        summary="Counters for Prometheus",
        response_class=PlainTextResponse,
        response_description="Prometheus' text format",
    )
    async def prometheus() -> Response:
        return Response(await run_sync(metrics.text), media_type=CONTENT_TYPE)

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return _html(search_page())

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return _html(reference_page(app.openapi()))

    describe(app, settings)
    return app


def _shown(match: Match) -> dict[str, Any]:
    """An `Item`: where files lie on the server is no client's business."""
    return {
        "id": match.id,
        "group": match.group,
        "frame_ms": match.frame_ms,
        "metadata": match.metadata,
    }


def _json(content: dict[str, Any]) -> Response:
    """What is known to be right: to check it against its model takes as long as all the rest."""
    return Response(to_json(content, inf_nan_mode="null"), media_type="application/json")


def _stamp(path: str) -> str:
    """Changes when a file does."""
    return "-".join(map(str, stamp_of(path) or ("gone",)))


def _html(page: Page) -> HTMLResponse:
    return HTMLResponse(page.html, headers={"Content-Security-Policy": page.policy})


Handler = Callable[[Request, Any], Awaitable[JSONResponse]]


def _answer_errors(app: FastAPI) -> None:
    """What a client did wrong is said in one sentence, `detail`."""

    def answer(status: int, headers: dict[str, str] | None = None) -> Handler:
        async def handler(_: Request, error: Exception) -> JSONResponse:
            return JSONResponse({"detail": one_line(error)}, status, headers)

        return handler

    async def refused(_: Request, error: RefusedError) -> JSONResponse:
        return JSONResponse({"detail": one_line(error)}, error.status)

    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"detail": invalid_field(error.errors())}, 422)

    async def not_allowed(request: Request, _: HTTPException) -> JSONResponse:
        allowed = allowed_methods(app, request)
        message = f"{request.method} does not work here: use {' or '.join(allowed)}"
        return JSONResponse({"detail": message[:200]}, 405, {"Allow": ", ".join(allowed)})

    async def busy(_: Request, error: BusyError) -> JSONResponse:
        return JSONResponse({"detail": "too many requests wait: try again soon"}, 503, RETRY)

    async def unreadable(_: Request, error: StoreError) -> JSONResponse:
        return JSONResponse({"detail": "the index cannot be read at present"}, 503, RETRY)

    app.add_exception_handler(RefusedError, refused)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, invalid)  # type: ignore[arg-type]
    app.add_exception_handler(405, not_allowed)  # type: ignore[arg-type]
    app.add_exception_handler(BusyError, busy)  # type: ignore[arg-type]
    app.add_exception_handler(StoreError, unreadable)  # type: ignore[arg-type]
    app.add_exception_handler(UnknownImageError, answer(404))
    app.add_exception_handler(ConfigError, answer(422))
    app.add_exception_handler(ImageError, answer(415))
