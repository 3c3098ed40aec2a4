"""A model that looks up precomputed embeddings, and computes none."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from whiten.errors import ImageError, TeacherError
from whiten.media.reading import read_bytes
from whiten.models.inputs import Embeddable, Failed, path_of
from whiten.models.teacher import Identity, Teacher
from whiten.utils.hashing import content_hash


@dataclass
class StoredModel(Identity):
    """Looks up stored embeddings by the content of the image's file.

    Views other than the whole image (view 0) are drawn by image id, and are found only if the id is
    the same, too.

    Attributes:
        vectors: (dim,) embeddings by content hash, view and, for views other than 0, id.
        plan: fingerprint of the view plan that the views were drawn with; "" if only whole images
            are stored.
    """

    vectors: Mapping[tuple[str, int, str], npt.NDArray[np.float32]]
    plan: str = ""

    def find(
        self, content: str, view: int = 0, item_id: str = ""
    ) -> npt.NDArray[np.float32] | None:
        """Return the (dim,) embedding of the view of an image, or None."""
        return self.vectors.get((content, view, item_id if view else ""))

    def to(self, _device: object) -> StoredModel:
        return self  # computes nothing, so it is on no device

    def on_chosen_device(self) -> StoredModel:
        return self

    def count_macs(self) -> None:
        """Return None: the model that made the embeddings is not available."""

    def embed_files(
        self, images: Sequence[Embeddable], *, failed: Failed | None = None
    ) -> npt.NDArray[np.float32]:
        """Return the (n, dim) embeddings of whole images, given as paths or as contents of files.

        Args:
            failed: receives the images that cannot be read or are not stored, whose rows are NaN;
                None raises.

        Raises:
            TeacherError: an image is given as pixels, which have no content hash.
            ImageError: an image cannot be read or is not stored; the message names it.
        """
        out = np.full((len(images), self.dim), np.nan, np.float32)
        for row, image in enumerate(images):
            try:
                out[row] = self._find_file(image)
            except ImageError as error:
                if failed is None:
                    raise
                failed[row] = error
        return out

    def _find_file(self, image: Embeddable) -> npt.NDArray[np.float32]:
        if isinstance(image, ImageError):
            raise image
        if isinstance(image, bytes):
            data, name = image, "this image"
        elif isinstance(image, str | os.PathLike):
            name = path_of(image)
            data = read_bytes(name)
        else:
            raise TeacherError(f"{self.uri} knows image files, not pixels: pass paths")
        vector = self.find(content_hash(data))
        if vector is None:
            raise ImageError(f"{name} is not in {self.uri}: embed it with its model")
        return vector


Model = Teacher | StoredModel
"""A model that embeds a collection of image files."""


def require_network(model: Model) -> Teacher:
    """Refuse a model that only holds embeddings where pixels must be embedded.

    Raises:
        TeacherError: the model only holds embeddings.
    """
    if isinstance(model, StoredModel):
        raise TeacherError(
            f"{model.uri} holds embeddings and computes none: name the model that made them"
        )
    return model
