"""The routes of the service."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import Depends, FastAPI, Form, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel
from pydantic_core import to_json
from starlette.exceptions import HTTPException

from whiten._version import __version__
from whiten.errors import ConfigError, ImageError, StorageError, StoreError, one_line
from whiten.index import Index, Match
from whiten.index.columns import GROUP
from whiten.index.query import SearchOptions, combined, require_same_model
from whiten.index.rows import json_values
from whiten.media.reading import stamp_of
from whiten.serve.batching import Batcher, BusyError
from whiten.serve.embedder import Embedder
from whiten.serve.guard import OPEN, Guard
from whiten.serve.items import ITEM, Writes, add_routes
from whiten.serve.limits import RETRY, Limits
from whiten.serve.live import LiveIndex, Search, UnavailableError, UnknownImageError
from whiten.serve.methods import Methods
from whiten.serve.metrics import CONTENT_TYPE, Measured, Metrics
from whiten.serve.pages import Page, reference_page, search_page
from whiten.serve.pictures import SIZES, Thumbnails, of_indexed
from whiten.serve.problems import first_problem
from whiten.serve.queries import (
    FORM,
    Images,
    Options,
    RefusedError,
    SearchById,
    SearchByImages,
    fields_of,
    refuse_ignored,
)
from whiten.serve.settings import Settings


class JPEGResponse(Response):
    media_type = "image/jpeg"


class MetricsResponse(Response):
    media_type = CONTENT_TYPE


_SEARCHES = 32  # that share one pass over the vectors
_MOST_LISTED = 1000
_WRITING = ("POST", "PUT", "PATCH", "DELETE")
_PROBLEMS = (400, 401, 403, 404, 405, 408, 409, 413, 415, 422, 503)


class Item(BaseModel):
    """An indexed image."""

    id: str
    group: str | None = None
    frame_ms: int | None = None
    metadata: dict[str, Any] = {}


class Hit(Item):
    """An image that was found; its score is the cosine similarity to the query, -1 to 1,
    minus the similarity to the background if that is subtracted."""

    score: float


class Hits(BaseModel):
    """Best first."""

    hits: list[Hit]


class Listing(BaseModel):
    """A page of the images, in the order of the index."""

    total: int
    offset: int
    items: list[Item]


class Embeddings(BaseModel):
    """One embedding per image, L2-normalised: uploads first, then files, then indexed images."""

    dim: int
    embeddings: list[list[float]]


class About(BaseModel):
    """The served index, and its limits."""

    images: int
    model: str
    dim: int
    columns: dict[str, str]
    version: str
    max_upload: int
    max_pixels: int
    max_hits: int


class Problem(BaseModel):
    """The reason why a request failed."""

    detail: str


def create_app(
    index: Index, settings: Settings | None = None, *, background: Index | None = None
) -> FastAPI:
    """Build the service of an index, for any ASGI server.

    Args:
        index: open index; its encoder is loaded here. Changes by other processes are seen within a
            second.
        settings: limits and access; by default only this machine's names are allowed. The server
            chooses the address to listen on.
        background: index of images that match no query, for searches with `background`.

    Raises:
        ConfigError, StoreError, TeacherError: the index's model cannot be opened, or the background
            is of another.
    """
    settings = settings or Settings()
    require_same_model(index, background)
    live = LiveIndex(index, background=background, writable=settings.writable)
    metrics = Metrics(partial(_count, live), lambda: embedder.waiting)
    live.load()
    embedder = Embedder(live, settings, metrics)
    searcher: Batcher[Search, list[Match]] = Batcher(
        "whiten-search", live.search, batch=_SEARCHES, waiting=settings.waiting + _SEARCHES
    )
    writes = Writes(index, live, embedder, settings) if settings.writable else None
    thumbnails = Thumbnails()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await run_sync(embedder.close)  # first: what it answers may wait for the others
        await run_sync(searcher.close)
        if writes is not None:
            await run_sync(writes.close)

    app = FastAPI(
        title="whiten",
        version=__version__,
        description="Search a collection of images by image.",
        docs_url=None,  # FastAPI's own page loads scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # to an address that a proxy with TLS does not have
        lifespan=lifespan,
        dependencies=[Depends(refuse_ignored)],
        responses={code: {"model": Problem} for code in _PROBLEMS},
    )
    # The last one added is the outermost.
    app.add_middleware(Methods, router=app.router)
    app.add_middleware(Limits, settings=settings)
    app.add_middleware(Guard, settings=settings)
    app.add_middleware(Measured, metrics=metrics)
    _answer_errors(app, is_writable=settings.writable)
    _complete_description(app, needs_token=settings.token is not None)

    async def hits(query: SearchByImages | SearchById) -> Response:
        if query.k > settings.max_hits:
            raise RefusedError(422, f"k must be at most {settings.max_hits}, not {query.k}")
        options = SearchOptions(
            query.k,
            query.threshold,
            await run_sync(live.read_where, query.where) if query.where else None,
            query.videos,
            query.expand,
            query.alpha if query.expand else SearchOptions.alpha,
            _chosen(background, query),
        )
        vectors, model = await embedder.vectors(query)
        found = await searcher.ask(Search(combined(vectors, query.combine), options, model))
        return _json({"hits": [_shown(hit) | {"score": hit.score} for hit in found]})

    @app.post("/search", summary="Search with images", response_model=Hits)
    async def search(query: Annotated[SearchByImages, Form(media_type=FORM)]) -> Response:
        return await hits(query)

    @app.get("/search", summary="Search with indexed images", response_model=Hits)
    async def search_by_id(query: Annotated[SearchById, Query()]) -> Response:
        return await hits(query)

    @app.post("/embed", summary="Embed images", response_model=Embeddings)
    async def embed(query: Annotated[Images, Form(media_type=FORM)]) -> Response:
        vectors, _ = await embedder.vectors(query)
        return _json({"dim": vectors.shape[1], "embeddings": vectors.tolist()})

    @app.get("/items", summary="List the indexed images", response_model=Listing)
    async def items(
        offset: Annotated[int, Query(ge=0, le=1 << 40)] = 0,
        limit: Annotated[int, Query(ge=1, le=_MOST_LISTED)] = 100,
    ) -> Response:
        total, found = await run_sync(live.listing, offset, limit)
        return _json({"total": total, "offset": offset, "items": list(map(_shown, found))})

    @app.get("/item", summary="An indexed image with its metadata", response_model=Item)
    async def item(id: Annotated[str, Query()]) -> Response:  # noqa: A002 - the name in the URL
        return _json(_shown(await run_sync(live.item, id)))

    @app.get(ITEM, include_in_schema=False)  # where it is deleted
    async def item_at(id: str) -> Response:  # noqa: A002
        return await item(id)

    @app.get(
        "/image",
        summary="An indexed image as a JPEG of at most this size",
        response_class=JPEGResponse,
        responses={304: {"description": "The client has this image"}},
    )
    async def image(
        request: Request,
        id: Annotated[str, Query()],  # noqa: A002
        size: Annotated[int, Query(ge=SIZES[0], le=SIZES[1])] = 320,
    ) -> Response:
        path = await run_sync(live.file, id)
        with of_indexed(id):  # its file may be missing, or a video
            content = await run_sync(_stamp, path)
            tag = f'"{content}-{size}"'
            headers = {"ETag": tag, "Cache-Control": "private, max-age=60", "Vary": "Authorization"}
            known = request.headers.get("if-none-match", "").split(",")
            if tag in [one.strip().removeprefix("W/") for one in known]:  # proxies weaken tags
                return Response(status_code=304, headers=headers)
            data, (width, height) = await run_sync(
                thumbnails.get, path, content, size, limiter=embedder.decoders
            )
        headers |= {"X-Image-Width": str(width), "X-Image-Height": str(height)}
        return JPEGResponse(data, headers=headers)

    if writes is not None:
        add_routes(app, writes, lambda match, status: _json(_shown(match), status), Item)

    @app.get("/index", summary="What is served, and its limits")
    async def about() -> About:
        facts = await run_sync(lambda: live.facts)
        return About(
            images=await run_sync(lambda: len(live)),
            model=facts.name,
            dim=facts.dim,
            columns={name: kind for name, kind in facts.columns.items() if name != GROUP},
            version=__version__,
            max_upload=settings.max_upload,
            max_pixels=settings.max_pixels,
            max_hits=settings.max_hits,
        )

    @app.get("/healthz", summary="Whether the index can be read, and searched with its model")
    async def healthz() -> dict[str, str]:
        await run_sync(live.encoder)
        await run_sync(lambda: len(live))
        return {"status": "ok"}

    @app.get("/metrics", summary="Counters for Prometheus", response_class=MetricsResponse)
    async def prometheus() -> Response:
        return MetricsResponse(await run_sync(metrics.text))

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return _html(search_page())

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return _html(reference_page(app.openapi()))

    return app


def _count(live: LiveIndex) -> float:
    """Return the number of images; nan while the index cannot be read: the rest is counted on."""
    try:
        return len(live)
    except (StoreError, UnavailableError):
        return math.nan


def _chosen(background: Index | None, query: Options) -> Index | None:
    if query.background and background is None:
        raise RefusedError(409, "this service has no background: start it with --background")
    return background if query.background else None


def _shown(match: Match) -> dict[str, Any]:
    """Convert to an `Item`; paths on the server are not shown to clients."""
    return {
        "id": match.id,
        "group": match.group,
        "frame_ms": match.frame_ms,
        "metadata": json_values(match.metadata),
    }


def _json(content: dict[str, Any], status: int = 200) -> Response:
    """Skip validation of the response, which takes as long as everything else."""
    return Response(to_json(content, inf_nan_mode="null"), status, media_type="application/json")


def _stamp(path: str) -> str:
    """Return a stamp that changes when the file does."""
    return "-".join(map(str, stamp_of(path) or ("gone",)))


def _html(page: Page) -> HTMLResponse:
    return HTMLResponse(page.html, headers={"Content-Security-Policy": page.policy})


def _complete_description(app: FastAPI, *, needs_token: bool) -> None:
    """Describe errors as JSON, also for routes that respond with other types; and the token."""
    described = app.openapi
    problem = {"application/json": {"schema": {"$ref": "#/components/schemas/Problem"}}}

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is not None:  # each request asks for it
            return app.openapi_schema
        description = described()
        if needs_token:
            scheme = {"type": "http", "scheme": "bearer"}
            description["components"]["securitySchemes"] = {"token": scheme}
        for path, operations in description["paths"].items():
            for operation in operations.values():
                if needs_token and path not in OPEN:
                    operation["security"] = [{"token": []}]
                for code, answer in operation["responses"].items():
                    if int(code) >= 400:
                        answer["content"] = problem
        return description

    app.openapi = openapi  # type: ignore[method-assign]


Handler = Callable[[Request, Any], Awaitable[JSONResponse]]


def _answer_errors(app: FastAPI, *, is_writable: bool) -> None:
    """Respond to errors with one sentence, `detail`."""

    def answer(
        status: int, detail: str | None = None, headers: Mapping[str, str] | None = None
    ) -> Handler:
        async def handler(_: Request, error: Exception) -> JSONResponse:
            return JSONResponse({"detail": detail or one_line(error)}, status, headers)

        return handler

    async def refused(_: Request, error: RefusedError) -> JSONResponse:
        return JSONResponse({"detail": one_line(error)}, error.status)

    async def http(request: Request, error: HTTPException) -> JSONResponse:
        detail = error.detail
        is_write = request.method in _WRITING and request.url.path.startswith("/items")
        if error.status_code == 405 and is_write and not is_writable:
            detail = "this service only reads: start it with --writable"
        return JSONResponse({"detail": detail}, error.status_code, error.headers)

    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        detail = first_problem(error.errors(), fields_of(request))
        return JSONResponse({"detail": detail}, 422)

    handlers: dict[type[Exception], Handler] = {
        HTTPException: http,
        RequestValidationError: invalid,
        RefusedError: refused,
        UnknownImageError: answer(404),
        ImageError: answer(415),
        ConfigError: answer(422),
        UnavailableError: answer(503, headers=RETRY),
        BusyError: answer(503, "too many requests wait: try again soon", RETRY),
        StoreError: answer(503, "the index cannot be read at present", RETRY),
        StorageError: answer(503, "the storage of this image does not answer", RETRY),
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)
