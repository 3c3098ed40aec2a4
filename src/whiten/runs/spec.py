"""The options of a distillation. No torch here."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from cyclopts import Group, Parameter

from whiten.errors import ConfigError, nearest
from whiten.models.uri import MOST_PIXELS, Pool, parse_uri
from whiten.runs.budget import parse_time
from whiten.utils.devices import check_device
from whiten.utils.validation import check_types
from whiten.views.plan import ViewPlan

# Terms of the objective: each is an option that holds its weight.
TERMS = ("kl", "labels", "relational", "align", "queue")
SOURCE_COLUMN = "source"
EPOCHS = 20
# Options that a budget chooses where the user leaves them open, and the run then records.
PLANNED = ("size", "views", "rounds", "epochs", "stop_step", "micro_batch")
HARDWARE = frozenset({"device", "compile", "micro_batch", "workers"})  # may change when resumed
_RENAMED = {"accelerator": "device"}  # in runs before 0.2
_FROM_ONE = (
    *("dim", "whiten_dim", "size", "views", "pairs_per_class", "rounds", "checkpoint_every"),
    *("micro_batch", "devices", "nodes", "workers"),
)
_SHARES = (("start_weight", 1.0), ("keep_start", 1.0), ("held_out", 0.5), ("warmup", 1.0))
_LARGEST_SEED = 2**63 - 1  # that torch takes
_LARGEST_DIM = 65_536  # a larger projection would fill the memory

_MODELS, _TIME, _DATA, _OBJECTIVE, _OPTIMISATION, _HARDWARE, _PAPER = (
    Parameter(group=Group.create_ordered(name))
    for name in (
        "Teachers, student and whitening",
        "Time",
        "Data",
        "Objective",
        "Optimisation",
        "Hardware",
        "Reproducing the paper",
    )
)

_ONE = Parameter(consume_multiple=False, show_default=False)

_MANY = Parameter(consume_multiple=True, show_default=False)  # of a list, which is empty


def _no(name: str) -> Parameter:
    """A flag that a configuration file may set and the command line may unset."""
    return Parameter(negative=f"--no-{name}")


@dataclass(frozen=True)
class DistillSpec:
    """Options of one distillation; every field is an option of `whiten distill`."""

    teachers: Annotated[list[str], _MODELS, _MANY] = field(default_factory=list)
    """URIs of the teachers, at least one."""
    student: Annotated[str, _MODELS] = "timm:efficientnet_lite0"
    """URI of the student's backbone: timm:NAME or demo:NAME; or whiten:FOLDER, a student to train
    further."""
    dim: Annotated[int, _MODELS] = 1024
    """Dimension of the student's embedding."""
    size: Annotated[int | None, _MODELS] = None
    """Input side of the student in pixels; by default the backbone's own."""
    pool: Annotated[Pool | None, _MODELS] = None
    """Pooling: GeM with a learnable or a fixed power, the average, or the average beside mean and
    deviation of every stage of a convolutional backbone; auto is gem for feature maps and avg for
    transformers. By default stages for a pretrained backbone, else auto, as with the recipe
    paper."""
    whiten: Annotated[bool, _MODELS, _no("whiten")] = True
    """Whiten the teachers; without it they are only L2-normalised."""
    whiten_dim: Annotated[int | Literal["auto"], _MODELS] = "auto"
    """Axes that the whitening of each teacher keeps; auto chooses on held-out images. Unused with
    --no-whiten, like --shrinkage and --whiten-images."""
    shrinkage: Annotated[float | Literal["auto"] | None, _MODELS] = None
    """Regularisation of the whitening: 0 is PCA-whitening, inf is centring; auto chooses on
    held-out images. By default auto, or 0 with the recipe paper."""
    teacher_weights: Annotated[str | None, _MODELS] = None
    """Weights of the teachers in their fused space, one number above 0 per teacher, as 1,1,0.5: the
    similarity of two images is the weighted mean of the teachers' cosines. equal, or auto, which
    lowers a teacher's weight if held-out images show a clear gain. By default auto, or equal with
    the recipe paper."""
    compatible: Annotated[bool, _MODELS, _no("compatible")] = False
    """Make the student's queries able to search a gallery of its teachers, fuse:compatible:RUN: the
    student also regresses their fused embeddings, cut to its own dimension."""

    budget: Annotated[str | None, _TIME] = None
    """Time for the whole run, such as 90s, 10m or 1h30m: size, views and epochs that are not given
    are chosen by the images and the speed of this machine, and training stops in time."""
    epochs: Annotated[int | None, _TIME] = None
    """Most passes over the images; 0 keeps the best start in closed form. By default 20, or fewer
    within a budget; 0 on fewer than 2,000 images of your own (not of `unlabelled`) without groups,
    or too few to hold some out."""
    rounds: Annotated[int | None, _TIME] = None
    """Pairs of views of each image per epoch, without groups; by default half of its views, or 1 if
    --views is given."""
    stop_step: Annotated[int | None, _TIME] = None
    """Step after which training stops, whatever the epochs; a run with a budget records its own, so
    that its config.yaml repeats it."""

    exclude: Annotated[list[str], _DATA, _ONE] = field(default_factory=list)
    """Leave out images whose path below their folder, or any part of it, matches this glob;
    repeatable."""
    include: Annotated[list[str], _DATA, _ONE] = field(default_factory=list)
    """Take only images that match this glob; repeatable."""
    unlabelled: Annotated[list[str], _DATA, _MANY] = field(default_factory=list)
    """Folders or tables of other images to learn on as well, without groups: a transfer set."""
    holdout_source: Annotated[list[str], _DATA, _MANY] = field(default_factory=list)
    """Sources of images (shops, cameras, years) that are never trained on; the report shows what
    the student is worth on them, beside images of the sources that it has seen."""
    source_column: Annotated[str, _DATA] = SOURCE_COLUMN
    """Column of the images' table, or of the one table in their folder, that names their source."""
    pairs: Annotated[Literal["auto", "groups", "views", "frames", "mixed"], _DATA] = "auto"
    """Source of positive pairs: images of a group, two views of an image, or both (mixed); frames
    takes two views of one frame per video and epoch. auto takes groups if there are any, and mixes
    in views of ungrouped images if those are many."""
    pairs_per_class: Annotated[int | None, _DATA] = None
    """Most pairs of one group per batch."""
    views: Annotated[int | None, _DATA] = None
    """Views of each image that the teachers embed; by default 1 with groups, else 2, and up to 8 if
    the images are few."""
    augment: Annotated[Literal["light", "paper-images", "paper-frames"] | None, _DATA] = None
    """Plan of the views: light keeps view 0 whole and crops the others with a little colour;
    paper-images crops and flips every view; paper-frames also changes colours, blurs and
    solarises. By default light, or the paper's with the recipe paper."""
    view_seed: Annotated[int, _DATA] = 0
    """Seed of the views; runs that share it share their cached embeddings."""

    recipe: Annotated[
        Literal[
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
        ],
        _OBJECTIVE,
    ] = "auto"
    """Objective: auto chooses by the pairs, the student and the teachers, and says why; paper is
    the published one. A file, such as recipes/NAME.yaml, is read like --config."""
    kl: Annotated[float | None, _OBJECTIVE] = None
    """Weight of the paper's loss on fused similarities of positives and negatives."""
    labels: Annotated[float | None, _OBJECTIVE] = None
    """Weight of the contrastive loss on groups, or on views if there are none."""
    relational: Annotated[float | None, _OBJECTIVE] = None
    """Weight of the distillation of similarities between different things."""
    align: Annotated[float | None, _OBJECTIVE] = None
    """Weight of the cosine regression onto the fused teacher space."""
    queue: Annotated[float | None, _OBJECTIVE] = None
    """Weight of the distillation of similarities to cached teacher embeddings."""
    fusion: Annotated[
        Literal["mean", "maxmin", "maxmean", "maxrand", "rand"] | None, _OBJECTIVE
    ] = None
    """Fusion of the teachers' similarities in the paper's loss; by default maxmin."""
    temperature: Annotated[float | None, _OBJECTIVE] = None
    """Softmax temperature of the distillation."""
    label_temperature: Annotated[float | None, _OBJECTIVE] = None
    """Softmax temperature of the contrastive loss."""
    start: Annotated[Literal["ridge", "principal", "random"] | None, _OBJECTIVE] = None
    """Start of the projection: ridge regression of the fused teachers on the backbone's features,
    the features' principal axes, or random. By default ridge for a pretrained backbone."""
    start_weight: Annotated[float | None, _OBJECTIVE] = None
    """Share of the pretrained backbone's own features beside the fused teachers in what the student
    regresses, so that it keeps what it knew; 0 is none. Used by --start ridge. By default chosen
    on held-out images; none with compatible."""

    held_out: Annotated[float | None, _OPTIMISATION] = None
    """Share of the images, in whole groups, that measure the student after each epoch and never
    train it; the best student measured is kept. 0 is off. By default 0.1, or 0 with the recipe
    paper."""
    batch_size: Annotated[int | None, _OPTIMISATION] = None
    """Pairs per batch, over all devices; by default 128, and fewer if the images are few."""
    optimizer: Annotated[Literal["adamw", "adam"], _OPTIMISATION] = "adamw"
    """Optimiser."""
    lr: Annotated[float, _OPTIMISATION] = 1e-3
    """Peak learning rate."""
    min_lr: Annotated[float, _OPTIMISATION] = 0.0
    """Learning rate at the end of the cosine."""
    backbone_lr: Annotated[float, _OPTIMISATION] = 1.0
    """Learning rate of the backbone, relative to lr; 0 freezes it."""
    layer_decay: Annotated[float, _OPTIMISATION] = 1.0
    """Learning rate of each stage of the backbone, relative to that of the next one: below 1, early
    stages keep more of what they knew."""
    batch_statistics: Annotated[Literal["frozen", "moving"] | None, _OPTIMISATION] = None
    """Means and variances of batch normalisation: kept as pretrained, or those of each batch. By
    default frozen for a pretrained backbone, and moving otherwise and with the recipe paper."""
    weight_decay: Annotated[float, _OPTIMISATION] = 1e-4
    """With adamw on matrices alone; with adam on all parameters, as an L2 penalty."""
    schedule: Annotated[Literal["cosine", "onecycle"], _OPTIMISATION] = "cosine"
    """Schedule of the learning rate: onecycle rises over 30 % of the steps and falls to almost 0,
    whatever --warmup and --min-lr."""
    warmup: Annotated[float, _OPTIMISATION] = 0.05
    """Fraction of the steps with a rising learning rate."""
    clip: Annotated[float, _OPTIMISATION] = 1.0
    """Largest norm of the gradient; 0 is off."""
    keep_start: Annotated[float | None, _OPTIMISATION] = None
    """Share of the start's weights in the student, which brings back what training forgets: the
    student is their mean (WiSE-FT, Wortsman et al. 2022). By default 0.5 where a whole pretrained
    network learns without groups, else 0."""
    ema: Annotated[float, _OPTIMISATION] = 0.0
    """Decay of the moving average of the weights that becomes the student; 0 is off."""
    seed: Annotated[int, _OPTIMISATION] = 0
    """Seed of the training."""
    checkpoint_every: Annotated[int, _OPTIMISATION] = 200
    """Steps between checkpoints; one is also written after each epoch."""

    device: Annotated[str, _HARDWARE, Parameter(("--device", "--accelerator"))] = "auto"
    """Device that embeds and trains: cpu, cuda, cuda:1, mps; auto takes the fastest."""
    devices: Annotated[int, _HARDWARE] = 1
    """Devices per node."""
    nodes: Annotated[int, _HARDWARE] = 1
    """Machines; more than one are started with torchrun, srun or --cluster."""
    precision: Annotated[Literal["auto", "32", "bf16", "16"], _HARDWARE] = "auto"
    """Precision of the training; auto is bf16 if the device computes in it."""
    micro_batch: Annotated[int | Literal["auto"] | None, _HARDWARE] = None
    """Images whose activations are in memory at once, for less memory and a third more time: the
    loss is still that of the whole batch, exactly if batch statistics are frozen. auto chooses by
    the free memory; by default the whole batch."""
    compile: Annotated[bool, _HARDWARE, _no("compile")] = False
    """Compile the student for training: faster on a GPU, after minutes of compilation."""
    workers: Annotated[int | None, _HARDWARE] = None
    """Threads that decode images; by default one per core."""

    teachers_online: Annotated[bool, _PAPER, _no("teachers-online")] = False
    """Run the teachers in every step, as the paper does, and cache nothing."""
    whiten_images: Annotated[int | None, _PAPER] = None
    """Images, drawn at random, that the whitenings are fitted on; 0 is all. By default all, or
    10,000 with the recipe paper."""
    pairs_per_epoch: Annotated[int | None, _PAPER] = None
    """Most pairs of one group per epoch; with 0 each of its images is used once."""

    def __post_init__(self) -> None:
        check_types(self)
        if not self.teachers:
            raise ConfigError(
                "name at least one teacher: --teachers demo:mobilenetv2 "
                "(to --resume, leave out all options but --out)"
            )
        for uri in (*self.teachers, self.student):
            parse_uri(uri)
        _ = self.weights
        if self.budget is not None:
            parse_time(self.budget)
            if self.teachers_online:
                raise ConfigError(
                    "--budget plans with cached teachers: leave out --teachers-online, or --budget"
                )
        self._check_numbers()
        if self.unlabelled and self.pairs == "frames":
            raise ConfigError("pairs of frames come from videos alone: leave out --unlabelled")
        if self.source_column != SOURCE_COLUMN and not self.holdout_source:
            raise ConfigError(
                "source_column says where holdout_source looks: name the sources to hold out with "
                "--holdout-source, or leave out --source-column"
            )
        if self.compatible and self.start_weight:
            raise ConfigError(
                "the gallery of --compatible has no place for --start-weight: leave it out"
            )
        if self.batch_size is not None and self.batch_size < 2:
            raise ConfigError("batch_size must be at least 2: negatives come from the batch")
        check_device(self.device)
        if ":" in self.device and self.devices * self.nodes > 1:
            raise ConfigError(
                f"device {self.device} is a single one: leave out its number, or --devices"
            )
        if (self.batch_size or 0) % (self.devices * self.nodes):
            raise ConfigError(
                f"batch_size {self.batch_size} must divide by the number of processes "
                f"({self.devices * self.nodes})"
            )
        if not 0 <= self.min_lr <= self.lr:
            raise ConfigError(f"min_lr must lie between 0 and lr ({self.lr:g}), not {self.min_lr}")

    def _check_numbers(self) -> None:
        """Refuse numbers that mean nothing, which would be ignored, or fail after hours."""
        for name in _FROM_ONE:
            value = getattr(self, name)
            if isinstance(value, int) and value < 1:
                raise ConfigError(f"{name} must be at least 1, not {value}")
        for name in ("epochs", "stop_step", "pairs_per_epoch", "whiten_images"):
            if (getattr(self, name) or 0) < 0:
                raise ConfigError(f"{name} must be at least 0, not {getattr(self, name)}")
        if (self.size or 1) > MOST_PIXELS:
            raise ConfigError(f"size must be at most {MOST_PIXELS} pixels, not {self.size}")
        if self.dim > _LARGEST_DIM:
            raise ConfigError(f"dim must be at most {_LARGEST_DIM}, not {self.dim}")
        if not isinstance(self.shrinkage, str) and (self.shrinkage or 0) < 0:
            raise ConfigError(f"shrinkage must be at least 0, not {self.shrinkage:g}")
        if not 0 <= self.seed <= _LARGEST_SEED:
            raise ConfigError(f"seed must be from 0 to {_LARGEST_SEED}, not {self.seed}")
        for name, value in vars(self).items():
            if value == math.inf and name != "shrinkage":  # whose infinity is centring
                raise ConfigError(f"{name} must be a finite number")
        for name in TERMS:
            if (getattr(self, name) or 0) < 0:
                raise ConfigError(f"{name} is a weight, at least 0, not {getattr(self, name)}")
        for name, end in _SHARES:
            share = getattr(self, name)
            if share is not None and not 0 <= share <= end:
                raise ConfigError(f"{name} is a share from 0 to {end:g}, not {share:g}")
        if not 0 <= self.ema < 1:
            raise ConfigError(f"ema must be at least 0 and below 1, not {self.ema:g}")
        if not 0 < self.layer_decay <= 1:
            raise ConfigError(f"layer_decay must be above 0, at most 1, not {self.layer_decay:g}")
        if self.layer_decay != 1 and self.backbone_lr == 0:
            raise ConfigError("backbone_lr 0 trains no layer of it: leave out layer_decay")
        for name in ("backbone_lr", "weight_decay", "clip"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be at least 0, not {getattr(self, name):g}")
        for name in ("temperature", "label_temperature", "lr"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name} must be above 0, not {value}")

    @classmethod
    def from_mapping(cls, options: dict[str, Any]) -> DistillSpec:
        """Build from a mapping such as a configuration file holds.

        Raises:
            ConfigError: an unknown option (with the nearest known ones), or a wrong value.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        options = {_RENAMED.get(name, name): value for name, value in options.items()}
        for name in options:
            if name not in known:
                raise ConfigError(f"unknown option {name!r}{nearest(name, known)}")
        return cls(**options)

    def to_mapping(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @property
    def weights(self) -> list[float]:
        """Weights of the teachers, with a mean of 1: equal ones unless numbers are given.

        Raises:
            ConfigError: the weights are no numbers above 0, one per teacher.
        """
        count = len(self.teachers)
        if self.teacher_weights in (None, "auto", "equal"):
            return [1.0] * count
        try:
            numbers = [float(part) for part in str(self.teacher_weights).split(",")]
        except ValueError:
            numbers = []
        if len(numbers) != count or not all(0 < number < math.inf for number in numbers):
            raise ConfigError(
                f"teacher_weights is auto, equal, or {count} numbers above 0 with commas between "
                f"them, one per teacher, not {self.teacher_weights!r}; leave out a teacher that "
                "should have no weight"
            )
        return [number * count / sum(numbers) for number in numbers]

    @property
    def pooling(self) -> Pool:
        """Pooling of the student: what earlier stages know is worth keeping once they are trained.

        A finished student keeps its own.
        """
        if self.pool is not None:
            return self.pool
        uri = parse_uri(self.student)
        is_given = self.recipe == "paper" or uri.is_untrained or uri.scheme == "whiten"
        return "auto" if is_given else "stages"

    @property
    def view_plan(self) -> ViewPlan:
        """Plan of the run's views."""
        return ViewPlan.named(self.augment or "light", self.view_seed)
