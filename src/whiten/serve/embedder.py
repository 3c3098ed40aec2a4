"""Embed the images of requests: decoded by a pool of threads, passed to the model by one."""

from __future__ import annotations

from collections.abc import Awaitable, Coroutine, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import UploadFile

from whiten.errors import ImageError
from whiten.media.boxes import Box, crop
from whiten.media.decoding import MAX_PIXELS, decode
from whiten.media.reading import read_bytes
from whiten.models.inputs import Embeddable, Rendered
from whiten.models.teacher import Teacher
from whiten.serve.batching import Batcher, BusyError
from whiten.serve.live import LiveIndex, UnavailableError
from whiten.serve.metrics import Metrics
from whiten.serve.pictures import of_indexed, require_image
from whiten.serve.queries import Images, RefusedError, SearchById, allowed_path
from whiten.serve.settings import Settings
from whiten.utils.arrays import Vectors

_DECODERS = 4  # at once, also on one core: files and uploads are waited for, too

Read: TypeAlias = Awaitable[tuple[bytes, int]]
"""Gives the content of a file, and the most pixels that it may have."""


@dataclass(frozen=True)
class Received:
    """An image file with its (dim,) embedding, and the fingerprint of the index's model."""

    data: bytes
    vector: Vectors
    model: str


class Embedder:
    """Embeds the images that clients upload or name, within the limits.

    While the model computes a batch, the pool decodes the images of the next one.

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
            raise RefusedError(422, "no image: send an image, a path or an id")
        if not query.box:
            known = [await run_sync(self._live.vector, name) for name in query.id]
            received = [await self.receive(self.upload(file)) for file in uploads]
            received += [await self.receive(self.file(path)) for path in paths]
            return _of_one_model([*[(one.vector, one.model) for one in received], *known])
        if count > 1:
            raise RefusedError(409, "a box is a part of one image: send exactly one image")
        box = Box.parse(query.box)
        if query.id:
            path = await run_sync(self._live.file, query.id[0])
            with of_indexed(query.id[0]):
                one = await self.receive(self._indexed(path), box)
        else:
            read = self.upload(uploads[0]) if uploads else self.file(paths[0])
            one = await self.receive(read, box)
        return one.vector[None], one.model

    async def receive(self, read: Read, box: Box | None = None) -> Received:
        """Read and embed an image, if there is room; see `vectors` for the errors.

        Args:
            read: `upload` or `file`.
            box: the part of the image to embed.
        """
        if self.waiting >= self._most:
            if isinstance(read, Coroutine):
                read.close()
            raise BusyError
        self.waiting += 1
        try:
            data, most = await read
            prepared = await run_sync(self._prepare, data, most, box, limiter=self.decoders)
            return Received(data, *await self._batcher.ask(prepared))
        finally:
            self.waiting -= 1

    async def upload(self, file: UploadFile) -> tuple[bytes, int]:
        return await file.read(), self._settings.max_pixels

    async def file(self, path: str) -> tuple[bytes, int]:
        return await run_sync(lambda: read_bytes(allowed_path(path, self._roots))), MAX_PIXELS

    async def _indexed(self, path: str) -> tuple[bytes, int]:
        return await run_sync(read_bytes, path), MAX_PIXELS

    def _prepare(self, data: bytes, max_pixels: int, box: Box | None) -> Embeddable:
        """Decode an image for the model; called in threads."""
        require_image(data, max_pixels)
        if box is None:
            encoder, _ = self._live.encoder()
            models = [part.teacher for part in encoder.parts]
            # A store of embeddings looks at the content only.
            networks = [model for model in models if isinstance(model, Teacher)]
            return Rendered.of(data, {network.preprocess for network in networks})
        image = decode(data)
        try:
            return crop(image, box)
        except ImageError as error:  # the image is fine, the box is not
            raise RefusedError(409, str(error)) from None

    def _embed(self, images: Sequence[Embeddable]) -> list[tuple[Vectors, str] | Exception]:
        """Embed images; called only in the thread that uses the model."""
        encoder, model = self._live.encoder()
        try:
            with self._metrics.embedding.time():
                vectors = encoder.embed(images)
        except ImageError as error:
            if len(images) == 1:
                return [error]
            return [self._embed([image])[0] for image in images]  # to find the one
        self._metrics.embedded.inc(len(images))
        return [(vector, model) for vector in vectors]


def _of_one_model(found: Sequence[tuple[Vectors, str]]) -> tuple[Vectors, str]:
    [model, *others] = {model for _, model in found}
    if others:
        raise UnavailableError("the index was made again with another model just now: try again")
    return np.stack([vector for vector, _ in found]), model
