"""Build, save and load the student: backbone, pooling, projection.

Features are pooled, L2-normalised and projected; the caller L2-normalises again. This is the
classic retrieval head (Radenović et al., TPAMI 2019), whose projection can be a whitening.
`stages` pools every stage of a convolutional backbone: early ones know colours, textures and shapes
that the last one has forgotten for its classes, and cost nothing, since they are computed anyway.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from whiten.errors import ConfigError, TeacherError, one_line
from whiten.models.student_folder import (
    CARD,
    CONFIG,
    WEIGHTS,
    StudentConfig,
    StudentFiles,
    facts_of,
    read_student,
    student_name,
)
from whiten.models.teacher import Teacher
from whiten.models.uri import Pool, TeacherURI, parse_uri
from whiten.models.weights import hash_state
from whiten.utils.files import replacing
from whiten.views.rendering import Preprocess

_STAGES = 4  # the last ones; earlier ones see few pixels
_LEAST = 1e-12  # variance, below which a map is constant


class StudentNet(nn.Module):
    """Backbone + pooling + linear projection.

    Args:
        backbone: a timm model without classifier.
        pool: `gem` is generalised-mean pooling with a learnable power (Radenović et al., TPAMI
            2019, eq. 2), `gem-fixed` keeps the power at 3, `avg` is the average. `auto` is `gem`
            for feature maps and `avg` for transformer tokens, which may be negative. `stages` is
            the average of the last maps, with the mean and standard deviation of the maps of the
            last four stages; of a transformer the average of the tokens.
        dim: embedding dimension.
        preprocess: sets the size of the blank image that determines the number of features.
    """

    def __init__(self, backbone: nn.Module, pool: Pool, dim: int, preprocess: Preprocess) -> None:
        super().__init__()
        self.backbone = backbone
        self.stages: list[int] = []
        blank = torch.zeros(1, 3, *preprocess.size)
        with torch.no_grad():
            maps = self._maps(blank, backbone.eval())
            is_tokens = maps[-1].ndim == 3
            if pool == "stages" and not is_tokens:
                self.stages = _stages(backbone)
                maps = self._maps(blank, backbone)
        if is_tokens and pool in ("gem", "gem-fixed"):
            raise ConfigError(f"pool={pool} needs feature maps; a transformer takes pool=avg")
        self.is_gem = pool in ("gem", "gem-fixed") or (pool == "auto" and not is_tokens)
        if self.is_gem:
            self.power = nn.Parameter(torch.tensor(3.0), requires_grad=pool != "gem-fixed")
        widths = [2 * stage.shape[1] for stage in maps[:-1]]
        self.projection = nn.Linear(sum(widths) + maps[-1].shape[2 if is_tokens else 1], dim)

    def features(self, images: Tensor) -> Tensor:
        """Compute (n, 3, h, w) normalised input -> (n, f) pooled features, L2-normalised."""
        *stages, last = (_widened(maps) for maps in self._maps(images, self.backbone))
        if last.ndim == 3:
            pooled = last.mean(dim=1)
        elif self.is_gem:
            pooled = last.clamp(min=1e-6).pow(self.power).mean(dim=(2, 3)).pow(1 / self.power)
        else:
            pooled = last.mean(dim=(2, 3))
        parts = [statistic for maps in stages for statistic in _mean_and_deviation(maps)]
        # Each part weighs the same, whatever its scale.
        joined = torch.cat([F.normalize(part, dim=1) for part in (*parts, pooled)], dim=1)
        return F.normalize(joined, dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """Embed (n, 3, h, w) normalised input -> (n, dim), not normalised."""
        features = self.features(images).to(self.projection.weight.dtype)
        projected: Tensor = self.projection(features)
        return projected

    def _maps(self, images: Tensor, backbone: Any) -> list[Tensor]:
        """Compute the maps of the stages, if pooled, and the last ones.

        Each is (n, c, h, w); the last ones of a transformer are (n, tokens, c).
        """
        if self.stages:
            last, stages = backbone.forward_intermediates(images, indices=self.stages)
            return [*stages, _channels_first(last, backbone)]
        found = backbone.forward_features(images)
        if not isinstance(found, Tensor):
            raise ConfigError(
                f"{type(backbone).__name__} has several last maps, which no pooling joins: choose "
                "another backbone for --student"
            )
        last = _channels_first(found, backbone)
        if last.ndim == 3:
            last = last[:, getattr(backbone, "num_prefix_tokens", 0) :]
        return [last]

    @torch.no_grad()
    def turn_projection(self, features: np.ndarray, targets: np.ndarray) -> None:
        """Rotate the projection to bring the embeddings as close to the targets as possible.

        Orthogonal Procrustes (Schönemann 1966); similarities between embeddings do not change.

        Args:
            features: (n, f) pooled features.
            targets: (n, dim) targets of the same images.
        """
        embeddings = F.normalize(self.projection(torch.from_numpy(features)), dim=1)
        left, _, right = torch.linalg.svd(
            torch.from_numpy(targets).T.double() @ embeddings.double()
        )
        rotation = (left @ right).float()
        self.projection.weight.copy_(rotation @ self.projection.weight)
        self.projection.bias.copy_(rotation @ self.projection.bias)


def _stages(backbone: Any) -> list[int]:
    """Return the numbers of the stages whose maps are pooled.

    The last stage is left out where its maps are the last ones.
    """
    widths = [stage["num_chs"] for stage in backbone.feature_info]
    count = len(widths) - (widths[-1] == backbone.num_features)
    return list(range(max(0, len(widths) - _STAGES), count))


def _channels_first(maps: Tensor, backbone: Any) -> Tensor:
    if maps.ndim == 4 and maps.shape[1] != backbone.num_features == maps.shape[3]:
        return maps.permute(0, 3, 1, 2)  # Swin and its relatives are channels-last
    return maps


def _widened(maps: Tensor) -> Tensor:
    """Return float32 of half precision, in which powers overflow."""
    return maps if maps.dtype == torch.float64 else maps.float()


def _mean_and_deviation(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Compute (n, c, h, w) -> (n, c) means and standard deviations."""
    mean = maps.mean(dim=(2, 3), keepdim=True)
    variance = (maps - mean).square().mean(dim=(2, 3))
    return mean.flatten(1), variance.clamp(min=_LEAST).sqrt()


