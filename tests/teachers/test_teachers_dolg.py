"""DOLG's fused descriptor against the formulas of its paper, written out place by place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from published_files import (
    batch_norm,
    check_close,
    embed_raw,
    fill_rule,
    golden_outputs,
    published_tensors,
    write_published,
)
from whiten.models.registry import open_teacher


def dilated(maps: Tensor, weight: Tensor, bias: Tensor, dilation: int) -> Tensor:
    """(c, h, w) -> (o, h, w): a 3x3 convolution place by place, zero outside of the map."""
    _, height, width = maps.shape
    out = bias[:, None, None].repeat(1, height, width)
    for y in range(height):
        for x in range(width):
            for i in range(3):
                for j in range(3):
                    v, u = y + (i - 1) * dilation, x + (j - 1) * dilation
                    if 0 <= v < height and 0 <= u < width:
                        out[:, y, x] += weight[:, :, i, j] @ maps[:, v, u]
    return out


def pointwise(maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.einsum("oc,chw->ohw", weight[:, :, 0, 0], maps) + bias[:, None, None]


def multi_atrous(maps: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    def layer(name: str) -> tuple[Tensor, Tensor]:
        key = f"localmodel.aspp.{name}"
        return tensors[f"{key}.weight"], tensors[f"{key}.bias"]

    mean = maps.mean(dim=(1, 2), keepdim=True)
    parts = [pointwise(mean, *layer("im_pool.1")).relu().expand(-1, *maps.shape[1:])]
    parts.append(pointwise(maps, *layer("aspp.0")))
    for number, dilation in enumerate((6, 12, 18), start=1):
        parts.append(dilated(maps, *layer(f"aspp.{number}"), dilation))
    return pointwise(torch.cat(parts), *layer("conv_after.0")).relu()


def fuse_slowly(third: Tensor, whole: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    """DOLG's section 3.3 for one image: each local descriptor without its part along the global.

    Args:
        third: (1024, h, w) feature map.
        whole: (1024,) global descriptor.
    """
    local = {k.removeprefix("localmodel."): v for k, v in tensors.items()}
    if "aspp.aspp.0.weight" in local:
        third = multi_atrous(third, tensors)
    features = pointwise(third, local["conv1.weight"], local["conv1.bias"])
    features = batch_norm(features.permute(1, 2, 0), local, "bn")  # (h, w, 1024)
    orthogonal = []
    for place in features.reshape(-1, 1024):
        score = place.relu() @ local["conv2.weight"].flatten() + local["conv2.bias"][0]
        descriptor = torch.log1p(torch.exp(score)) * place / place.norm()
        orthogonal.append(descriptor - (descriptor @ whole) / (whole @ whole) * whole)
    joined = torch.cat([whole, torch.stack(orthogonal).mean(dim=0)])
    return tensors["fc.weight"] @ joined + tensors["fc.bias"]


@pytest.mark.slow
@pytest.mark.parametrize("is_multi_atrous", [False, True])
def test_fused_dolg(is_multi_atrous: bool, folder: Path) -> None:
    tensors = published_tensors("resnet101_dolg")
    if is_multi_atrous:
        layers = {"aspp.0": (512, 1024, 1, 1), "im_pool.1": (512, 1024, 1, 1)}
        layers |= {f"aspp.{n}": (512, 1024, 3, 3) for n in (1, 2, 3)}
        for name, shape in {**layers, "conv_after.0": (1024, 2560, 1, 1)}.items():
            key = f"localmodel.aspp.{name}"
            tensors[f"{key}.weight"] = fill_rule(f"{key}.weight", shape)
            tensors[f"{key}.bias"] = fill_rule(f"{key}.bias", shape[:1])
    path = write_published("resnet101_dolg", folder, tensors)
    # Wide enough that the dilation of 12 reaches another place of the 5 x 14 map.
    images = torch.from_numpy(golden_outputs()["input"][:1, :, :80]).tile(1, 1, 1, 2)[..., :224]
    whole = open_teacher(f"paper:resnet101_dolg?weights={path}")
    fused: Any = open_teacher(f"paper:resnet101_dolg?weights={path}&branch=fused")
    assert (whole.dim, fused.dim) == (1024, 512)
    assert (whole.name, fused.name) == ("resnet101_dolg", "resnet101_dolg-fused")
    assert whole.fingerprint() != fused.fingerprint()
    with torch.inference_mode():
        third = fused.module.trunk.stages(images)[0][0]
        assert third.shape == (1024, 5, 14)
        expected = fuse_slowly(third, embed_raw(whole, images)[0], tensors)
        check_close(embed_raw(fused, images)[0], expected)
