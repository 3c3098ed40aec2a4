"""The routes that change the index."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import FastAPI, Form, Response, UploadFile
from fastapi import Path as InPath
from pydantic import BaseModel, ConfigDict, Field, field_validator
from starlette.convertors import PathConvertor, register_url_convertor

from whiten.errors import ConfigError
from whiten.index import Index, Match
from whiten.serve.batching import Batcher
from whiten.serve.embedder import Embedder
from whiten.serve.given import read_values
from whiten.serve.live import LiveIndex, UnavailableError
from whiten.serve.queries import FORM, RefusedError, allowed_path
from whiten.serve.settings import Settings
from whiten.serve.uploads import Uploads
from whiten.serve.writing import Add, Done, Remove, Writer
from whiten.utils.hashing import content_hash

_WRITES = 64  # that share one change of the index


class _Text(PathConvertor):
    """An id in a URL. Starlette's `path` knows no line breaks, and drops one at the end."""

    regex = "(?s:.*)"


register_url_convertor("text", _Text())

ITEM = "/items/{id:text}"


class NewItem(BaseModel):
    """An image to index: an upload, or a file below the service's folders."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"oneOf": [{"required": [name]} for name in ("image", "path")]},
    )

    image: Annotated[
        list[UploadFile],
        Field(
            description="image file, whatever its declared type",
            max_length=1,
            json_schema_extra={
                "minItems": 1,
                "items": {"type": "string", "format": "binary"},
            },
        ),
    ] = []
    path: Annotated[
        str,
        Field(
            description="file below a folder that the service reads",
            json_schema_extra={"minLength": 1},
        ),
    ] = ""
    id: Annotated[
        str,
        Field(
            description="id of the image; by default that of an indexed image of the same content, "
            "else the path below the service's folder, or the hash of an upload",
            max_length=1000,
        ),
    ] = ""
    metadata: Annotated[
        str,
        Field(
            description='JSON of columns and their values, as {"price": 5}',
            json_schema_extra={"format": "whiten-metadata"},
        ),
    ] = ""

    @field_validator("image", mode="before")
    @classmethod
    def _without_empty(cls, value: list[object]) -> list[object]:
        """Drop empty texts, which a form sends for fields left empty."""
        return [part for part in value if part != ""]


def require_writable(index: Index, live: LiveIndex, settings: Settings) -> Uploads | None:
    """Return the folder of uploads; None if there is none.

    Raises:
        ConfigError: the index cannot be changed by this service, or the folder is that of another.
    """
    if not live.can_add():
        raise ConfigError(
            f"{index.place} can only be changed with the model that made it, "
            f"{index.facts.name}: leave out --model or --writable"
        )
    if index.folder is None:
        return None if settings.uploads is None else Uploads(settings.uploads, index)
    if not os.access(index.folder, os.W_OK):
        raise ConfigError(f"{index.place} cannot be written: give access, or leave out --writable")
    root = index.folder.absolute()
    return Uploads(settings.uploads or root.with_name(f"{root.name}-uploads"), index)


class Writes:
    """Takes the requests that change the index."""

    def __init__(
        self, index: Index, live: LiveIndex, embedder: Embedder, settings: Settings
    ) -> None:
        writer = Writer(live, require_writable(index, live, settings))
        self._live, self._embedder = live, embedder
        self._roots = settings.real_roots
        self._batcher: Batcher[Add | Remove, Done] = Batcher(
            "whiten-write", writer.apply, batch=_WRITES, waiting=settings.waiting + _WRITES
        )

    def close(self) -> None:
        self._batcher.close()

    async def add(self, new: NewItem) -> Done:
        """Index an image; returns once it is stored.

        Raises:
            RefusedError, ConfigError: the request cannot be met.
            ImageError: the image cannot be decoded, or is beyond a limit.
            UnavailableError, BusyError: not now.
        """
        if len(new.image) + bool(new.path) != 1:
            raise RefusedError(422, "send one image, or the path of one")
        if "\0" in new.id:
            raise RefusedError(422, "an id has no null bytes")
        if new.id in (".", ".."):  # clients take these out of an address, also if they are escaped
            raise RefusedError(422, f"an id cannot be {new.id!r}: no address would name the image")
        values = read_values(new.metadata)
        if not await run_sync(self._live.can_add):
            raise UnavailableError("the index was made again with another model")
        read = self._embedder.upload(new.image[0]) if new.image else self._embedder.file(new.path)
        received = await self._embedder.receive(read)
        content = await run_sync(content_hash, received.data)
        path = allowed_path(new.path, self._roots) if new.path else ""
        add = Add(
            new.id,
            self._below(path) if path else content,
            content,
            received.vector,
            received.model,
            path,
            received.data if new.image else b"",
            values,
        )
        return await self._batcher.ask(add)

    async def remove(self, name: str) -> Done:
        """Take an image out of the index; returns once that is stored.

        Raises:
            UnknownImageError: there is no such image.
            UnavailableError, BusyError: not now.
        """
        return await self._batcher.ask(Remove(name))

    def _below(self, path: str) -> str:
        [root, *_] = [root for root in self._roots if Path(path).is_relative_to(root)]
        return os.fsencode(Path(path).relative_to(root)).decode("utf-8", "backslashreplace")


def add_routes(
    app: FastAPI, writes: Writes, answer: Callable[[Match, int], Response], item: type[BaseModel]
) -> None:
    """Add the routes.

    Args:
        answer: makes a response of an image and a status.
        item: model of that response.
    """
    made: dict[int | str, dict[str, Any]] = {201: {"model": item, "description": "It is new"}}

    @app.post("/items", summary="Index an image", response_model=item, responses=made)
    async def add(new: Annotated[NewItem, Form(media_type=FORM)]) -> Response:
        done = await writes.add(new)
        return answer(done.item, 201 if done.is_new else 200)

    @app.delete(ITEM, summary="Take an image out of the index", response_model=item)
    async def remove(id: Annotated[str, InPath(min_length=1)]) -> Response:  # noqa: A002
        done = await writes.remove(id)
        return answer(done.item, 200)
