"""Request bodies, and the embeddings of the images in them."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Coroutine, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import UploadFile
from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic.config import JsonDict

from whiten.errors import ImageError
from whiten.media.boxes import Box, crop
from whiten.media.decoding import MAX_PIXELS, decode
from whiten.media.reading import read_bytes
from whiten.models.inputs import Embeddable
from whiten.serve.batching import Batcher, BusyError
from whiten.serve.live import LiveIndex, UnavailableError
from whiten.serve.metrics import Metrics
from whiten.serve.pictures import require_image
from whiten.serve.settings import Settings
from whiten.utils.arrays import Vectors

MOST_IMAGES = 32  # per query
_DECODERS = 4


class RefusedError(Exception):
    """A request that is refused, with its status code."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


# Sides of a box: numbers, and numbers above 0.
_SIDE = r"-?\d{1,7}(\.\d{1,20})?"
_LENGTH = r"([1-9]\d{0,6}(\.\d{1,20})?|0\.\d{0,8}[1-9]\d{0,12})"
# A form sends an empty list for a field left empty; the schema requires none.
_SOME: JsonDict = {"minItems": 1}
_BOX = f"^$|^({_SIDE},){{2}}{_LENGTH},{_LENGTH}$"

Ids = Annotated[
    list[Annotated[str, Field(min_length=1)]],
    Field(description="ids of indexed images", max_length=MOST_IMAGES, json_schema_extra=_SOME),
]
BoxText = Annotated[
    str,
    Field(
        description="x,y,width,height of the part of the single image to use, in pixels of the "
        "upright image",
        pattern=_BOX,
    ),
]


