"""Measure a student on the images that its run holds out."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from whiten.distillation.held_out import CROP_VIEWS
from whiten.distillation.training_set import TrainingSet
from whiten.models.student import StudentNet
from whiten.utils.arrays import Vectors
from whiten.utils.threads import ordered_map
from whiten.views.on_device import model_input
from whiten.views.rendering import Preprocess

_AT_ONCE = 64  # held-out images per forward pass


@torch.no_grad()
def held_precisions(
    net: StudentNet,
    weights: dict[str, Tensor],
    data: TrainingSet,
    preprocess: Preprocess,
    fabric: Any,
) -> npt.NDArray[np.float64]:
    """Measure the student of these weights, image by image."""
    assert data.held_out is not None
    if data.spec.backbone_lr == 0:
        whole, crops = (
            None if features is None else _project(features, weights, fabric.device)
            for features in data.held_features()
        )
        assert whole is not None
        return data.held_out.precisions(whole, crops)
    net.eval()
    numbers = (0, *CROP_VIEWS) if data.held_out.has_crops else (0,)
    sides = [(item, n) for item in range(data.trained, len(data.items)) for n in numbers]
    rendered = ordered_map(
        lambda side: data.render_crop(side, preprocess),
        sides,
        workers=data.workers,
        ahead=_AT_ONCE,
    )
    blocks = []
    while block := list(islice(rendered, _AT_ONCE)):
        pixels = model_input(preprocess, np.stack(block), fabric.device)
        blocks.append(functional_call(net, weights, (pixels,)).float().cpu().numpy())
    found = np.concatenate(blocks).reshape(-1, len(numbers), blocks[0].shape[1])
    return data.held_out.precisions(found[:, 0], found[:, 1:] if len(numbers) > 1 else None)


def _project(features: Vectors, weights: dict[str, Tensor], device: torch.device) -> Vectors:
    inputs = torch.from_numpy(features).to(device)
    projected = F.linear(inputs, weights["projection.weight"], weights["projection.bias"])
    return np.asarray(projected.cpu())
