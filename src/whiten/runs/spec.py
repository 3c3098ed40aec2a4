"""The options of a distillation. No torch here."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from whiten.errors import ConfigError, nearest
from whiten.utils.validation import check_types
from whiten.views.plan import ViewPlan

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
