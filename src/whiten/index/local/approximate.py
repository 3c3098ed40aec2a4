"""Approximate search of a segment with FAISS: inverted lists, or a graph of neighbours.

Both store 8 bits per coordinate, find candidates by these codes, and rescore the candidates by
their vectors: scores are exact, and only recall is approximate. Lists of an index that is stored
by product quantisation hold its codes instead, which are several times smaller.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from whiten.errors import MissingExtraError, StoreError, one_line
from whiten.index.local.codes import Gather, can_multiply, compare, multiply
from whiten.index.local.storage.codec import Codec
from whiten.index.local.storage.product import Product
from whiten.retrieval.exact import Mask, Rows
from whiten.utils.arrays import Vectors
from whiten.utils.files import flush
from whiten.utils.memory import return_freed_memory, take_rows

Kind = Literal["ivf", "hnsw"]

_FILE = "index.faiss"
_ROW_BYTES = 8  # of a row's number beside its code
_LISTS = 2.0  # lists, in multiples of the square root of the number of vectors
_TRAINED_ON = 32  # vectors per list that the centroids are fitted on
_ROUNDS = 10  # of k-means
_BLOCK = 4096  # vectors assigned at once
_READ = 32768  # vectors read at once
_TOP = 127  # of 8-bit codes
_NEIGHBOURS = 32  # per node of the graph
_BUILD_EFFORT = 80  # nodes visited to find the neighbours of a new one
_MOST = 1000  # answers; above this, exact search
_WIDEST = 0.25  # fraction of the lists above which exact search is faster
_FEWEST = 0.5  # fraction of nodes that must be allowed: with fewer, walks of the graph get lost


def open_faiss() -> ModuleType:
    """Import FAISS.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise MissingExtraError("approximate search", "faiss") from error
    module: ModuleType = faiss
    return module


def write_approximate(
    kind: Kind, folder: Path, vectors: Vectors, codec: Codec | None = None
) -> None:
    """Write the lists or graph of a segment's vectors into a new folder.

    Args:
        vectors: (n, d) float32, L2-normalised, n > 0.
        codec: of the segment's storage; lists hold the codes of product quantisation.
    """
    faiss = open_faiss()
    if kind == "hnsw":
        made = _make_graph(faiss, vectors)
    else:
        made = _make_lists(faiss, vectors, codec if isinstance(codec, Product) else None)
    folder.mkdir()
    faiss.write_index(made, os.fspath(folder / _FILE))
    with (folder / _FILE).open("rb") as file:
        flush(file.fileno())
    del made
    return_freed_memory()  # a quarter of the vectors' bytes, which are now mapped instead


def _make_lists(faiss: ModuleType, vectors: Vectors, product: Product | None) -> Any:
    count, dim = vectors.shape
    lists = min(count, int(_LISTS * count**0.5))
    # FAISS's own k-means takes several times as long if its BLAS does not know the CPU.
    random = np.random.default_rng(0)
    sample = np.sort(random.choice(count, min(count, _TRAINED_ON * lists), replace=False))
    some = take_rows(vectors, sample)
    centroids = cluster(some, lists, random)
    quantizer = faiss.IndexFlatIP(dim)
    quantizer.add(centroids)
    # Both encode the vectors, not their residuals.
    if product is None:
        scalar = faiss.ScalarQuantizer.QT_8bit
        made = faiss.IndexIVFScalarQuantizer(
            quantizer, dim, lists, scalar, faiss.METRIC_INNER_PRODUCT, False
        )
        made.train_encoder(len(some), faiss.swig_ptr(some), None)
    else:
        made = faiss.IndexIVFPQ(quantizer, dim, lists, product.width, 8, faiss.METRIC_INNER_PRODUCT)
        made.by_residual = False
        faiss.copy_array_to_vector(product.codebooks.ravel(), made.pq.centroids)
    made.is_trained = True
    _fill(faiss, made, vectors, centroids)
    return made


