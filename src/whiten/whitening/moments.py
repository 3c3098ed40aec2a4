"""Count, mean and scatter of a stream of vectors, in one pass and O(D²) memory."""

from __future__ import annotations

import numpy as np

from whiten.utils.arrays import Array, require_finite

_FULL = 8192  # rows per block
_EXACT = 2048  # rows of a block converted to float64 at once
_NARROW = 128  # axes below which reading the samples takes as long as their products
_CHUNK = 256  # rows summed at once, from the CPU's cache
_OUTER = 32  # outer products added to the scatter at once
_COLUMNS = 256  # columns of a triangle added at once

# Squares of centred float32 input within these bounds sum without overflow or loss of digits.
_SAFE_SQUARES = (1e-18, 1e36)


class Moments:
    """The moments of samples that a principal component analysis needs.

    Samples are gathered in blocks of a fixed number of rows, so that the result is bit-identical
    however the stream is split into calls of `add`. Each block is centred on the mean of its first
    rows, and blocks are summed in float64.

    A block's product with itself is computed by BLAS in float64, except where float32 halves the
    time of a fit: for full blocks (8192) of float16 or float32 samples with more than 256 axes. The
    rounding error is then about 1e-8 of the largest variance, and smaller for more blocks; an
    offset of the data from zero has no effect, because it is centred first.

    Attributes:
        n: number of samples.
        epsilon: machine epsilon of the coarsest product so far.
    """

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.n = 0
        self.epsilon = float(np.finfo(np.float64).eps)
        self._settled = 0  # samples in mean and scatter; the others are in the block
        self._mean = np.zeros(dim)
        # Lower triangle, in column order as BLAS wants it.
        self._scatter = np.zeros((dim, dim), order="F")
        self._block: Array | None = None
        self._product: Array | None = None
        self._outer: list[tuple[float, Array]] = []
        self._fill = 0
        self._centre = np.zeros(dim)
        self._sums = np.zeros(dim)

    def add(self, samples: Array) -> None:
        """Add (n, D) samples, which are not modified.

        Raises:
            NonFiniteInputError: a sample holds NaN or infinity. Samples before its chunk are kept.
        """
        is_single = samples.dtype in (np.float16, np.float32) and self.dim > _NARROW
        kind = np.dtype(np.float32 if is_single else np.float64)
        if self._block is not None and self._block.dtype != kind:
            self.settle()
        if self._block is None:
            self._block = np.empty((_FULL, self.dim), kind)
        done = 0
        while done < len(samples):
            rows = samples[done : done + _CHUNK - self._fill % _CHUNK]
            end = self._fill + len(rows)
            if self._fill < _CHUNK:
                self._block[self._fill : end] = rows
            else:
                with np.errstate(all="ignore"):  # non-finite samples are reported below
                    np.subtract(rows, self._centre, out=self._block[self._fill : end])
            if end % _CHUNK == 0:
                self._sum_chunk(end - _CHUNK, end)
            else:
                require_finite(rows, self.n)
            self._fill = end
            self.n += len(rows)
            done += len(rows)
            if end == len(self._block):
                self._absorb_block()

    def merge(self, other: Moments) -> None:
        """Add the samples of another instance; both first absorb their unfinished blocks."""
        self.settle()
        other.settle()
        self.epsilon = max(self.epsilon, other.epsilon)
        self._scatter += other._scatter
        self._combine(other.n, other._mean)
        self.n += other.n

    def settle(self) -> None:
        """Absorb the unfinished block and free its memory."""
        if self._fill % _CHUNK:
            start = self._fill - self._fill % _CHUNK
            self._sum_chunk(start, self._fill)
        if self._fill:
            self._absorb_block()
        self._block = self._product = None
        self._add_pending()

    def few(self) -> tuple[Array, Array] | None:
        """Return the mean (D,) and the centred samples (n, D), float64, of fewer samples than axes.

        None if there are more, or none, or if they are in the scatter already.
        """
        if self._block is None or self._settled or not 0 < self._fill < self.dim:
            return None
        rows = self._block[: self._fill].astype(np.float64)
        mean = rows.mean(axis=0)
        rows -= mean
        return mean + (self._centre if self._fill >= _CHUNK else 0.0), rows

    @property
    def mean(self) -> Array:
        """Mean, (D,) float64."""
        self.settle()
        return self._mean.copy()

    def covariance(self) -> Array:
        """Covariance, (D, D) float64 in column order, over n; only the lower triangle is valid."""
        self.settle()
        covariance: Array = self._scatter / self.n
        return covariance

    def _sum_chunk(self, start: int, end: int) -> None:
        """Add a chunk to the block's sums; the first chunk sets the centre."""
        assert self._block is not None
        chunk = self._block[start:end]
        with np.errstate(all="ignore"):  # non-finite samples are reported below
            if start == 0:
                centre = chunk.mean(axis=0, dtype=np.float64)
                if not np.isfinite(centre).all():
                    require_finite(chunk, self._settled)
                self._centre = centre.astype(chunk.dtype)
                chunk -= self._centre
                self._sums[:] = 0
            sums = _column_sums(chunk)
        if not np.isfinite(sums).all():
            require_finite(chunk, self._settled + start)
            sums = chunk.sum(axis=0, dtype=np.float64)  # huge, but finite
        self._sums += sums

    def _absorb_block(self) -> None:
        assert self._block is not None
        block, rest = self._block[: self._fill], self._sums / self._fill
        self._add_product(block)
        # The product is about the centre; move it to the block's own mean.
        self._add_outer(-float(self._fill), rest)
        self._combine(self._fill, self._centre + rest)
        self._fill = 0

    def _combine(self, n: int, mean: Array) -> None:
        """Update mean and scatter pairwise (Chan, Golub & LeVeque 1983, eq. 2.1)."""
        if n == 0:
            return
        total = self._settled + n
        shift = mean - self._mean
        self._add_outer(self._settled * n / total, shift)
        self._mean += shift * (n / total)
        self._settled = total

    def _add_product(self, block: Array) -> None:
        """Compute scatter += blockᵀ block."""
        from scipy.linalg import blas

        if block.dtype == np.float32 and len(block) == _FULL:
            if self._product is None:
                self._product = np.zeros((self.dim, self.dim), np.float32, order="F")
            self._product = blas.ssyrk(
                1.0, block.T, beta=0.0, c=self._product, lower=1, overwrite_c=1
            )
            least, largest = _SAFE_SQUARES
            if least < self._product.diagonal().max() < largest:
                for start in range(0, self.dim, _COLUMNS):
                    part = slice(start, None), slice(start, start + _COLUMNS)
                    self._scatter[part] += self._product[part]
                self.epsilon = float(np.finfo(np.float32).eps)
                return
        for start in range(0, len(block), _EXACT):
            rows = block[start : start + _EXACT].astype(np.float64, copy=False)
            self._scatter = blas.dsyrk(
                1.0, rows.T, beta=1.0, c=self._scatter, lower=1, overwrite_c=1
            )

    def _add_outer(self, weight: float, vector: Array) -> None:
        """Compute scatter += weight · vector vectorᵀ, several vectors at once."""
        if weight != 0:
            self._outer.append((weight, vector))
        if len(self._outer) == _OUTER:
            self._add_pending()

    def _add_pending(self) -> None:
        from scipy.linalg import blas

        for sign in (-1.0, 1.0):
            scaled = [np.sqrt(sign * weight) * v for weight, v in self._outer if sign * weight > 0]
            if scaled:
                self._scatter = blas.dsyrk(
                    sign, np.array(scaled).T, beta=1.0, c=self._scatter, lower=1, overwrite_c=1
                )
        self._outer.clear()


def _column_sums(chunk: Array) -> Array:
    """Return the column sums, (D,) in the chunk's precision, by SciPy's BLAS.

    NumPy has its own BLAS, whose threads keep spinning after each call and would slow down the next
    product by a third.
    """
    from scipy.linalg import blas

    sum_columns = blas.sgemv if chunk.dtype == np.float32 else blas.dgemv
    sums: Array = sum_columns(1.0, chunk.T, np.ones(len(chunk), chunk.dtype))
    return sums
