"""SOLAR's second-order attention (Ng et al., ECCV 2020)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from whiten.models.sources.paper.networks import Trunk


class SecondOrderAttention(nn.Module):
    """Adds to each position of a feature map a similarity-weighted sum over all positions.

    softmax(fᵀg / √d) h, projected by v and added to the map (Ng et al., section 3.1).

    Args:
        width: channels of the map.
        inner: d, channels of f, g and h.
    """

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.f = nn.Sequential(nn.Conv2d(width, inner, 1), nn.BatchNorm2d(inner), nn.ReLU())
        self.g = nn.Sequential(nn.Conv2d(width, inner, 1), nn.BatchNorm2d(inner), nn.ReLU())
        self.h = nn.Conv2d(width, inner, 1)
        self.v = nn.Conv2d(inner, width, 1)

    def forward(self, maps: Tensor) -> Tensor:
        """Map (n, width, h, w) -> the same shape; avoids storing all pairs of positions."""
        query, key, value = (_tokens(layer(maps)) for layer in (self.f, self.g, self.h))
        attended = F.scaled_dot_product_attention(query, key, value)  # divides by √d
        gathered = attended[:, 0].transpose(1, 2).reshape(len(maps), -1, *maps.shape[2:])
        out: Tensor = self.v(gathered) + maps
        return out


def _tokens(maps: Tensor) -> Tensor:
    """Reshape (n, c, h, w) -> (n, 1, h·w, c), for one attention head."""
    # Tiled attention needs the channels of a position contiguous.
    return maps.flatten(2).transpose(1, 2).unsqueeze(1).contiguous()


class SecondOrderTrunk(Trunk):
    """ResNet-101 with second-order attention after its third and fourth stages."""

    def __init__(self) -> None:
        super().__init__(101)
        self.soa4 = SecondOrderAttention(1024, 256)
        self.soa5 = SecondOrderAttention(2048, 1024)

    def after_third(self, maps: Tensor) -> Tensor:
        out: Tensor = self.soa4(maps)
        return out

    def after_fourth(self, maps: Tensor) -> Tensor:
        out: Tensor = self.soa5(maps)
        return out
