"""Choose a threshold for a required precision from the user's own images.

Precision is the fraction of pairs above the threshold that show the same thing. It is counted on
pairs of images with known groups, or estimated from the images alone (`views`). All bounds are
Clopper and Pearson's (1934) and treat pairs as independent, which pairs that share an image are not
quite.

What the estimate from the images alone assumes. Copies are recognised by pixels first
(`confirming`), and everything else counts as a mistake: a copy that pixels cannot confirm lowers
the stated precision, and a pair of different pictures whose pixels agree raises it. Where pixels
confirm fewer copies than one image in ten (`SHARE`) would give, that many are assumed, as similar
to their originals as views of one image are (crops and changes of brightness); with fewer in truth,
the few pairs that are found are wrong more often than stated. Groups, which link pairs through
others, must reach the precision too; that is counted on at most `MOST` images, and larger
collections chain more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from whiten.datasets.collection import video_of
from whiten.dedup.confirming import confirmed
from whiten.dedup.counting import (
    BINS,
    count_pairs,
    edge,
    first_enough,
    first_pure_groups,
    from_above,
    lower_bound,
    sample,
    share_of,
)
from whiten.dedup.pair_similarity import PairSimilarity, Rows, SetSimilarity, VectorSimilarity
from whiten.dedup.sources import Collection
from whiten.dedup.turned import TurnedSimilarity
from whiten.embedding.encoder import Encoder, embed_views
from whiten.errors import ConfigError
from whiten.evaluation.video_task import count_frames
from whiten.utils.names import name_codes
from whiten.views.plan import ViewPlan

# Views like copies: cropped a little, lighter or darker. Not mirrored, which is another picture.
COPIES = ViewPlan(scale=(0.7, 1.0), ratio=1.1, flip=0.0, jitter=0.15, grayscale=0.0)
CONFIDENCE = 0.95
SHARE = 0.1  # assumed fraction of images with a near-duplicate
MOST = 20_000  # images whose pairs are counted
_FEWEST = 50
_VIEWED = 1000  # of them, also used as views
_VIEWS = 2
_LEAST_VIEWS = 2000  # with few images, each has more views

Positives = Literal["groups", "views"]


@dataclass(frozen=True)
class Calibration:
    """A chosen threshold, and the evidence for it.

    Attributes:
        target: required precision.
        threshold: lowest similarity at which `precision_low` is at least `target`.
        positives: definition of the same thing: images of a `group`, or `views` of one image.
        precision: precision at the threshold, counted or estimated.
        precision_low: its lower bound at 95 % confidence.
        recall: fraction of pairs of the same thing above the threshold.
        same, different: number of pairs used.
        copies: number of pairs among `same` that are copies by their pixels.
        images: number of images that the pairs come from.
    """

    target: float
    threshold: float
    positives: Positives
    precision: float
    precision_low: float
    recall: float
    same: int
    different: int
    copies: int
    images: int

    def line(self, what: str = "image") -> str:
        """Return a line for display."""
        if self.positives == "groups":
            basis = (
                f"counted on {self.same:,} pairs of a group and {self.different:,} of different "
                f"groups, of {self.images:,} {what}s"
            )
        else:
            basis = (
                f"estimated from {self.same:,} pairs of views of one {what} and "
                f"{self.different:,} of different {what}s, of {self.images:,} {what}s; "
                f"{self.copies:,} pairs whose pixels agree count as copies, others as mistakes, "
                f"and one {what} in {round(1 / SHARE)} at least is taken to have a copy"
            )
        return (
            f"threshold {self.threshold:.4f}: precision {self.precision:.3f}, at 95 % confidence "
            f"at least {self.precision_low:.3f}; finds {self.recall:.3f} of them; {basis}"
        )


def check_precision(target: float) -> None:
    """Raise ConfigError unless a target precision lies between 0 and 1."""
    if not 0 < target < 1:
        raise ConfigError(f"the target precision must lie between 0 and 1, not be {target:g}")


def calibrate(
    collection: Collection,
    target: float,
    *,
    positives: Positives,
    encoder: Encoder | None = None,
    show_progress: bool = False,
) -> Calibration:
    """Choose the lowest threshold whose precision is at least `target`, at 95 % confidence.

    Args:
        positives: with `groups`, images of a group are duplicates of each other; with `views`,
            similarities of duplicates are estimated from views of the images.
        encoder: embeds the views.

    Raises:
        ConfigError: the target is out of range or out of reach, no groups are known, or there is no
            encoder to embed views.
    """
    check_precision(target)
    if positives == "groups":
        return _by_groups(collection, target)
    if encoder is None:
        raise ConfigError("the threshold is chosen from views of the images: add --model MODEL")
    return _by_views(collection, target, encoder, show_progress)


def _by_groups(collection: Collection, target: float) -> Calibration:
    known = [collection.groups[i] for i in collection.first.tolist()]
    labels = name_codes(known)
    rows = sample(np.flatnonzero(labels >= 0), MOST)
    if len(np.unique(labels[rows])) < 2 or len(np.unique(labels[rows])) == len(rows):
        raise ConfigError(
            "no two groups with two images each are known: put duplicates into a folder together, "
            "or name a CSV with columns path,group; or add --positives views"
        )
    same, different = count_pairs(collection.similarity, rows, labels[rows])
    above, false = from_above(same), from_above(different)
    low = lower_bound(above, false, 1 - CONFIDENCE)
    precision = above / np.maximum(above + false, 1)
    best = first_enough(low, target)
    if best is None:
        top = int(low.argmax())
        raise ConfigError(
            f"no threshold reaches a precision of {target:g} on these groups: the best, "
            f"{edge(top):.4f}, has {precision[top]:.3f}, at 95 % confidence at least "
            f"{low[top]:.3f}; ask for less, or name more groups"
        )
    return Calibration(
        target,
        edge(best),
        "groups",
        float(precision[best]),
        float(low[best]),
        float(above[best] / above[0]),
        int(above[0]),
        int(false[0]),
        0,
        len(rows),
    )


def _by_views(
    collection: Collection, target: float, encoder: Encoder, show_progress: bool
) -> Calibration:
    n = len(collection.similarity)
    if n < _FEWEST:
        raise ConfigError(
            f"a threshold is chosen from {_FEWEST} different {collection.what}s or more, and there "
            f"{'is' if n == 1 else 'are'} {n}: give --threshold"
        )
    rows = sample(np.arange(n), MOST)
    viewed = sample(rows, _VIEWED)
    views = max(_VIEWS, -(-_LEAST_VIEWS // len(viewed)))
    pool, labels = _with_views(collection, rows, viewed, min(views, 8), encoder, show_progress)
    every = np.arange(len(pool))
    pictures = [collection.pictures[i] for i in collection.first[rows].tolist()]
    whole = pool.part(len(rows))
    forest = confirmed(whole, pictures)
    place = np.searchsorted(rows, labels)  # of the item that a view shows
    labels = forest.roots(place)
    viewed_pairs, different = count_pairs(pool, every, labels)
    above, false = from_above(viewed_pairs), from_above(different)
    real, mistaken = map(from_above, count_pairs(whole, every[: len(rows)], labels[: len(rows)]))
    copies = int(real[0])
    # Pairs that a search of the collection will find: confirmed and assumed copies, and mistakes.
    scale = n * (n - 1) / (len(rows) * (len(rows) - 1))
    assumed = max(0.0, SHARE / 2 * n - copies * scale)
    pairs = n * (n - 1) / 2
    # Of the collection itself, or with the views among them, whichever has more.
    errors = np.maximum(false / false[0], mistaken / mistaken[0])
    hits = (real * scale + assumed * above / above[0]) / (copies * scale + assumed)
    there = copies * scale + assumed
    precision = share_of(there * hits, pairs * errors)
    side = (1 - CONFIDENCE) / 2  # of both rates
    low = share_of(
        copies * scale * lower_bound(real, copies - real, side)
        + assumed * lower_bound(above, above[0] - above, side),
        pairs * np.maximum(1 - lower_bound(false[0] - false, false, side), errors),
    )
    best = first_enough(low, target)
    pure = (
        None
        if best is None
        else first_pure_groups(whole, labels[: len(rows)], edge(best), target if copies else 0.0)
    )
    if best is None or pure is None:
        raise ConfigError(
            f"a precision of {target:g} cannot be shown on these {collection.what}s, at most "
            f"{low.max():.3f} at 95 % confidence: ask for less, name groups of duplicates in a "
            "CSV, or give --threshold"
        )
    best = int(np.ceil(round((pure + 1) * (BINS / 2), 6)))
    return Calibration(
        target,
        edge(best),
        "views",
        float(precision[best]),
        float(low[best]),
        float(hits[best]),
        int(above[0]),
        int(false[0]),
        copies,
        len(rows),
    )


def _with_views(
    collection: Collection,
    rows: Rows,
    viewed: Rows,
    views: int,
    encoder: Encoder,
    show_progress: bool,
) -> tuple[PairSimilarity, Rows]:
    """Return the sampled items with views of some of them, and the item of each view."""
    similarity, numbers = collection.similarity, range(1, views + 1)
    folder = collection.folder / "views"
    labels = np.concatenate([rows, np.tile(viewed, views)])
    if isinstance(similarity, VectorSimilarity):
        items = collection.items.take(viewed)
        seen = embed_views(encoder, items, COPIES, numbers, folder, show_progress=show_progress)
        if isinstance(similarity, TurnedSimilarity):
            return similarity.with_views(rows, seen), labels
        whole = np.asarray(similarity.vectors[rows], np.float32)
        return VectorSimilarity(np.concatenate([whole, *seen])), labels
    assert isinstance(similarity, SetSimilarity)
    wanted = {collection.names[i] for i in collection.first[viewed].tolist()}
    is_wanted = [video_of(frame.id) in wanted for frame in collection.items]
    items = collection.items.take(np.array(is_wanted))
    seen = embed_views(encoder, items, COPIES, numbers, folder, show_progress=show_progress)
    frames, lengths = similarity.load(rows)
    counts = np.fromiter(count_frames(items).values(), np.int64)
    joined = np.concatenate([frames, *seen])
    return SetSimilarity(joined, np.concatenate([lengths, *[counts] * views])), labels
