"""DOLG: a global and a local branch, fused orthogonally (Yang et al., ICCV 2021)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from whiten.models.sources.paper.networks import Trunk, gem

_DILATIONS = (6, 12, 18)


class MultiAtrous(nn.Module):
    """Dilated convolutions and the global mean of the map, concatenated and mixed."""

    def __init__(self) -> None:
        super().__init__()
        self.im_pool = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(1024, 512, 1), nn.ReLU(inplace=True)
        )
        dilated = [nn.Conv2d(1024, 512, 3, padding=d, dilation=d) for d in _DILATIONS]
        self.aspp = nn.ModuleList([nn.Conv2d(1024, 512, 1), *dilated])
        self.conv_after = nn.Sequential(nn.Conv2d(5 * 512, 1024, 1), nn.ReLU(inplace=True))

    def forward(self, maps: Tensor) -> Tensor:
        """Map (n, 1024, h, w) -> (n, 1024, h, w)."""
        whole = self.im_pool(maps).expand(-1, -1, *maps.shape[2:])
        out: Tensor = self.conv_after(torch.cat([whole, *(conv(maps) for conv in self.aspp)], 1))
        return out


class LocalBranch(nn.Module):
    """Normalised local features, each weighted by its attention.

    Args:
        is_multi_atrous: whether a `MultiAtrous` comes first; published files have both kinds.
    """

    def __init__(self, *, is_multi_atrous: bool) -> None:
        super().__init__()
        self.aspp = MultiAtrous() if is_multi_atrous else nn.Identity()
        self.conv1 = nn.Conv2d(1024, 1024, 1)
        self.bn = nn.BatchNorm2d(1024)
        self.conv2 = nn.Conv2d(1024, 1, 1)

    def forward(self, maps: Tensor) -> Tensor:
        """Map (n, 1024, h, w) feature maps -> (n, 1024, h, w) local descriptors."""
        features = self.bn(self.conv1(self.aspp(maps)))
        attention = F.softplus(self.conv2(F.relu(features)).float())
        return attention * F.normalize(features.float(), dim=1)


class DOLG(nn.Module):
    """Returns the global branch, which the paper distils, or the whole descriptor.

    Args:
        power: power of the global branch's pooling.
        is_multi_atrous: see `LocalBranch`.
        is_fused: return the fused descriptor instead of the global branch.
    """

    def __init__(self, power: float, *, is_multi_atrous: bool, is_fused: bool) -> None:
        super().__init__()
        self.power, self.is_fused = power, is_fused
        self.trunk = Trunk(101)
        self.fc_t = nn.Linear(2048, 1024)
        self.local = LocalBranch(is_multi_atrous=is_multi_atrous)
        self.fc = nn.Linear(2048, 512)

    def forward(self, images: Tensor) -> Tensor:
        """Map (n, 3, h, w) normalised BGR -> (n, 1024) global or (n, 512) fused descriptors."""
        third, fourth = self.trunk.stages(images)
        whole: Tensor = self.fc_t(gem(fourth, self.power)).float()
        if not self.is_fused:
            return whole
        # The part of each local descriptor along the global one is removed, then all are averaged
        # (eq. 2 and section 3.3). Both steps are linear, so the average is orthogonalised instead.
        local = self.local(third).mean(dim=(2, 3))
        along = (local * whole).sum(1, keepdim=True) / (whole * whole).sum(1, keepdim=True)
        fused: Tensor = self.fc(torch.cat([whole, local - along * whole], dim=1))
        return fused
