"""A student as a `torch.nn.Module` that maps pixels to embeddings."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from whiten.errors import ConfigError
from whiten.media.decoding import upright_rgb
from whiten.models.student import StudentNet, load_student
from whiten.models.student_folder import StudentConfig
from whiten.utils.devices import random_state_kept
from whiten.views.rendering import View, render


class StudentModule(nn.Module):
    """Maps pixels to L2-normalised embeddings; differentiable and trainable.

    Attributes:
        config: properties of the student: architecture, dim, preprocessing, teachers, licences.
        dim: embedding dimension.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: StudentNet, config: StudentConfig) -> None:
        super().__init__()
        self.net = net
        self.config = config
        self.dim = config.dim
        values = config.preprocess
        scale = values.white  # mean and std refer to pixels in 0..white
        for name, value in (("mean", values.mean), ("std", values.std)):
            self.register_buffer(name, torch.tensor(value).view(3, 1, 1) / scale, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Embed images.

        Args:
            images: (n, 3, h, w) RGB, float in 0..1 or uint8, of the size that `transform` returns;
                convolutional students take other sizes too.

        Returns:
            (n, dim) embeddings, L2-normalised, in the precision of the module.
        """
        dtype = self.mean.dtype  # follows `half` and the like
        images = images.to(dtype) / 255 if images.dtype == torch.uint8 else images.to(dtype)
        if self.config.preprocess.channels == "bgr":
            images = images.flip(1)
        embeddings = self.net((images - self.mean) / self.std)
        if dtype in (torch.float16, torch.bfloat16):  # squares overflow
            return F.normalize(embeddings.float(), dim=1).to(dtype)
        return F.normalize(embeddings, dim=1)

    def transform(self, image: Image.Image) -> Tensor:
        """Convert an image to the student's input: (3, h, w) float in 0..1, cropped and resized."""
        pixels = render(upright_rgb(image), View(), self.config.preprocess)
        return torch.from_numpy(np.array(pixels)).permute(2, 0, 1).float() / 255


@random_state_kept()
def load_module(student: str | os.PathLike[str]) -> StudentModule:
    """Open a student as a module, in evaluation mode.

    Args:
        student: folder of the student, or of the run that made it.

    Raises:
        TeacherError: there is no student, or it is damaged.
        ConfigError: the student's input is not (n, 3, h, w).
    """
    folder = Path(os.fspath(student).removeprefix("whiten:"))
    inner = folder / "student"
    net, config = load_student(inner if inner.is_dir() else folder)
    if config.preprocess.layout != "nchw":
        raise ConfigError(f"{folder} takes {config.preprocess.layout} input: use whiten.load")
    return StudentModule(net, config).eval()
