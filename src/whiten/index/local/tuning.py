"""Choose between exact and approximate search by measuring speed at the required recall."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from whiten.errors import ConfigError, MissingExtraError, nearest
from whiten.index.local.approximate import (
    ApproximateSegment,
    Settings,
    open_faiss,
    write_approximate,
)
from whiten.index.local.codes import CodedSegment, Gather, can_multiply, write_codes
from whiten.index.local.storage.codec import Codec
from whiten.retrieval.exact import Mask, Rows, exact_search
from whiten.utils.arrays import Vectors
from whiten.utils.memory import forget, gather_rows, take_rows
from whiten.utils.validation import as_number

KINDS = ("auto", "exact", "int8", "ivf", "hnsw")
RECALL = 0.95
FEW_BYTES = 128 << 20  # of vectors; fewer are scanned in milliseconds

_K = 10  # recall@10 is the target
_MANY = 100  # recall@100 is also reported
_QUERIES = 200  # vectors of the index used as queries
_TIMED = 20  # of them, timed one by one
_ROUNDS = 5  # of batches
_SLOW_ROWS = 2_000_000  # above which an exact search takes a second or so: fewer are timed
_SLOW_TIMED = 5
_TOGETHER = 64  # queries per batch, for kinds made for many queries
_PAUSE = 0.1  # seconds, after which threads of BLAS have ceased to spin, and disturb no other
_REFINE = (1, 2, 4, 8, 16)
# Minimum speed-up over exact search for `auto`: ivf costs recall, int8 only disk space.
_WORTH = {"ivf": 3.0, "int8": 1.3}


@dataclass(frozen=True)
class Tuning:
    """The chosen search kind, and the measurements behind the choice.

    Attributes:
        asked: requested kind: auto, exact, int8, ivf or hnsw.
        target: requested recall@10.
        kind: chosen kind: exact, int8, ivf or hnsw.
        rows: number of rows at that time.
        settings: effort of ivf and hnsw, see `Settings`.
        recall: measured recall at 10 and at 100 against exact search, with vectors of the index as
            queries, each left out of its own answers.
        seconds: per query for its 10 nearest, exact and as chosen; for int8, which is made for
            many queries, per query in a batch of 64.
        remark: why the result differs from the request.
    """

    asked: str
    target: float
    kind: str
    rows: int
    settings: dict[str, int] = field(default_factory=dict)
    recall: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    remark: str = ""

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Tuning:
        """Build from the fields as in JSON; raises KeyError, TypeError or ValueError otherwise."""
        if facts["asked"] not in KINDS or facts["kind"] not in KINDS[1:]:
            raise ValueError(f"search of kind {facts['kind']!r}")
        settings = {str(name): int(value) for name, value in facts["settings"].items()}
        if facts["kind"] in ("ivf", "hnsw"):
            Settings(**settings)
        return cls(
            asked=facts["asked"],
            target=float(facts["target"]),
            kind=facts["kind"],
            rows=int(facts["rows"]),
            settings=settings,
            recall={str(k): float(value) for k, value in facts["recall"].items()},
            seconds={str(name): float(value) for name, value in facts["seconds"].items()},
            remark=str(facts["remark"]),
        )

    def lines(self) -> Iterator[str]:
        """Yield lines for display; none if there was nothing to choose."""
        if self.seconds:
            exact, ours = 1000 * self.seconds["exact"], 1000 * self.seconds[self.kind]
            yield (
                f"search: {self.kind}, recall@10 {self.recall['10']:.3f} (asked for "
                f"{self.target:g}), {ours:.2f} ms a query, exact {exact:.2f} ms "
                f"({exact / ours:.1f}×)"
            )
        elif self.asked != "auto" or self.remark:
            yield f"search: {self.kind}"
        if self.remark:
            yield self.remark


class Fast(Protocol):
    """Interface of a search that is faster than a scan of a segment's vectors."""

    def search(
        self, queries: Vectors, k: int, gather: Gather, allowed: Mask | None
    ) -> list[tuple[Rows, Vectors]] | None:
        """Return k rows and similarities per (d,) query, best first; None if a scan is better."""


