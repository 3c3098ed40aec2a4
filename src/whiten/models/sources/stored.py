"""`store:` embeddings that were computed before; images are recognised by their content."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from whiten.models.stored_model import StoredModel
from whiten.models.uri import TeacherURI
from whiten.store.store import Store
from whiten.views.rendering import Preprocess


def list_names() -> list[str]:
    return []  # folders are the user's own


def open_uri(uri: TeacherURI) -> StoredModel:
    """Serve a store's embeddings; it takes no options.

    The content hash of a file finds its embedding, so folders may have been moved or renamed.
    Views other than the whole image depend on the image's id, which must then be the same too.
    """
    uri.take()
    store = Store.open(uri.target)
    vectors: dict[tuple[str, int, str], npt.NDArray[np.float32]] = {}
    for shard, (ids, views, block) in zip(store.shards, store.blocks(), strict=True):
        seen = store.seen(shard)
        for name, view, vector in zip(ids, views, block, strict=True):
            vectors[seen[name].content_hash, view, name if view else ""] = vector
    return StoredModel(
        uri=str(uri),
        name=f"store {store.folder.name}",
        dim=store.dim,
        preprocess=Preprocess(),  # of no effect, but part of fingerprints that are stored
        weights_hash=store.origin.fingerprint,
        vectors=vectors,
        plan=store.origin.plan,
    )
