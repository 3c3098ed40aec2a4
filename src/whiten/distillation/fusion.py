"""Fuse the teachers' similarity matrices into one target (Whiten-MTD, section "Fusion").

`maxmin` trusts, for a positive pair, the teacher with the highest similarity, and for a negative
pair the one with the lowest. All functions are pure; random ones take a generator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from whiten.errors import ConfigError, nearest

Fusion = Callable[[Tensor], Tensor]
RandomFusion = Callable[[Tensor, torch.Generator | None], Tensor]


def _mean(similarities: Tensor, _: torch.Generator | None) -> Tensor:
    return similarities.mean(dim=0)


def _maxmin(similarities: Tensor, _: torch.Generator | None) -> Tensor:
    return _with_best_positives(similarities.amin(dim=0), similarities)


def _maxmean(similarities: Tensor, _: torch.Generator | None) -> Tensor:
    return _with_best_positives(similarities.mean(dim=0), similarities)


def _maxrand(similarities: Tensor, generator: torch.Generator | None) -> Tensor:
    return _with_best_positives(_rand(similarities, generator), similarities)


def _rand(similarities: Tensor, generator: torch.Generator | None) -> Tensor:
    """Take each entry from a random teacher, drawn uniformly."""
    choice = _draw(len(similarities), similarities[0], generator)
    return similarities.gather(0, choice[None])[0]


def _draw(count: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw a teacher index for each entry of a (B, B) matrix."""
    # Drawn on the CPU, so that a seed gives the same targets on every device.
    choice = torch.randint(count, (1, *like.shape), generator=generator, device="cpu")
    return choice[0].to(like.device)


def _with_best_positives(negatives: Tensor, similarities: Tensor) -> Tensor:
    best = similarities.diagonal(dim1=1, dim2=2).amax(dim=0)
    return negatives.diagonal_scatter(best)


STRATEGIES: dict[str, RandomFusion] = {
    "mean": _mean,
    "maxmin": _maxmin,
    "maxmean": _maxmean,
    "maxrand": _maxrand,
    "rand": _rand,
}


def fuse(
    similarities: Tensor,
    strategy: str | Fusion = "maxmin",
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Fuse the teachers' similarities of one batch.

    Args:
        similarities: (K, B, B); `[k, i, j]` is teacher k's similarity of x_i and y_j, so
            positives lie on the diagonal.
        strategy: `mean`, `maxmin`, `maxmean` (maximum on the diagonal; minimum or mean off it),
            `rand` (a random teacher per entry), `maxrand` (maximum on the diagonal, random off
            it), or any callable (K, B, B) -> (B, B).
        generator: random generator for `rand` and `maxrand`, on the CPU.

    Returns:
        (B, B), same dtype.

    Raises:
        ConfigError: the strategy is unknown, or shapes do not match.
    """
    shape = similarities.shape
    if len(shape) != 3 or shape[1] != shape[2] or not shape[0]:
        raise ConfigError(f"fuse takes (K, B, B) similarities, not {tuple(similarities.shape)}")
    if callable(strategy):
        fused = strategy(similarities)
        if fused.shape != similarities.shape[1:]:
            raise ConfigError(
                f"the fusion callable returned shape {tuple(fused.shape)}, "
                f"expected {tuple(similarities.shape[1:])}"
            )
        return fused
    check_strategy(strategy)
    return STRATEGIES[strategy](similarities, generator)


def fuse_streaming(
    similarities: Iterable[Tensor],
    count: int,
    strategy: str | Fusion = "maxmin",
    *,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Fuse without stacking: only two matrices in memory for any number of teachers.

    Equals `fuse` (means up to rounding), with the same draws from the generator. A callable needs
    the stack and gets it.

    Args:
        similarities: `count` matrices (B, B), consumed one by one; not modified.
        count: K, the number of teachers.
        strategy, generator: see `fuse`.

    Returns:
        The fused (B, B), and each teacher's positives (K, B) for `positive_wins`. With one teacher
        the former may be the given matrix itself.

    Raises:
        ConfigError: the strategy is unknown, or shapes do not match.
    """
    if callable(strategy):
        stack = torch.stack(list(similarities))
        return fuse(stack, strategy), stack.diagonal(dim1=1, dim2=2).clone()
    check_strategy(strategy)
    rest = strategy.removeprefix("max")
    fused = choice = None
    positives = []
    for number, matrix in enumerate(similarities):
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ConfigError(f"fuse_streaming takes (B, B) matrices, not {tuple(matrix.shape)}")
        positives.append(matrix.diagonal().clone())
        if fused is None:
            fused = matrix
            if rest == "rand":
                choice = _draw(count, matrix, generator)
            continue
        out = fused if number > 1 else torch.empty_like(matrix)
        if choice is not None:
            torch.where(choice == number, matrix, fused, out=out)
        else:
            (torch.minimum if rest == "min" else torch.add)(fused, matrix, out=out)
        fused = out
    if fused is None or len(positives) != count:
        raise ConfigError(f"expected the similarities of {count} teachers, got {len(positives)}")
    of_teachers = torch.stack(positives)
    if count > 1:  # the result of a single teacher is the caller's matrix, not to be modified
        if rest == "mean":
            fused /= count
        if strategy.startswith("max"):
            fused.diagonal().copy_(of_teachers.amax(dim=0))
    return fused, of_teachers


def check_strategy(strategy: str) -> None:
    """Raise ConfigError, naming the choices, if the strategy is unknown."""
    if strategy not in STRATEGIES:
        raise ConfigError(
            f"unknown fusion {strategy!r}{nearest(strategy, STRATEGIES) or '.'} "
            f"Choose one of {', '.join(STRATEGIES)}."
        )


def positive_wins(similarities: Tensor) -> Tensor:
    """Count the positives that each teacher wins, (K,) float64; ties are shared equally.

    Args:
        similarities: (K, B, B) as in `fuse`, or only their diagonals, (K, B).
    """
    is_stack = similarities.ndim == 3
    positives = similarities.diagonal(dim1=1, dim2=2) if is_stack else similarities
    winners = (positives == positives.amax(dim=0)).double()
    return (winners / winners.sum(dim=0)).sum(dim=1)
