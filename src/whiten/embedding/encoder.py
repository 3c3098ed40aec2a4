"""One interface for every model that embeds: a teacher, a student, or several teachers fused."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

import numpy as np

from whiten.datasets.collection import Item, Items
from whiten.embedding.embed import embed, store_folder
from whiten.embedding.fitting import fused_fingerprint
from whiten.models.inputs import (
    Embeddable,
    Embedded,
    Errors,
    Failed,
    embed_inputs,
    listed,
    require_errors,
)
from whiten.models.opening import for_many, runtime_of
from whiten.models.stored_model import Model, StoredModel
from whiten.models.uri import lasting
from whiten.store.store import Store
from whiten.utils.arrays import Vectors, normalize_rows
from whiten.utils.progress import Update, progress
from whiten.views.plan import ViewPlan
from whiten.whitening.whitener import Whitener

if TYPE_CHECKING:
    from whiten.embedding.cluster import Cluster


@dataclass
class Part:
    """One model of an encoder, and the whitening of its embeddings, if any."""

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
    """Embeds images; the embeddings of several parts are concatenated.

    Attributes:
        name: display name.
        dim: embedding dimension.
        parts: the models.
        uri: argument of `load` that opens it; "" if that takes more arguments.
        rotation: PCA of the concatenated embeddings to fewer dimensions.
        weights: one per part, with a mean of 1; None if they are equal. A part's embeddings are
            multiplied by the square root, so that similarities are weighted means of cosines.
        batch_size: images per batch; None chooses by device.
    """

    def __init__(
        self,
        name: str,
        parts: Sequence[Part],
        uri: str = "",
        rotation: Whitener | None = None,
        weights: Sequence[float] | None = None,
    ) -> None:
        self.name = name
        self.parts = list(parts)
        self.uri = uri
        self.rotation = rotation
        self.weights = None if weights is None else list(weights)
        self.batch_size: int | None = None
        width = sum(part.dim for part in parts)
        self.dim = width if rotation is None else len(rotation.projection_)

    def __repr__(self) -> str:
        return f"Encoder({self.uri or self.name!r}, dim={self.dim}, runtime={self.runtime!r})"

    @property
    def runtime(self) -> str:
        """Runtimes of the models, joined by +: torch, onnx, openvino or torchscript."""
        return "+".join(sorted({runtime_of(part.teacher) for part in self.parts}))

    def fingerprint(self) -> str:
        """Fingerprint; changes with any model, preprocessing, whitening, rotation or weight."""
        models = [part.teacher.fingerprint() for part in self.parts]
        return fused_fingerprint(
            models, [part.whitener for part in self.parts], self.rotation, self.weights
        )

    def made(self, uri: str, recorded: str) -> bool:
        """Return whether this encoder made what is recorded under a URI and fingerprint.

        See `Identity.made`.
        """
        if recorded == self.fingerprint():
            return True
        models = [part.teacher.earlier_fingerprint() for part in self.parts]
        whiteners = [part.whitener for part in self.parts]
        earlier = fused_fingerprint(models, whiteners, self.rotation, self.weights)
        return bool(uri) and lasting(uri) == self.uri and recorded == earlier

    def can_query(self, gallery: str) -> bool:
        """Return whether its embeddings can query a gallery.

        Args:
            gallery: fingerprint of the encoder that embedded the gallery: this one, or the one that
                this student was made compatible with.
        """
        if gallery == self.fingerprint():
            return True
        [*others, last] = self.parts
        is_plain = not others and last.whitener is None and self.rotation is None
        return is_plain and gallery in last.teacher.compatible_with

    @overload
    def embed(
        self,
        images: Iterable[Embeddable] | Embeddable,
        *,
        batch_size: int | None = None,
        show_progress: bool = False,
        errors: Literal["raise"] = "raise",
    ) -> Vectors: ...

    @overload
    def embed(
        self,
        images: Iterable[Embeddable] | Embeddable,
        *,
        batch_size: int | None = None,
        show_progress: bool = False,
        errors: Literal["skip"],
    ) -> Embedded: ...

    def embed(
        self,
        images: Iterable[Embeddable] | Embeddable,
        *,
        batch_size: int | None = None,
        show_progress: bool = False,
        errors: Errors = "raise",
    ) -> Vectors | Embedded:
        """Embed images: (n, dim) float32, L2-normalised.

        Args:
            images: one or several, in any form of `Embeddable`: paths, contents of files, open
                files, PIL images, (h, w, 3) uint8 RGB arrays, (3, h, w) tensors.
            batch_size: images per batch; by default the encoder's.
            show_progress: show progress on stderr.
            errors: `raise` at the first image that cannot be read; or `skip` such images and
                return an `Embedded`, which holds the others' embeddings and says which failed.

        Raises:
            ImageError: an image cannot be read; the message names it.
        """
        require_errors(errors)
        inputs = listed(images)
        failed: Failed | None = {} if errors == "skip" else None
        vectors = self._embed(inputs, batch_size, show_progress, failed)
        return vectors if failed is None else Embedded.of(vectors, failed)

    def _embed(
        self,
        inputs: Sequence[Embeddable],
        batch_size: int | None,
        show_progress: bool,
        failed: Failed | None,
    ) -> Vectors:
        """Embed images; the rows of failed ones hold no embedding."""
        if not len(inputs):
            return np.zeros((0, self.dim), np.float32)
        size = self.batch_size if batch_size is None else batch_size
        blocks = []
        for part in self.parts:
            name = f"embed {part.teacher.name}"
            with progress(name, enabled=show_progress, unit="images") as update:
                vectors = _embed_part(part.teacher, inputs, size, update, failed)
            if failed:  # whitenings refuse NaN
                vectors[list(failed)] = 1.0
            blocks.append(part.apply(vectors))
        return self.join(blocks)

    def join(self, blocks: Sequence[Vectors]) -> Vectors:
        """Join the parts' embeddings of the same images, (n, part.dim) -> (n, dim)."""
        if self.weights is not None:
            blocks = [
                np.sqrt(np.float32(weight)) * block
                for weight, block in zip(self.weights, blocks, strict=True)
            ]
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
    cluster: Cluster | None = None,
) -> Store:
    """Embed missing whole images into the cache's store of this teacher."""
    with progress(f"embed {teacher.name}", enabled=show_progress, unit="images") as update:
        exact, half = (store_folder(cache, teacher, precision=p) for p in ("32", "bf16"))
        # Embeddings cached in bf16 are used; otherwise all would be embedded twice.
        folder = half if half.exists() and not exact.exists() else exact
        return embed(items, teacher, folder, progress=update, cluster=cluster)


def embed_views(
    encoder: Encoder,
    items: Items,
    plan: ViewPlan,
    views: Sequence[int],
    cache: Path,
    *,
    show_progress: bool,
) -> list[Vectors]:
    """Embed views of images: (n, dim) per view.

    Args:
        cache: folder for the stores of this plan alone, apart from whole images, which depend on no
            plan; progress is shown under its name.
    """
    stores = []
    for part in encoder.parts:
        folder = store_folder(cache, part.teacher)
        with progress(f"{cache.name} for {part.teacher.name}", enabled=show_progress) as update:
            stores.append(
                embed(items, part.teacher, folder, views=views, plan=plan, progress=update)
            )
    ids = items.ids.to_pylist()
    return [
        encoder.join(
            [
                part.apply(store.gather(ids, view))
                for part, store in zip(encoder.parts, stores, strict=True)
            ]
        )
        for view in views
    ]


def _embed_part(
    model: Model,
    images: Sequence[Embeddable],
    batch_size: int | None,
    update: Update,
    failed: Failed | None,
) -> Vectors:
    if isinstance(model, StoredModel):
        return model.embed_files(images, failed=failed)
    chosen = for_many(model, len(images))
    return embed_inputs(chosen, images, batch_size, update, failed=failed)
