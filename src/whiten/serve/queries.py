"""From what a client sends to an embedding: an upload, a file it names, or an indexed image."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import UploadFile
from pydantic import BaseModel, ConfigDict, Field

from whiten.embedding.encoder import Encoder
from whiten.errors import ImageError
from whiten.media.boxes import Box, crop
from whiten.media.decoding import MAX_PIXELS, decode
from whiten.media.reading import read_bytes
from whiten.models.inputs import Embeddable
from whiten.serve.batching import Batcher, BusyError
from whiten.serve.live import LiveIndex
from whiten.serve.metrics import Metrics
from whiten.serve.pictures import require_image
from whiten.serve.settings import Settings
from whiten.utils.arrays import Vectors

_DECODERS = 4


class RefusedError(Exception):
    """A request that cannot be answered, with the status that says why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Named(BaseModel):
    """An image that the service can reach itself, or a part of it."""

    model_config = ConfigDict(extra="forbid")

    id: Annotated[str | None, Field(description="of an indexed image")] = None
    path: Annotated[
        str | None, Field(description="of a file below a folder that the service was opened for")
    ] = None
    box: Annotated[
        str | None,
        Field(description="x,y,width,height of a part, in pixels of the upright image"),
    ] = None


class Sent(Named):
    """An image that is uploaded, or one that is named; or a part of it."""

    image: Annotated[
        UploadFile | None,
        Field(description="an image file, whatever type is declared"),
    ] = None


class Asked(BaseModel):
    """Which hits are wanted."""

    k: Annotated[int, Field(ge=1, description="hits, fewer where there are not so many")] = 10
    threshold: Annotated[
        float | None,
        Field(ge=-1, le=1, allow_inf_nan=False, description="the lowest cosine similarity"),
    ] = None
    where: Annotated[
        str, Field(description="only images of which this is true, as price < 10 and group == 'a'")
    ] = ""


class Search(Asked, Named):
    """A search by an image that is named."""


class SearchSent(Asked, Sent):
    """A search by any image."""


class Embedder:
    """Embeds what clients send or name, within the limits.

    Attributes:
        waiting: requests whose images are in memory.
        decoders: how many images are decoded at once, of which each may take 600 MB.
    """

    def __init__(
        self, encoder: Encoder, live: LiveIndex, settings: Settings, metrics: Metrics
    ) -> None:
        self._encoder = encoder
        self._live = live
        self._settings = settings
        self._metrics = metrics
        self._roots = settings.real_roots
        self._most = settings.waiting + settings.batch
        self.waiting = 0
        self.decoders = CapacityLimiter(_DECODERS)
        self._batcher: Batcher[Embeddable, Vectors] = Batcher(
            "whiten-embed", self._embed, batch=settings.batch, waiting=self._most
        )

    def close(self) -> None:
        self._batcher.close()

    async def vector(self, query: Named) -> Vectors:
        """(dim,) embedding.

        Raises:
            RefusedError, ConfigError: what is asked cannot be answered.
            UnknownImageError: it is not in the index.
            ImageError: it cannot be decoded, or is beyond a limit.
            BusyError: too many wait.
        """
        image = query.image if isinstance(query, Sent) else None
        # A form's empty field is one that was left out.
        given = [n for n in ("image", "id", "path") if getattr(query, n, None) not in (None, "")]
        if len(given) != 1:
            ways = "image, id or path" if isinstance(query, Sent) else "id or path"
            raise RefusedError(
                422, f"send one of {ways}, not {' and '.join(given) if given else 'none'}"
            )
        box = Box.parse(query.box) if query.box else None
        if query.id and box is None:
            return await run_sync(self._live.vector, query.id)
        if self.waiting >= self._most:
            raise BusyError
        self.waiting += 1
        try:
            if image is not None:
                data = await image.read()
                most = self._settings.max_pixels
            else:
                data = await run_sync(self._read, query)
                most = MAX_PIXELS
            prepared = await run_sync(_prepare, data, most, box, limiter=self.decoders)
            return await self._batcher.ask(prepared)
        finally:
            self.waiting -= 1

    def _read(self, query: Named) -> bytes:
        if query.path:
            return read_bytes(allowed_path(query.path, self._roots))
        assert query.id is not None
        return read_bytes(self._live.file(query.id))

    def _embed(self, images: Sequence[Embeddable]) -> list[Vectors | Exception]:
        """In the one thread that the model is used in."""
        try:
            with self._metrics.embedding.time():
                vectors = self._encoder.embed(images)
        except ImageError as error:
            if len(images) == 1:
                return [error]
            return [self._embed([image])[0] for image in images]  # who is at fault
        self._metrics.embedded.inc(len(images))
        return list(vectors)


def _prepare(data: bytes, max_pixels: int, box: Box | None) -> Embeddable:
    require_image(data, max_pixels)
    return data if box is None else crop(decode(data), box)


def allowed_path(text: str, roots: Sequence[Path]) -> str:
    """The file that a client names, free of symbolic links.

    What lies elsewhere is refused in the same words whether it exists or not.

    Args:
        text: absolute, or relative to any of the roots.
        roots: free of symbolic links.

    Raises:
        RefusedError: the path leads out of all roots, or no file is there.
    """
    if not roots:
        raise RefusedError(403, "this service reads no files by path: it has to be opened for them")
    if "\0" in text:
        raise RefusedError(422, "a path has no null bytes")
    inside = []
    for root in roots:
        try:
            real = Path(os.path.realpath(root / text))
        except (OSError, ValueError):  # such as a name beyond what the system takes
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
