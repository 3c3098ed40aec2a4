"""The optimiser, and its learning rates by step and by layer."""

from __future__ import annotations

import math
from typing import Any

import torch
from timm.models import group_parameters
from torch import nn

from whiten.models.student import StudentNet
from whiten.runs.spec import DistillSpec


def learning_rate(step: int, total: int, spec: DistillSpec) -> float:
    """Return the head's learning rate at a step: a pure function, so resuming needs no state.

    `cosine` rises linearly during warm-up and falls as half a cosine to `min_lr` (Loshchilov &
    Hutter 2017); `onecycle` rises from 1/25 as half a cosine over 30 % of the steps and falls to
    almost 0 (Smith 2018).
    """
    if spec.schedule == "onecycle":
        peak = max(1, round(0.3 * total))
        if step < peak:
            return spec.lr * (1 / 25 + (1 - 1 / 25) * (1 - math.cos(math.pi * step / peak)) / 2)
    else:
        peak = round(spec.warmup * total)
        if step < peak:
            return spec.lr * (step + 1) / (peak + 1)
    low = spec.min_lr if spec.schedule == "cosine" else 0.0
    falling = (1 + math.cos(math.pi * (step - peak) / max(1, total - peak))) / 2
    return low + (spec.lr - low) * falling


def make_optimizer(net: StudentNet, spec: DistillSpec) -> torch.optim.Optimizer:
    """Build the optimiser; the backbone trains at its own fraction of the learning rate.

    Weight decay applies to matrices only, except that Adam's L2 penalty applies to all parameters,
    as in the published code.
    """
    groups = []
    is_adam = spec.optimizer == "adam"
    layers = _layers(net, spec.layer_decay)
    for below, layer in enumerate(reversed(layers)):
        scale = spec.layer_decay**below * (spec.backbone_lr if below else 1.0)
        if scale == 0:
            continue
        for decays in (False, True):
            groups.append(
                {
                    "params": [p for p in layer if (p.ndim > 1) == decays],
                    "weight_decay": spec.weight_decay if decays or is_adam else 0.0,
                    "lr_scale": scale,
                }
            )
    kind = torch.optim.Adam if is_adam else torch.optim.AdamW
    return kind(groups[::-1], lr=spec.lr)


def _layers(net: StudentNet, decay: float) -> list[list[nn.Parameter]]:
    """Return the parameters that train at one rate, from the input to the projection.

    Without decay the backbone is one layer; otherwise its stages, or its blocks if it is a
    transformer, are (Clark et al., ELECTRA, 2020; Bao et al., BEiT, 2022).
    """
    head = {id(p) for p in net.projection.parameters()}
    backbone: Any = net.backbone
    numbers: dict[str, int] = {}
    if decay != 1:
        numbers = group_parameters(backbone, backbone.group_matcher(coarse=True), reverse=True)
    last = max(numbers.values(), default=0)
    layers: list[list[nn.Parameter]] = [[] for _ in range(last + 2)]
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            number = numbers.get(name.removeprefix("backbone."), last)
            layers[-1 if id(parameter) in head else number].append(parameter)
    return layers
