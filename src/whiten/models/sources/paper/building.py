"""Build the network of each teacher and load the tensors of its file."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from whiten.models.sources.paper.checkpoints import fill, take_tensors
from whiten.models.sources.paper.dolg import DOLG
from whiten.models.sources.paper.layouts import find_layout, holder_of
from whiten.models.sources.paper.networks import PooledNet, Trunk, barlow_head, moco_head
from whiten.models.sources.paper.solar import SecondOrderTrunk
from whiten.models.torch_file import read_torch_file

_HEADS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "mocov3": (moco_head, 256),
    "barlowtwins": (barlow_head, 8192),
}


def load_network(
    name: str, file: str, power: float, *, with_head: bool, is_fused: bool
) -> tuple[nn.Module, int]:
    """Return a published teacher's network with weights, and its embedding dimension.

    Args:
        name: a key of `catalogue.PUBLISHED`.
        file: its checkpoint.
        power: power of the GeM pooling.
        with_head: for the teachers of `_HEADS`, keep the head.
        is_fused: for DOLG, return the fused descriptor.

    Raises:
        TeacherError: the file is not the published one.
    """
    tensors = take_tensors(read_torch_file(file), holder_of(name), file)
    with torch.device("meta"):  # the file replaces all weights
        module, dim = _build(name, power, tensors, with_head=with_head, is_fused=is_fused)
    fill(module.eval(), find_layout(name, tensors), tensors, file)
    if isinstance(module, DOLG) and not is_fused:
        del module.local, module.fc
    return module, dim


def _build(
    name: str, power: float, tensors: dict[str, Tensor], *, with_head: bool, is_fused: bool
) -> tuple[nn.Module, int]:
    if name == "resnet101_dolg":
        is_multi_atrous = any(key.startswith("localmodel.aspp.") for key in tensors)
        dolg = DOLG(power, is_multi_atrous=is_multi_atrous, is_fused=is_fused)
        return dolg, 512 if is_fused else 1024
    if name == "resnet101_delg":
        return PooledNet(Trunk(101), nn.Linear(2048, 512), power, is_normalized=False), 512
    if name in _HEADS:
        head, dim = _HEADS[name]
        if with_head:
            return PooledNet(Trunk(50), head(), power), dim
        return PooledNet(Trunk(50), nn.Identity(), power), 2048
    trunk = SecondOrderTrunk() if name == "resnet101_solar" else Trunk(101)
    return PooledNet(trunk, nn.Linear(2048, 2048), power), 2048
