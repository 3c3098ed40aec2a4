"""Tiny models of transformers, saved as the hub would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from teacher_helpers import check_same, make_pixels, normalise, shake
from whiten.models.registry import open_teacher

MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
LAYERS = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
VISION = LAYERS | {"image_size": 32, "patch_size": 8}
TEXT = LAYERS | {"vocab_size": 20, "max_position_embeddings": 8, "bos_token_id": 0}
TEXT |= {"eos_token_id": 1}


def save_hf(model: Any, folder: Path, seed: int = 0) -> Any:
    shake(model, seed).save_pretrained(folder)
    transformers.ViTImageProcessor(
        size={"height": 32, "width": 32}, image_mean=MEAN, image_std=STD
    ).save_pretrained(folder)
    return model


def check_hf(teacher_uri: str, function: Any, side: int = 32) -> None:
    """The teacher embeds what `function` makes of the same pixels."""
    pixels = make_pixels(side)
    with torch.no_grad():
        expected = function(normalise(pixels, MEAN, STD))
    check_same(open_teacher(teacher_uri).embed(pixels), expected)
