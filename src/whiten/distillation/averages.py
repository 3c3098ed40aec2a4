"""Averages of the weights of a network: with those that it started from, and over its steps."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def blended(
    weights: dict[str, Tensor], start: dict[str, Tensor], share: float
) -> dict[str, Tensor]:
    """Return the weighted mean of two states; `start` may be empty if its share is 0."""
    if not share:
        return weights
    return {
        name: value.lerp(start[name], share) if value.is_floating_point() else value
        for name, value in weights.items()
    }


@torch.no_grad()
def update_average(average: dict[str, Tensor], net: nn.Module, decay: float) -> None:
    """Move the average towards the network's weights, in place.

    Args:
        decay: share of the average that stays.
    """
    for name, value in net.state_dict().items():
        if value.is_floating_point():
            average[name].lerp_(value, 1 - decay)
        else:
            average[name].copy_(value)