def build_student(
    uri: str | TeacherURI,
    *,
    dim: int = 256,
    pool: Pool = "auto",
    size: int | None = None,
    pretrained: bool = True,
) -> tuple[StudentNet, StudentConfig]:
    """Build a student on the backbone of a `timm:` or `demo:` URI, or copy a `whiten:` student.

    Args:
        dim, pool, size: see `whiten.runs.spec.DistillSpec`.
        pretrained: if False, load no weights from a file or a hub; a checkpoint replaces them.

    Raises:
        ConfigError: the URI names no trainable backbone, or a student of other pool or size.
    """
    from whiten.models.registry import open_network

    parsed = parse_uri(uri) if isinstance(uri, str) else uri
    if parsed.scheme == "whiten":
        net, config = load_student(Path(parsed.target))
        _require_same(parsed, config, pool, size)
        return net, config
    if parsed.scheme not in ("timm", "demo"):
        raise ConfigError(
            f"a student starts from timm:NAME, demo:NAME or whiten:FOLDER, not from {parsed}"
        )
    options = {name: value for name, value in parsed.options if name != "size"}
    side = size or dict(parsed.options).get("size")
    if side is not None:
        options["size"] = str(side)
    if not pretrained and parsed.scheme == "timm":
        options.pop("weights", None)
        options["pretrained"] = "0"
    source = open_network(dataclasses.replace(parsed, options=tuple(options.items())))
    if source.module is None:
        raise ConfigError(f"{parsed} cannot be trained: choose a timm: backbone")
    if source.preprocess.layout != "nchw":
        raise ConfigError(f"{parsed} does not take channels-first images: choose another backbone")
    backbone: Any = source.module
    config = StudentConfig(
        architecture=backbone.default_cfg["architecture"],
        pool=pool,
        dim=dim,
        preprocess=source.preprocess,
        backbone=str(parsed),
        backbone_licence=source.licence,
    )
    return _assemble(backbone, config), config


def _require_same(uri: TeacherURI, config: StudentConfig, pool: Pool, size: int | None) -> None:
    """Refuse a pool or size that differs from the student's own."""
    height, width = config.preprocess.size
    if size is not None and (height, width) != (size, size):
        raise ConfigError(f"{uri} sees {height}x{width} px, size={size} does not fit: leave it out")
    if pool not in ("auto", config.pool):
        raise ConfigError(f"{uri} pools by {config.pool}, pool={pool} does not fit: leave it out")