def _fill(faiss: ModuleType, made: Any, vectors: Vectors, centroids: Vectors) -> None:
    """Fill lists of known sizes: lists that grow would take up to twice their memory."""
    lists, pointer = made.invlists, faiss.swig_ptr
    nearest = np.concatenate([assign(block, centroids) for _, block in _blocks(vectors)])
    for number, size in enumerate(np.bincount(nearest, minlength=made.nlist).tolist()):
        lists.resize(number, size)
    filled = np.zeros(made.nlist, np.int64)
    for start, block in _blocks(vectors):
        order = np.argsort(nearest[start : start + len(block)], kind="stable")
        # The pointers do not keep their arrays alive, so each array has a name.
        block, rows, own = block[order], start + order, nearest[start + order]
        codes = np.empty((len(block), made.code_size), np.uint8)
        made.encode_vectors(len(block), pointer(block), pointer(own), pointer(codes))
        numbers, first = np.unique(own, return_index=True)
        ends = [*first[1:].tolist(), len(own)]
        for number, begin, end in zip(numbers.tolist(), first.tolist(), ends, strict=True):
            at = int(filled[number])
            part = (pointer(rows[begin:end]), pointer(codes[begin:end]))
            lists.update_entries(number, at, end - begin, *part)
        filled[numbers] += np.diff([*first, len(own)])
    made.ntotal = len(vectors)


def _blocks(vectors: Vectors) -> Iterator[tuple[int, Vectors]]:
    """Yield (first row, copy of some rows)."""
    for start in range(0, len(vectors), _READ):
        yield start, take_rows(vectors[start : start + _READ], slice(None))


