"""ResNet, generalised-mean pooling and head: the parts that the published teachers share."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet

_BLOCKS = {50: [3, 4, 6, 3], 101: [3, 4, 23, 3]}
_EPSILON = 1e-6  # lower bound of pooled activations, as in the published code


class Trunk(ResNet):  # type: ignore[misc]
    """Torchvision's ResNet up to its last feature map.

    Blocks stride in the 3x3 convolution, as in all seven teachers.
    """

    def __init__(self, depth: int) -> None:
        super().__init__(Bottleneck, _BLOCKS[depth])
        del self.avgpool, self.fc

    def stages(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map (n, 3, h, w) -> the (n, 1024, h/16, w/16) and (n, 2048, h/32, w/32) feature maps."""
        maps = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        third = self.after_third(self.layer3(self.layer2(self.layer1(maps))))
        return third, self.after_fourth(self.layer4(third))

    def after_third(self, maps: Tensor) -> Tensor:
        return maps

    def after_fourth(self, maps: Tensor) -> Tensor:
        return maps

    def forward(self, images: Tensor) -> Tensor:
        return self.stages(images)[1]


def gem(maps: Tensor, power: float) -> Tensor:
    """Apply generalised-mean pooling (Radenović et al., TPAMI 2019, eq. 2): (n, c, h, w) -> (n, c).

    Power 1 is the plain average, also for negative values.
    """
    maps = maps.float()
    if power == 1:
        return maps.mean(dim=(2, 3))
    return maps.clamp(min=_EPSILON).pow(power).mean(dim=(2, 3)).pow(1 / power)


class PooledNet(nn.Module):
    """Trunk, pooling, optional L2 normalisation, and head.

    Args:
        trunk: computes the feature map.
        head: maps pooled features to the embedding.
        power: power of the pooling.
        is_normalized: whether the pooled features are L2-normalised before the head.
    """

    def __init__(
        self, trunk: Trunk, head: nn.Module, power: float, *, is_normalized: bool = True
    ) -> None:
        super().__init__()
        self.trunk, self.head = trunk, head
        self.power, self.is_normalized = power, is_normalized

    def forward(self, images: Tensor) -> Tensor:
        """Map (n, 3, h, w) normalised input, any size from 32 px -> (n, dim)."""
        pooled = gem(self.trunk(images), self.power)
        if self.is_normalized:
            pooled = F.normalize(pooled, dim=1)
        embeddings: Tensor = self.head(pooled)
        return embeddings


def moco_head() -> nn.Sequential:
    """Build MoCo v3's projector and predictor (Chen et al., ICCV 2021): 2048 -> 256."""
    return nn.Sequential(
        nn.Linear(2048, 4096, bias=False),
        nn.BatchNorm1d(4096),
        nn.ReLU(inplace=True),
        nn.Linear(4096, 256, bias=False),
        nn.BatchNorm1d(256, affine=False),
        nn.Linear(256, 4096, bias=False),
        nn.BatchNorm1d(4096),
        nn.ReLU(inplace=True),
        nn.Linear(4096, 256, bias=False),
    )


def barlow_head() -> nn.Sequential:
    """Build Barlow Twins' projector and batch norm (Zbontar et al., ICML 2021): 2048 -> 8192."""
    return nn.Sequential(
        nn.Linear(2048, 8192, bias=False),
        nn.BatchNorm1d(8192),
        nn.ReLU(inplace=True),
        nn.Linear(8192, 8192, bias=False),
        nn.BatchNorm1d(8192),
        nn.ReLU(inplace=True),
        nn.Linear(8192, 8192, bias=False),
        nn.BatchNorm1d(8192, affine=False),
    )
