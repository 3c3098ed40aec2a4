"""The encoders that the report of a run compares: teachers, fusions, and the student's stages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from safetensors import SafetensorError
from safetensors.torch import load_file

from whiten.datasets.collection import Items
from whiten.datasets.finding import find_items
from whiten.embedding.encoder import Encoder, Part
from whiten.embedding.opening import fit_on, load
from whiten.errors import RunError, one_line
from whiten.models.student import as_teacher, backbone_as_teacher, build_student
from whiten.models.teacher import Teacher
from whiten.report.table import Kind
from whiten.runs.apart import Apart
from whiten.runs.folder import RunFolder
from whiten.runs.spec import DistillSpec

# Rows for a student before training: the baseline of a distillation.
START = "student's start"
START_WHITENED = "student's start, whitened"
CLOSED_FORM = "student, closed form"


def run_encoders(
    run: RunFolder, fusions: Mapping[str, Encoder]
) -> Iterator[tuple[Encoder, Kind, str]]:
    """Yield the encoders to compare: the teachers, their fusions, and the initial student."""
    _, spec = run.read_config()
    raw = fusions["raw"]
    for part in raw.parts:
        yield Encoder(part.teacher.name, [part]), "teacher", part.teacher.name
    yield raw, "fusion-raw", "raw fusion"
    if spec.whiten:
        yield fusions["whitened"], "fusion-whitened", "whitened fusion"
    start = start_features(spec)
    yield Encoder(START, [Part(start)]), "student", START
    whitener = fit_on(start, training_images(run), dim=spec.dim, cache=run.cache)
    yield Encoder(START_WHITENED, [Part(start, whitener)]), "student", START_WHITENED
    if spec.epochs != 0 and run.start.exists():
        yield Encoder(CLOSED_FORM, [Part(_closed_form(run, spec))]), "student", CLOSED_FORM
    yield load(run.student), "student", "student"


def start_features(spec: DistillSpec) -> Teacher:
    """Return the features of the student's backbone before training, pooled as it is published."""
    pool = "avg" if spec.pooling == "stages" else spec.pooling
    net, config = build_student(spec.student, dim=spec.dim, pool=pool, size=spec.size)
    return backbone_as_teacher(net, config).on_chosen_device()


def _closed_form(run: RunFolder, spec: DistillSpec) -> Teacher:
    """Return the student as it was before its first step of training.

    Raises:
        RunError: its projection is damaged.
    """
    net, config = build_student(spec.student, dim=spec.dim, pool=spec.pooling, size=spec.size)
    try:
        net.projection.load_state_dict(load_file(run.start))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise RunError(
            f"{run.start} is damaged ({one_line(error)}): delete it, and the report leaves it out"
        ) from error
    return as_teacher(net, config, f"whiten:{run.root}/closed-form").on_chosen_device()


def training_images(run: RunFolder) -> Items:
    """Return a run's own images, without those of held-out sources."""
    images, spec = run.read_config()
    items = find_items(images, None, spec.exclude, spec.include)
    return Apart.read(run).not_in(items) if spec.holdout_source else items