def check_kind(kind: str | None, recall: float | None) -> None:
    """Refuse an unavailable kind, before anything is computed.

    Raises:
        ConfigError: there is no such kind, the recall is not above 0 and at most 1, or the kind is
            exact.
        MissingExtraError: FAISS is not installed.
    """
    if kind is not None and kind not in KINDS:
        raise ConfigError(
            f"there is no kind of search {kind!r}{nearest(kind, KINDS) or '.'} "
            f"There are {', '.join(KINDS)}."
        )
    if recall is not None and not 0 < as_number("recall", recall) <= 1:
        raise ConfigError(f"recall must be above 0 and at most 1, not {recall:g}")
    if recall is not None and kind in ("exact", "int8"):
        raise ConfigError(f"the kind {kind} finds every hit: leave out the recall")
    if kind in ("ivf", "hnsw"):
        open_faiss()


def open_fast(tuning: Tuning, folder: Path, count: int, dim: int) -> Fast:
    """Open the result of a tuning in a folder.

    Raises:
        StoreError: the result is damaged.
        MissingExtraError: FAISS is not installed.
    """
    if tuning.kind == "int8":
        return CodedSegment(folder, count, dim)
    kind: Any = tuning.kind
    return ApproximateSegment(kind, folder, count, dim, Settings(**tuning.settings))


def choose(
    asked: str,
    target: float,
    vectors: Vectors,
    there: Mask | None,
    folder: Callable[[str], Path],
    codec: Codec | None = None,
) -> tuple[Tuning, Path | None]:
    """Choose how to search a segment, and write the files that this needs.

    Args:
        asked: auto, exact, int8, ivf or hnsw.
        target: recall@10.
        vectors: (n, d) float32, L2-normalised.
        there: (n,) mask of rows that can be answers; None allows all.
        folder: returns the folder to write, by kind.
        codec: of the segment's storage; None for float32.

    Returns:
        The choice, and the folder written; None for exact search.
    """
    tuning = Tuning(asked, target, "exact", len(vectors))
    remarks: list[str] = []
    if asked == "auto" and vectors.nbytes < FEW_BYTES:
        return tuning, None
    if not len(vectors) or asked == "exact":
        return tuning, None
    for kind in _candidates(asked, target, remarks):
        place = folder(kind)
        shutil.rmtree(place, ignore_errors=True)  # left by a killed run
        found, remark = _try(replace(tuning, kind=kind), place, vectors, there, codec)
        if found is not None:
            return replace(found, remark="; ".join(remarks)), place
        remarks.append(remark)
        shutil.rmtree(place)
    return replace(tuning, remark="; ".join(remarks)), None


def _candidates(asked: str, target: float, remarks: list[str]) -> Iterator[str]:
    """Yield the kinds to try, in order."""
    if asked != "auto":
        if asked == "int8" and not can_multiply():
            remarks.append("torch multiplies no int8 matrices on this machine")
            return
        yield asked
        return
    if target < 1:
        try:
            open_faiss()
            yield "ivf"
        except MissingExtraError as error:
            remarks.append(str(error))
    if can_multiply():
        yield "int8"


def _try(
    tuning: Tuning, place: Path, vectors: Vectors, there: Mask | None, codec: Codec | None
) -> tuple[Tuning | None, str]:
    """Write and measure a search kind; return the result, or None and why it is of no use."""
    trial = _Trial(vectors, there)
    kind: Any = tuning.kind
    settings = None
    if kind == "int8":
        write_codes(place, vectors)
        fast: Fast = CodedSegment(place, len(vectors), vectors.shape[1])
    else:
        write_approximate(kind, place, vectors, codec)
        opened = ApproximateSegment(kind, place, len(vectors), vectors.shape[1], Settings(1, 1))
        settings = _cheapest(opened, trial, tuning.target)
        if settings is None:
            return None, f"{kind} does not reach recall {tuning.target:g} on these images"
        opened.settings = settings
        fast = opened
    seconds = trial.seconds(fast, _TOGETHER if kind == "int8" else 1)
    worth = _WORTH[kind] if tuning.asked == "auto" else 1.0
    if worth * seconds[1] >= seconds[0]:
        return None, (
            f"{kind} takes {1000 * seconds[1]:.2f} ms a query here, exact search "
            f"{1000 * seconds[0]:.2f} ms: exact is better at this size"
        )
    measured = replace(
        tuning,
        settings={} if settings is None else asdict(settings),
        recall={str(k): round(trial.recall(fast, k)[0], 4) for k in (_K, _MANY)},
        seconds={"exact": seconds[0], kind: seconds[1]},
    )
    return measured, ""


