"""The encoders that the report of a run compares: teachers, fusions, and the student's stages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from safetensors import SafetensorError
from safetensors.torch import load_file

from whiten.datasets.collection import Items
from whiten.datasets.finding import find_items
from whiten.embedding.encoder import Encoder, Part
from whiten.embedding.opening import fit_on, load
from whiten.errors import RunError, WhitenError, one_line
from whiten.models.student import StudentNet, as_teacher, backbone_as_teacher, build_student
from whiten.models.student_folder import StudentConfig, read_student
from whiten.models.teacher import Teacher
from whiten.models.uri import Pool
from whiten.models.weights import hash_state
from whiten.report.table import Kind
from whiten.runs.apart import Apart
from whiten.runs.folder import RunFolder
from whiten.runs.spec import DistillSpec
from whiten.utils.names import distinct
from whiten.utils.progress import announce

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
    names = distinct([part.teacher.name for part in raw.parts])
    for name, part in zip(names, raw.parts, strict=True):
        yield Encoder(name, [part]), "teacher", name
    yield raw, "fusion-raw", "raw fusion"
    if spec.whiten:
        yield fusions["whitened"], "fusion-whitened", "whitened fusion"
    start = start_features(run, spec)
    yield Encoder(START, [Part(start)]), "student", START
    try:
        trained_on = training_images(run)
    except RunError as error:
        announce(f"{START_WHITENED} is left out: {one_line(error)}")
    else:
        whitener = fit_on(start, trained_on, dim=spec.dim, cache=run.cache)
        yield Encoder(START_WHITENED, [Part(start, whitener)]), "student", START_WHITENED
    if spec.epochs != 0 and run.start.exists():
        yield Encoder(CLOSED_FORM, [Part(_closed_form(run, spec))]), "student", CLOSED_FORM
    yield load(run.student), "student", "student"


def start_features(run: RunFolder, spec: DistillSpec) -> Teacher:
    """Return the features of the student's backbone before training, pooled as it is published.

    Raises:
        RunError: the backbone has other weights than when the run was begun.
    """
    net, config = _begun(run, spec, "avg" if spec.pooling == "stages" else spec.pooling)
    return backbone_as_teacher(net, config).on_chosen_device()


def _begun(run: RunFolder, spec: DistillSpec, pool: Pool) -> tuple[StudentNet, StudentConfig]:
    net, config = build_student(spec.student, dim=spec.dim, pool=pool, size=spec.size)
    measured = read_student(run.student).config.training.get("measured", {})
    recorded = measured.get("backbone")  # none of earlier versions
    if recorded not in (None, hash_state(net.backbone.state_dict())):
        raise RunError(
            f"{spec.student} has other weights than when {run.root} began with it: restore it, or "
            "distil again"
        )
    return net, config


def _closed_form(run: RunFolder, spec: DistillSpec) -> Teacher:
    """Return the student as it was before its first step of training.

    Raises:
        RunError: its projection is damaged, or the backbone has other weights by now.
    """
    net, config = _begun(run, spec, spec.pooling)
    try:
        net.projection.load_state_dict(load_file(run.start))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise RunError(
            f"{run.start} is damaged ({one_line(error)}): delete it, and the report leaves it out"
        ) from error
    return as_teacher(net, config, f"whiten:{run.root}/closed-form").on_chosen_device()


def training_images(run: RunFolder) -> Items:
    """Return a run's own images, without those of held-out sources.

    Raises:
        RunError: they are not where they were.
    """
    images, spec = run.read_config()
    try:
        items = find_items(images, None, spec.exclude, spec.include)
    except WhitenError as error:
        raise RunError(
            f"the images that {run.root} was trained on cannot be found ({one_line(error)}): put "
            "them back, or work in the folder where the run was begun"
        ) from error
    return Apart.read(run).not_in(items) if spec.holdout_source else items