def _assemble(backbone: nn.Module, config: StudentConfig) -> StudentNet:
    net = StudentNet(backbone, config.pool, config.dim, config.preprocess)
    net.requires_grad_(True)
    if config.pool == "gem-fixed":
        net.power.requires_grad_(False)
    return net.to(memory_format=torch.channels_last)


def freeze_unused(net: StudentNet, preprocess: Preprocess) -> None:
    """Freeze parameters that the embedding does not depend on, such as a layer of timm's head.

    DistributedDataParallel would otherwise wait for their gradients.
    """
    was_training = net.training
    net.eval()  # keeps the batch statistics
    net(torch.zeros(1, 3, *preprocess.size)).sum().backward()
    for parameter in net.parameters():
        if parameter.grad is None:
            parameter.requires_grad_(False)
        parameter.grad = None
    net.train(was_training)


# --- the folder -------------------------------------------------------------------------


def save_student(
    net: StudentNet,
    config: StudentConfig,
    folder: Path,
    card: str,
    *,
    finish: Callable[[Path], object] | None = None,
) -> None:
    """Write `model.safetensors`, `config.json` and the model card, atomically.

    Args:
        finish: adds to the folder while it still has a temporary name.

    Raises:
        TeacherError: the folder cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    state = {name: value.detach().cpu().contiguous() for name, value in net.state_dict().items()}
    try:
        with replacing(folder, CONFIG, "a student") as new:
            save_file(state, new / WEIGHTS)
            text = json.dumps(facts_of(config, hash_state(state)), indent=2, sort_keys=True) + "\n"
            (new / CONFIG).write_text(text, "utf-8")
            (new / CARD).write_text(card, "utf-8", errors="backslashreplace")
            if finish is not None:
                finish(new)
    except (OSError, SafetensorError) as error:
        raise TeacherError(
            f"cannot write {folder} ({one_line(error)}): make room or give access and run again "
            "(distill: with --resume)"
        ) from error


def load_student(folder: Path) -> tuple[StudentNet, StudentConfig]:
    """Read a student folder.

    Raises:
        TeacherError: the folder is missing, incomplete, damaged or of a later format.
    """
    files = read_student(folder)
    return build_network(files), files.config


def build_network(files: StudentFiles) -> StudentNet:
    """Build the network of a student's files.

    Raises:
        TeacherError: weights and configuration do not fit.
    """
    import timm
    from safetensors.torch import load

    config = files.config
    try:
        backbone = timm.create_model(config.architecture, num_classes=0, **_sized(config))
        net = _assemble(backbone, config)
        net.load_state_dict(load(files.weights))
    except Exception as error:  # timm and torch raise many kinds on a mismatched config
        raise TeacherError(
            f"{files.folder}: weights and config do not fit ({one_line(error)}): distil again or "
            "restore it"
        ) from error
    return net


def _sized(config: StudentConfig) -> dict[str, Any]:
    """Return timm's option for the input size: transformers have a fixed one."""
    import timm

    published = timm.get_pretrained_cfg(config.architecture)
    is_fixed = bool(published and published.fixed_input_size)
    return {"img_size": config.preprocess.size} if is_fixed else {}


# --- a student is a teacher too ---------------------------------------------------------


def open_uri(uri: TeacherURI) -> Teacher:
    """Open `whiten:FOLDER`; takes no options."""
    uri.take()
    net, config = load_student(Path(uri.target))
    return as_teacher(net, config, str(uri))


def as_teacher(net: StudentNet, config: StudentConfig, uri: str) -> Teacher:
    """Return the whole student as an embedding model."""
    return Teacher(
        uri=uri,
        name=student_name(Path(uri.partition(":")[2])),
        dim=config.dim,
        preprocess=config.preprocess,
        weights_hash=hash_state(net.state_dict()),
        forward=net,
        licence=config.licence,
        module=net,
        compatible_with=config.galleries,
    )


def backbone_as_teacher(net: StudentNet, config: StudentConfig) -> Teacher:
    """Return the student's pooled features, before the projection, as an embedding model."""
    frozen = {k: v for k, v in net.state_dict().items() if not k.startswith("projection.")}
    return Teacher(
        uri=config.backbone,
        name=f"{config.architecture}-features",
        dim=net.projection.in_features,
        preprocess=config.preprocess,
        weights_hash=hash_state(frozen),
        forward=net.features,
        licence=config.backbone_licence,
        module=net,
        params=sum(v.numel() for v in net.backbone.parameters()),
    )
