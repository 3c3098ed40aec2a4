"""Fitting a whitening: one streamed float32 pass against whole-matrix ways.

    python benchmarks/whitening.py

100,000 and 1,000,000 embeddings of 2048 dimensions, 512 axes kept, against scikit-learn's
`PCA(whiten=True)` with every solver and against the way of the paper's published code: centre the
whole float32 matrix in torch, one float32 product, float32 eigendecomposition. A rival runs where
its working memory fits; solvers that would take longer than some ten minutes run at 100,000 alone.
`OPENBLAS_CORETYPE` and `OPENBLAS_L2_SIZE` should not be set.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import sklearn
import torch
from scipy.linalg import blas
from side_by_side import Action, Comparison, Report, arguments, peak_bytes, take_turns
from sklearn.decomposition import PCA

from whiten import Whitener

Array = npt.NDArray[Any]

OURS, PUBLISHED, FLOOR = "whiten", "published way (torch, float32)", "floor: bare ssyrk"
SOLVERS = ("auto", "full", "covariance_eigh", "arpack", "randomized")
FASTEST_SOLVER = "covariance_eigh"
BLOCK = 8192
WHOLE_RUN_LIMIT = 200_000  # samples above which the slow solvers are left out
AIM_ERROR, AIM_MEMORY_GB = 5e-6, 0.3


def embeddings(n: int, dim: int) -> Iterator[Array]:
    """Blocks of L2-normalised embeddings with a steep spectrum and a mean far from zero.

    Each block mixes two of a few precomputed ones, shifted against each other.
    """
    rng = np.random.default_rng(0)
    scale = np.arange(1, dim + 1, dtype=np.float32)[:, None] ** -0.7
    axes = scale * np.linalg.qr(rng.standard_normal((dim, dim)))[0].astype(np.float32)
    mean = 0.05 * rng.standard_normal(dim, dtype=np.float32)
    pool = [rng.standard_normal((BLOCK, dim), dtype=np.float32) @ axes for _ in range(8)]
    for number, start in enumerate(range(0, n, BLOCK)):
        one, other = pool[number % 8], pool[(number // 8 + 3) % 8]
        block = one + np.float32(0.7) * np.roll(other, 1 + 61 * number, axis=0) + mean
        block /= np.linalg.norm(block, axis=1, keepdims=True)
        yield block[: n - start]


def blocks_of(samples: Array) -> Iterator[Array]:
    return (samples[start : start + BLOCK] for start in range(0, len(samples), BLOCK))


def exact_covariance(samples: Array) -> Array:
    """(D, D), normalised by n, computed in float64 about the exact mean."""
    mean = sum(block.sum(axis=0, dtype=np.float64) for block in blocks_of(samples)) / len(samples)
    covariance = np.zeros((samples.shape[1],) * 2)
    for block in blocks_of(samples):
        centred = block - mean
        covariance += centred.T @ centred
    return covariance / len(samples)


def error(projection: Array, covariance: Array) -> float:
    """max|cov - I| of the fitting samples, whitened."""
    wide = projection.astype(np.float64)
    return float(np.abs(wide @ covariance @ wide.T - np.eye(len(wide))).max())


# --- the rivals: each returns its projection --------------------------------------------


def ours(samples: Array, kept: int) -> Array:
    return Whitener(kept, shrinkage=0).fit(blocks_of(samples)).projection_


def scikit_learn(samples: Array, kept: int, solver: str) -> Array:
    pca = PCA(kept, whiten=True, svd_solver=solver, random_state=0)
    pca.fit(samples)
    unbiased = (len(samples) - 1) / len(samples)  # it divides by n - 1
    return pca.components_ / np.sqrt(pca.explained_variance_ * unbiased)[:, None]


def published(samples: Array, kept: int) -> Array:
    """Centres in place, as the published code does: covariances stay what they are."""
    matrix = torch.from_numpy(samples)
    matrix -= matrix.mean(dim=0)
    values, vectors = torch.linalg.eigh(matrix.T @ matrix / len(matrix))
    top = vectors[:, -kept:] / values[-kept:].sqrt()
    return top.T.numpy()


def floor(samples: Array) -> Array:
    product = np.zeros((samples.shape[1],) * 2, np.float32, order="F")
    for block in blocks_of(samples):
        product = blas.ssyrk(1.0, block.T, beta=1.0, c=product, lower=1, overwrite_c=1)
    return product


# --- what fits --------------------------------------------------------------------------


def available_gb() -> float:
    lines = Path("/proc/meminfo").read_text().splitlines()
    kilobytes = next(line.split()[1] for line in lines if line.startswith("MemAvailable"))
    return int(kilobytes) / 2**20


def working_gb(solver: str, n: int, dim: int, kept: int) -> float:
    """What a scikit-learn solver needs beyond the matrix, roughly: copies and tall factors."""
    copies = {FASTEST_SOLVER: 0.0, "arpack": dim, "full": 3 * dim}.get(solver, dim + 4 * kept)
    return 4 * (n * copies + 4 * dim**2) / 2**30


def refused(solver: str, n: int, dim: int, kept: int) -> str | None:
    """Why a solver is not run, if so."""
    if solver == FASTEST_SOLVER:
        return None
    need = working_gb(solver, n, dim, kept)
    if need > available_gb() - 1:
        matrix = 4 * n * dim / 2**30
        return f"not run: needs {need + matrix:.0f} GB of memory"
    if n > WHOLE_RUN_LIMIT and solver in ("full", "arpack"):
        return "not run: would take longer than ten minutes"
    return None


def compare_fits(n: int, dim: int, kept: int, rounds: int) -> Comparison:
    setting = f"fit, n={n:,}, D={dim}, {kept} axes kept"
    samples = np.empty((n, dim), np.float32)
    done = 0
    for block in embeddings(n, dim):
        samples[done : done + len(block)] = block
        done += len(block)
    covariance = exact_covariance(samples)

    rivals: dict[str, Callable[[], Array]] = {OURS: lambda: ours(samples, kept)}
    why_not = {solver: refused(solver, n, dim, kept) for solver in SOLVERS}
    for solver in SOLVERS:
        if why_not[solver] is None:
            rivals[f"PCA {solver}"] = lambda s=solver: scikit_learn(samples, kept, s)
    rivals[PUBLISHED] = lambda: published(samples, kept)
    rivals[FLOOR] = lambda: floor(samples)

    errors, memory, first = {}, {}, {}
    for name, fit in rivals.items():
        found: list[Array] = []
        began = time.perf_counter()
        peak = peak_bytes(lambda fit=fit, found=found: found.append(fit()))
        first[name] = time.perf_counter() - began
        memory[name] = round(peak / 2**30, 3)
        if name != FLOOR:
            errors[name] = float(f"{error(found[0], covariance):.2g}")

    if rounds > 0:  # the slow ones keep the time of their one run
        again: dict[str, Action] = {k: v for k, v in rivals.items() if first[k] < 5 * first[OURS]}
        result = take_turns(setting, again, ours=OURS, rounds=rounds, warmup=0)
    else:
        result = Comparison(setting, OURS)
    for name, seconds in first.items():
        result.seconds.setdefault(name, [seconds])
    result.targets = {name: 1.0 for name in rivals if name.startswith("PCA")} | {PUBLISHED: 2.5}
    condition = np.linalg.eigvalsh(covariance)[-kept:]
    result.facts = {
        "condition_of_the_kept_axes": round(float(condition[-1] / condition[0])),
        "max_abs_cov_minus_identity": errors,
        "aim_for_the_error": AIM_ERROR,
        "error_met": errors[OURS] <= AIM_ERROR,
        "peak_gb_beyond_the_data": memory,
        "aim_for_the_memory_gb": AIM_MEMORY_GB,
        "memory_met": memory[OURS] <= AIM_MEMORY_GB,
        **{f"PCA {solver}": reason for solver, reason in why_not.items() if reason},
    }
    return result


def compare_transforms(n: int, dim: int, kept: int, rounds: int) -> Comparison:
    samples = np.concatenate(list(embeddings(n, dim)))
    whitener = Whitener(kept, shrinkage=0).fit(samples)
    pca = PCA(kept, whiten=True, svd_solver=FASTEST_SOLVER).fit(samples)
    weight = whitener.projection_.T.astype(np.float32)
    result = take_turns(
        f"transform, n={n:,}, D={dim} to {kept}",
        {
            OURS: lambda: whitener.transform(samples),
            "PCA": lambda: pca.transform(samples),
            "floor: bare sgemm": lambda: samples @ weight,
        },
        ours=OURS,
        rounds=rounds,
    )
    exact = whitener.transform(samples.astype(np.float64))
    deviation = float(np.abs(whitener.transform(samples) - exact).max())
    result.facts["max_abs_deviation_from_float64"] = float(f"{deviation:.2g}")
    return result


def main() -> None:
    options = arguments(__doc__).parse_args()
    report = Report(
        "whitening",
        numpy=np.__version__,
        scikit_learn=sklearn.__version__,
        torch=torch.__version__,
        torch_threads=torch.get_num_threads(),
    )
    if options.quick:
        report.add(compare_fits(10_000, 256, 64, rounds=2))
        report.add(compare_transforms(10_000, 256, 64, rounds=2))
    else:
        report.add(compare_fits(100_000, 2048, 512, rounds=4))
        report.add(compare_fits(1_000_000, 2048, 512, rounds=0))
        report.add(compare_transforms(100_000, 2048, 512, rounds=5))
    report.finish(options.out)


if __name__ == "__main__":
    main()
