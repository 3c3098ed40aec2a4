"""`store:` precomputed embeddings, looked up by the content of images."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from whiten.models.stored_model import StoredModel
from whiten.models.uri import TeacherURI
from whiten.store.store import Store
from whiten.views.rendering import Preprocess


def open_uri(uri: TeacherURI) -> StoredModel:
    """Open a store as a model; takes no options.

    Embeddings are looked up by content hash, so folders may have been moved or renamed. Views other
    than the whole image also depend on the image's id, which must then be the same.
    """
    uri.take()
    store = Store.open(uri.target)
    vectors: dict[tuple[str, int, str], npt.NDArray[np.float32]] = {}
    for shard, (ids, views, block) in zip(store.shards, store.blocks(), strict=True):
        seen = store.seen(shard)
        for name, view, vector in zip(ids, views, block, strict=True):
            vectors[seen[name].content_hash, view, name if view else ""] = vector
    origin = store.origin
    numbers = "" if (origin.precision, origin.dtype) == ("32", "float32") else origin.dtype
    return StoredModel(
        uri=str(uri),
        name=f"store {store.folder.name}",
        dim=store.dim,
        preprocess=Preprocess(),  # unused, but part of stored fingerprints
        weights_hash=store.origin.fingerprint,
        vectors=vectors,
        plan=store.origin.plan,
        # Two stores of one model differ in what they were computed and stored in.
        details=(f"{origin.precision}, {numbers}",) if numbers else (),
    )