def _make_graph(faiss: ModuleType, vectors: Vectors) -> Any:
    made = faiss.IndexHNSWSQ(
        vectors.shape[1],
        faiss.ScalarQuantizer.QT_8bit,
        _NEIGHBOURS,
        faiss.METRIC_INNER_PRODUCT,
    )
    made.hnsw.efConstruction = _BUILD_EFFORT
    step = -(-len(vectors) // 65536)
    made.train(take_rows(vectors, slice(None, None, step)))
    for _, block in _blocks(vectors):
        made.add(block)
    return made


def cluster(vectors: Vectors, count: int, random: np.random.Generator) -> Vectors:
    """Return (count, d) centroids by spherical k-means.

    Args:
        vectors: (n, d) float32, L2-normalised, n ≥ count.
    """
    centroids = vectors[np.sort(random.choice(len(vectors), count, replace=False))]
    for _ in range(_ROUNDS):
        nearest = assign(vectors, centroids)
        order = np.argsort(nearest, kind="stable")
        used, first = np.unique(nearest[order], return_index=True)
        # A centroid without vectors restarts elsewhere.
        centroids = vectors[random.choice(len(vectors), count, replace=False)]
        centroids[used] = np.add.reduceat(vectors[order], first, axis=0)
        norms = np.linalg.norm(centroids, axis=1, keepdims=True)
        centroids /= np.maximum(norms, np.finfo(np.float32).tiny)
    return centroids


def assign(vectors: Vectors, centroids: Vectors) -> Rows:
    """Return the index of each vector's nearest centroid, (n,); of 8-bit codes where that pays.

    The product of codes takes a fraction of the time, and may name the second of two centroids
    that are about equally near.
    """
    starts = range(0, len(vectors), _BLOCK)
    blocks = (vectors[start : start + _BLOCK] for start in starts)
    if not can_multiply():
        return np.concatenate([(block @ centroids.T).argmax(1) for block in blocks])
    coded = _coded(centroids)
    return np.concatenate([multiply(_coded(block), coded).argmax(1) for block in blocks])


def _coded(vectors: Vectors) -> npt.NDArray[np.int8]:
    step = np.float32(max(np.abs(vectors).max(), np.finfo(np.float32).tiny) / _TOP)
    codes: npt.NDArray[np.int8] = np.rint(vectors / step).astype(np.int8)
    return codes


@dataclass(frozen=True)
class Settings:
    """Search effort.

    Attributes:
        effort: lists to scan (IVF), or size of the candidate queue (HNSW).
        refine: candidates to rescore by their vectors, in multiples of the answers.
    """

    effort: int
    refine: int


class ApproximateSegment:
    """Opened lists, which stay on disk, or a graph, which is loaded.

    Attributes:
        settings: set before a search.
        widest: largest possible effort.

    Raises:
        StoreError: the file is damaged, or belongs to another segment.
        MissingExtraError: FAISS is not installed.
    """

    def __init__(self, kind: Kind, folder: Path, count: int, dim: int, settings: Settings) -> None:
        self._faiss = open_faiss()
        self._kind = kind
        self._count = count
        self.settings = settings
        path = folder / _FILE
        problem = f"{path} is damaged (%s): index again with --kind exact, which does without it"
        try:
            if not path.is_file():
                raise RuntimeError("it is gone")
            self._index = self._faiss.read_index(os.fspath(path), self._faiss.IO_FLAG_MMAP)
        except RuntimeError as error:
            raise StoreError(problem % one_line(error)[-100:]) from error
        lists_of = ("IndexIVFScalarQuantizer", "IndexIVFPQ")
        wanted = {"ivf": lists_of, "hnsw": ("IndexHNSWSQ",)}[kind]
        if type(self._index).__name__ not in wanted or self._index.d != dim:
            raise StoreError(problem % "it holds something else")
        if self._index.ntotal != count:
            raise StoreError(problem % f"{self._index.ntotal} vectors instead of {count}")
        if kind == "ivf":
            lists = self._faiss.downcast_InvertedLists(self._index.invlists)
            if hasattr(lists, "prefetch_nthread"):  # on disk
                lists.prefetch_nthread = 0  # starting 32 threads takes longer than a search
                last = lists.lists.at(self._index.nlist - 1)
                end = last.offset + last.capacity * (lists.code_size + _ROW_BYTES)
                if path.stat().st_size < end:  # not every version of FAISS sees it
                    raise StoreError(problem % "its end is missing")
        self.widest = self._index.nlist if kind == "ivf" else count

    def search(
        self, queries: Vectors, k: int, gather: Gather, allowed: Mask | None
    ) -> list[tuple[Rows, Vectors]] | None:
        """Return k rows and similarities per query, best first; None if exact search is better.

        Args:
            queries: (q, d) float32.
            gather: returns the vectors of rows.
            allowed: (n,) mask of rows that may be answers; None allows all.
        """
        if k > _MOST:
            return None
        effort, selector = self.settings.effort, None
        if allowed is not None:
            part = np.count_nonzero(allowed) / len(allowed)
            # Raise the effort so that as many allowed rows are visited as without a filter.
            effort = int(np.ceil(effort / max(part, 1e-9)))
            if self._kind == "hnsw" and part < _FEWEST:
                return None
            if effort > max(2 * self.settings.effort, _WIDEST * self.widest):
                return None
            bits = np.packbits(allowed, bitorder="little")
            selector = self._faiss.IDSelectorBitmap(len(bits), self._faiss.swig_ptr(bits))
        wanted = min(self._count, k * self.settings.refine)
        queries = np.ascontiguousarray(queries)
        found = self._visit(queries, wanted, effort, selector)
        enough = min(k, self._count if allowed is None else int(np.count_nonzero(allowed)))
        while len(short := np.flatnonzero((found >= 0).sum(1) < enough)):
            if effort >= self.widest:
                return None  # some nodes of the graph are not reached
            effort = min(2 * effort, self.widest)
            found[short] = self._visit(queries[short], wanted, effort, selector)
        return [
            compare(query, rows[(rows >= 0) & (rows < self._count)], k, gather)
            for query, rows in zip(queries, found, strict=True)
        ]

    def _visit(self, queries: Vectors, wanted: int, effort: int, selector: Any) -> Rows:
        """Return (q, wanted) candidates, -1 where the visited lists or nodes have fewer."""
        if self._kind == "ivf":
            options = self._faiss.SearchParametersIVF(nprobe=min(effort, self.widest), sel=selector)
        else:
            options = self._faiss.SearchParametersHNSW(efSearch=max(effort, wanted), sel=selector)
        found: Rows = self._index.search(queries, wanted, params=options)[1]
        return found
