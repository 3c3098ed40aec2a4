"""Fit whitenings on stored embeddings, and fingerprint their fusion."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from whiten.datasets.collection import Items
from whiten.errors import ConstantInputError, WhiteningError
from whiten.store.store import Store
from whiten.utils.arrays import Vectors
from whiten.utils.hashing import fingerprint
from whiten.utils.names import NameIndex
from whiten.whitening.choosing import DIMS, SHRINKAGES, Choice, choose, fit_chosen, sample_rows
from whiten.whitening.whitener import SAMPLES_PER_DIM, Whitener


def fit_whiteners(
    stores: Sequence[Store],
    items: Items,
    *,
    dim: int | str,
    shrinkage: float | str,
    by_groups: bool = True,
    second_view: bool = False,
    seed: int = 0,
) -> tuple[list[Whitener], list[Choice | None]]:
    """Fit one whitener per teacher on the whole images (view 0) of `items`.

    Args:
        stores: one per teacher.
        dim: number of axes to keep, or `auto`. A number is lowered to what the images support.
        shrinkage: see `Whitener`, or `auto`.
        by_groups: whether to choose by the items' groups, if any.
        second_view: whether the stores hold view 1, too.
        seed: seed of the sample for the choice.

    Returns:
        The whiteners, and their choices (None if there was nothing to choose).
    """
    choices: list[Choice | None] = [None] * len(stores)
    if "auto" in (dim, shrinkage):
        groups = items.groups if by_groups else None
        sampled = items.take(sample_rows(len(items), groups, seed))
        sample = sampled.ids.to_pylist()
        whole = [store.gather(sample) for store in stores]
        require_varied([store.origin.uri for store in stores], whole)
        for number, store in enumerate(stores):
            choices[number] = choose(
                whole[number],
                groups=sampled.groups.to_pylist() if by_groups else None,
                others=[other for k, other in enumerate(whole) if k != number],
                second_views=store.gather(sample, view=1) if second_view else None,
                dims=DIMS if isinstance(dim, str) else [dim],
                shrinkages=SHRINKAGES if isinstance(shrinkage, str) else [shrinkage],
                seed=seed,
            )
    whiteners = []
    for store, choice in zip(stores, choices, strict=True):
        if choice is None:
            assert not isinstance(dim, str) and not isinstance(shrinkage, str)
            whiteners.append(fit_whitener(store, items.by_id, dim=dim, shrinkage=shrinkage))
        else:
            whiteners.append(_describe(fit_chosen(choice, _stream(store, items.by_id)), store))
    return whiteners, choices


def require_varied(uris: Sequence[str], embeddings: Sequence[Vectors]) -> None:
    """Refuse, by name, a model whose (n, D) embeddings are all equal: only one may be at fault."""
    for uri, rows in zip(uris, embeddings, strict=True):
        if len(rows) > 1 and not np.ptp(rows, axis=0).any():
            raise ConstantInputError(
                f"{uri} embeds all {len(rows):,} images as the same vector, so there is nothing to "
                "whiten: leave it out, or give more varied images"
            )


def fit_whitener(store: Store, images: NameIndex, *, dim: int, shrinkage: float) -> Whitener:
    """Fit on the whole `images` (view 0), in one pass over the store.

    Args:
        dim: axes to keep; lowered to a quarter of the samples, as weaker axes are mostly noise.
        shrinkage: see `Whitener`.
    """
    dim = min(dim, store.dim, max(1, len(images) // SAMPLES_PER_DIM))
    try:
        fitted = Whitener(dim, shrinkage=shrinkage).fit(_stream(store, images))
    except WhiteningError as error:
        raise type(error)(f"{store.origin.uri}: {error}") from error
    return _describe(fitted, store)


def _stream(store: Store, images: NameIndex) -> Iterator[Vectors]:
    for names, _, vectors in store.blocks(view=0):
        keep = images.rows(names) >= 0
        if keep.any():
            yield vectors[keep]


def _describe(whitener: Whitener, store: Store) -> Whitener:
    whitener.metadata = {"model": store.origin.uri, "fingerprint": store.origin.fingerprint}
    return whitener


def fused_fingerprint(
    models: Sequence[str],
    whiteners: Sequence[Whitener | None],
    rotation: Whitener | None = None,
    weights: Sequence[float] | None = None,
) -> str:
    """Return the fingerprint of fused embeddings, from all that decides on them.

    Args:
        models: fingerprints of the models.
        whiteners: one per model.
        rotation: rotation of the concatenated embeddings.
        weights: one per model; None if they are equal.
    """
    facts: list[Any] = [list(models), [None if w is None else w.fingerprint() for w in whiteners]]
    if rotation is not None:
        facts.append(rotation.fingerprint())
    if weights is not None:
        facts.append(["weights", *map(repr, weights)])
    return fingerprint(facts)