def _cheapest(fast: ApproximateSegment, trial: _Trial, target: float) -> Settings | None:
    """Return the least effort, then the fewest candidates, that reach the target."""

    def reaches(effort: int, refine: int) -> bool:
        fast.settings = Settings(effort, refine)
        recall, doubt = trial.recall(fast, _K)
        return recall - doubt >= target or recall == 1

    refine = _REFINE[2]
    enough = 1
    while not reaches(enough, refine):
        if enough < fast.widest:
            enough = min(2 * enough, fast.widest)
        elif refine < _REFINE[-1]:
            refine *= 2
        else:
            return None
    low = enough // 2  # too small
    while enough - low > max(1, enough // 8):
        middle = (low + enough) // 2
        low, enough = (low, middle) if reaches(middle, refine) else (middle, enough)
    fewer = [one for one in _REFINE if one < refine and reaches(enough, one)]
    return Settings(enough, min([refine, *fewer]))


class _Trial:
    """Queries with known answers: vectors of the index, each left out of its own answers."""

    def __init__(self, vectors: Vectors, there: Mask | None) -> None:
        self._vectors, self._there = vectors, there
        rows = np.arange(len(vectors)) if there is None else np.flatnonzero(there)
        random = np.random.default_rng(0)
        self._rows = np.sort(random.choice(rows, min(_QUERIES, len(rows)), replace=False))
        self._queries = take_rows(vectors, self._rows)
        found = exact_search(self._queries, vectors, _MANY + 1, there)
        self._truth = [self._others(*one) for one in zip(self._rows, found, strict=True)]

    def _gather(self, rows: Rows) -> Vectors:
        return gather_rows(self._vectors, rows)

    def _others(self, own: int, found: tuple[Rows, Vectors]) -> Vectors:
        rows, scores = found
        others: Vectors = scores[rows != own]
        return others

    def _ask(self, fast: Fast, queries: Vectors, k: int) -> list[tuple[Rows, Vectors]]:
        found = fast.search(queries, k, self._gather, self._there)
        return exact_search(queries, self._vectors, k, self._there) if found is None else found

    def recall(self, fast: Fast, k: int) -> tuple[float, float]:
        """Return mean recall@k and its standard error; ties with the k-th nearest count."""
        found = self._ask(fast, self._queries, k + 1)
        forget(self._vectors)
        recalls = []
        for own, truth, one in zip(self._rows, self._truth, found, strict=True):
            best = truth[:k]
            hits = np.count_nonzero(self._others(own, one)[:k] >= best[-1:].sum() - 1e-6)
            recalls.append(hits / len(best) if len(best) else 1.0)
        return float(np.mean(recalls)), float(np.std(recalls) / len(recalls) ** 0.5)

    def seconds(self, fast: Fast, together: int) -> tuple[float, float]:
        """Return median seconds per query of exact and fast search, measured alternately."""
        times: tuple[list[float], list[float]] = ([], [])
        timed = _SLOW_TIMED if len(self._vectors) > _SLOW_ROWS else _TIMED
        for number in range(min(timed, len(self._queries)) if together == 1 else _ROUNDS):
            query = self._queries[number : number + together]

            def by_vectors(query: Vectors = query) -> object:
                return exact_search(query, self._vectors, _K, self._there)

            def as_chosen(query: Vectors = query) -> object:
                return self._ask(fast, query, _K)

            for taken, search in zip(times, (by_vectors, as_chosen), strict=True):
                time.sleep(_PAUSE if together > 1 else 0)  # products of one query take no threads
                began = time.perf_counter()
                search()
                taken.append((time.perf_counter() - began) / len(query))
        exact, ours = map(np.median, times)
        return float(exact), float(ours)