class Images(BaseModel):
    """Images that are one query: uploads, files below the service's folders, indexed images."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"anyOf": [{"required": [name]} for name in ("image", "path", "id")]},
    )

    image: Annotated[
        list[UploadFile],
        Field(
            description="image files, whatever their declared type",
            max_length=MOST_IMAGES,
            json_schema_extra={**_SOME, "items": {"type": "string", "format": "binary"}},
        ),
    ] = []
    path: Annotated[
        list[Annotated[str, Field(min_length=1)]],
        Field(
            description="files below a folder that the service reads",
            max_length=MOST_IMAGES,
            json_schema_extra=_SOME,
        ),
    ] = []
    id: Ids = []
    box: BoxText = ""

    @field_validator("image", "path", "id", mode="before")
    @classmethod
    def _without_empty(cls, value: list[object]) -> list[object]:
        """Drop empty texts, which a form sends for fields left empty."""
        return [part for part in value if part != ""]


class Options(BaseModel):
    """Options of a search, see `whiten.index.query.SearchOptions`."""

    model_config = ConfigDict(extra="forbid")

    k: Annotated[int, Field(ge=1, le=1000, description="most hits")] = 10
    threshold: Annotated[
        float, Field(ge=-2, le=2, allow_inf_nan=False, description="lowest score of a hit")
    ] = -2.0
    where: Annotated[
        str,
        Field(
            description="filter on columns, as price < 10 and group == 'a'",
            json_schema_extra={"format": "whiten-filter"},
        ),
    ] = ""
    combine: Annotated[
        Literal["mean", "max"],
        Field(description="search with the mean of several images, or score by the best of them"),
    ] = "mean"
    videos: Annotated[bool, Field(description="return videos, each with its best frame")] = False
    expand: Annotated[
        int, Field(ge=0, le=100, description="first hits that a second search adds to the query")
    ] = 0
    alpha: Annotated[
        float, Field(ge=0, le=100, allow_inf_nan=False, description="power that weighs these hits")
    ] = 3.0
    background: Annotated[
        bool,
        Field(description="subtract the similarity to the service's background from the scores"),
    ] = False


class SearchById(Options):
    """A search with indexed images."""

    id: Annotated[Ids, Field(min_length=1)]
    box: BoxText = ""


class SearchByImages(Options, Images):
    """A search with any images."""


class Embedder:
    """Embeds the images that clients upload or name, within the limits.

    Attributes:
        waiting: requests whose images are in memory.
        decoders: limits the images decoded at once; each may take 600 MB.
    """

    def __init__(self, live: LiveIndex, settings: Settings, metrics: Metrics) -> None:
        self._live = live
        self._settings = settings
        self._metrics = metrics
        self._roots = settings.real_roots
        self._most = settings.waiting + settings.batch
        self.waiting = 0
        self.decoders = CapacityLimiter(_DECODERS)
        self._batcher: Batcher[Embeddable, tuple[Vectors, str]] = Batcher(
            "whiten-embed", self._embed, batch=settings.batch, waiting=self._most
        )

    def close(self) -> None:
        self._batcher.close()

    async def vectors(self, query: Images | SearchById) -> tuple[Vectors, str]:
        """Embed the images of a query.

        Returns:
            (n, dim), uploads first, then files, then indexed images, and the fingerprint of the
            index's model that they are of.

        Raises:
            UnavailableError: the index was made again with another model meanwhile.
            RefusedError, ConfigError: the query cannot be answered.
            UnknownImageError: an id is not in the index.
            ImageError: an image cannot be decoded, or is beyond a limit.
            BusyError: too many requests wait.
        """
        uploads, paths = (query.image, query.path) if isinstance(query, Images) else ([], [])
        count = len(uploads) + len(paths) + len(query.id)
        if count == 0:
            raise RefusedError(422, "nothing to search for: send an image, a path or an id")
        if not query.box:
            known = [await run_sync(self._live.vector, name) for name in query.id]
            reads = [*map(self._upload, uploads), *map(self._file, paths)]
            return _of_one_model([*[await self._embedded(read) for read in reads], *known])
        if count > 1:
            raise RefusedError(409, "a box is a part of one image: send exactly one image")
        if query.id:
            paths = [await run_sync(self._live.file, query.id[0])]
            read = self._indexed(paths[0])
        else:
            read = self._upload(uploads[0]) if uploads else self._file(paths[0])
        return _of_one_model([await self._embedded(read, Box.parse(query.box))])

    async def _embedded(
        self, read: Awaitable[tuple[bytes, int]], box: Box | None = None
    ) -> tuple[Vectors, str]:
        """Return the (dim,) embedding of an image and its model; reads it only if there is room."""
        if self.waiting >= self._most:
            if isinstance(read, Coroutine):
                read.close()
            raise BusyError
        self.waiting += 1
        try:
            data, most = await read
            prepared = await run_sync(_prepare, data, most, box, limiter=self.decoders)
            return await self._batcher.ask(prepared)
        finally:
            self.waiting -= 1

    async def _upload(self, file: UploadFile) -> tuple[bytes, int]:
        return await file.read(), self._settings.max_pixels

    async def _file(self, path: str) -> tuple[bytes, int]:
        return await run_sync(lambda: read_bytes(allowed_path(path, self._roots))), MAX_PIXELS

    async def _indexed(self, path: str) -> tuple[bytes, int]:
        return await run_sync(read_bytes, path), MAX_PIXELS

    def _embed(self, images: Sequence[Embeddable]) -> list[tuple[Vectors, str] | Exception]:
        """Embed images; called only in the thread that uses the model."""
        encoder, model = self._live.encoder()
        try:
            with self._metrics.embedding.time():
                vectors = encoder.embed(images)
        except ImageError as error:
            if len(images) == 1:
                return [error]
            return [self._embed([image])[0] for image in images]  # to find the damaged one
        self._metrics.embedded.inc(len(images))
        return [(vector, model) for vector in vectors]


def _of_one_model(found: Sequence[tuple[Vectors, str]]) -> tuple[Vectors, str]:
    [model, *others] = {model for _, model in found}
    if others:
        raise UnavailableError("the index was made again with another model just now: try again")
    return np.stack([vector for vector, _ in found]), model


def _prepare(data: bytes, max_pixels: int, box: Box | None) -> Embeddable:
    require_image(data, max_pixels)
    if box is None:
        return data
    image = decode(data)
    try:
        return crop(image, box)
    except ImageError as error:  # the image is fine, the box is not
        raise RefusedError(409, str(error)) from None


def allowed_path(text: str, roots: Sequence[Path]) -> str:
    """Return the file that a client names, with symbolic links resolved.

    Files elsewhere are refused with the same message whether or not they exist.

    Args:
        text: absolute path, or relative to any of the roots.
        roots: folders, with symbolic links resolved.

    Raises:
        RefusedError: the path leads outside all roots, or there is no file.
    """
    if not roots:
        raise RefusedError(403, "this service reads no files by path: it has to be opened for them")
    if "\0" in text:
        raise RefusedError(422, "a path has no null bytes")
    inside = []
    for root in roots:
        try:
            real = Path(os.path.realpath(root / text))
        except (OSError, ValueError):  # for example a name that is too long
            continue
        if any(real.is_relative_to(one) for one in roots):
            inside.append(real)
    if not inside:
        raise RefusedError(403, "this path is not below a folder that the service reads from")
    for real in inside:
        if _is_file(real):
            return os.fspath(real)
    raise RefusedError(404, "there is no such file")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
