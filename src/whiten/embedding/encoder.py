"""One interface to everything that embeds: a teacher, a student, or several teachers fused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from whiten.datasets.collection import Item
from whiten.embedding.embed import embed, store_folder
from whiten.embedding.fitting import fused_fingerprint
from whiten.models.inputs import Embeddable, embed_inputs, listed
from whiten.models.stored_model import Model, StoredModel
from whiten.store.store import Store
from whiten.utils.arrays import Vectors, normalize_rows
from whiten.utils.progress import Update, progress
from whiten.whitening.whitener import Whitener


@dataclass
class Part:
    """One model of an encoder and the whitening of its embeddings, if there is one."""

    teacher: Model
    whitener: Whitener | None = None

    @property
    def dim(self) -> int:
        return self.teacher.dim if self.whitener is None else len(self.whitener.projection_)

    def apply(self, embeddings: Vectors) -> Vectors:
        if self.whitener is None:
            return embeddings
        return normalize_rows(self.whitener.transform(embeddings))


class Encoder:
    """Embeds images; several parts are concatenated, each with equal weight.

    Attributes:
        name: for tables.
        dim: dimension of the embedding.
        parts: the models.
        uri: what `load` opens it by; "" where it takes more than that.
        rotation: PCA of the concatenated parts, to fewer dimensions.
        batch_size: images per pass through a model; None chooses by its device.
    """

    def __init__(
        self, name: str, parts: Sequence[Part], uri: str = "", rotation: Whitener | None = None
    ) -> None:
        self.name = name
        self.parts = list(parts)
        self.uri = uri
        self.rotation = rotation
        self.batch_size: int | None = None
        width = sum(part.dim for part in parts)
        self.dim = width if rotation is None else len(rotation.projection_)

    def fingerprint(self) -> str:
        """Changes when any weights, preprocessing, whitening or the rotation change."""
        models = [part.teacher.fingerprint() for part in self.parts]
        return fused_fingerprint(models, [part.whitener for part in self.parts], self.rotation)

    def can_query(self, gallery: str) -> bool:
        """Whether its embeddings can query a gallery.

        Args:
            gallery: fingerprint of the encoder that embedded it: this one, or the one that this
                student was made compatible with.
        """
        if gallery == self.fingerprint():
            return True
        [*others, last] = self.parts
        is_plain = not others and last.whitener is None and self.rotation is None
        return is_plain and gallery in last.teacher.compatible_with

    def embed(
        self,
        images: Sequence[Embeddable] | Embeddable,
        *,
        batch_size: int | None = None,
        show_progress: bool = False,
    ) -> Vectors:
        """Embed images: (n, dim) float32, L2-normalised.

        Args:
            images: paths, contents of files, PIL images or (h, w, 3) uint8 RGB arrays.
            batch_size: images per pass through a model; by default that of the encoder.
            show_progress: show progress on stderr.

        Raises:
            ImageError: an image cannot be read; the message names it.
        """
        inputs = listed(images)
        if not len(inputs):
            return np.zeros((0, self.dim), np.float32)
        size = batch_size or self.batch_size
        blocks = []
        for part in self.parts:
            name = f"embed {part.teacher.name}"
            with progress(name, enabled=show_progress, unit="images") as update:
                blocks.append(part.apply(_embed_part(part.teacher, inputs, size, update)))
        return self.join(blocks)

    def join(self, blocks: Sequence[Vectors]) -> Vectors:
        """The embedding, (n, dim), of what each part made of the same images, (n, part.dim)."""
        joined = blocks[0] if len(blocks) == 1 else np.concatenate(blocks, axis=1)
        if self.rotation is not None:
            joined = self.rotation.transform(joined)
        if len(blocks) > 1 or self.rotation is not None:
            joined = normalize_rows(joined)
        return joined.astype(np.float32, copy=False)


def embed_cached(
    teacher: Model,
    items: Sequence[Item],
    cache: Path,
    *,
    show_progress: bool = False,
) -> Store:
    """Embed whole images into the cache's store of this teacher, as far as they are missing."""
    with progress(f"embed {teacher.name}", enabled=show_progress, unit="images") as update:
        exact, half = (store_folder(cache, teacher, precision=p) for p in ("32", "bf16"))
        # What a bf16 run has cached is taken as it is; anything else would embed twice.
        folder = half if half.exists() and not exact.exists() else exact
        return embed(items, teacher, folder, progress=update)


def _embed_part(
    model: Model, images: Sequence[Embeddable], batch_size: int | None, update: Update
) -> Vectors:
    if isinstance(model, StoredModel):
        return model.embed_files(images)
    return embed_inputs(model, images, batch_size, update)
