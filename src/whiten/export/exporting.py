"""Export a student: choose variants, read images, write, compare, keep or refuse."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from whiten.datasets.finding import find_items
from whiten.datasets.patterns import Patterns
from whiten.embedding.fitting import fused_fingerprint
from whiten.errors import ConfigError, TeacherError
from whiten.export.building import Builder, Wanted, choose
from whiten.export.card import export_card
from whiten.export.images import Sample, draw_images, sample_images
from whiten.export.parity import Truth, compare, find_truth, reason_to_refuse
from whiten.export.speed import measure_speeds
from whiten.export.table import TORCH, lines, remarks_on, title
from whiten.media.reading import Skipped
from whiten.models.exported import MANIFEST, Manifest, manifest_text, open_variant
from whiten.models.runtimes import threads
from whiten.models.student import as_teacher, load_student
from whiten.models.teacher import Teacher
from whiten.runs.folder import RunFolder
from whiten.utils.arrays import Vectors
from whiten.utils.devices import cpu_name, random_state_kept
from whiten.utils.files import replacing
from whiten.utils.names import several
from whiten.utils.progress import progress
from whiten.utils.threads import require_workers

INT8_FLOOR, INT8_LOSS = 0.9, 0.02
_BATCH = 16


@dataclass(frozen=True)
class Exports:
    """The result of an export.

    Attributes:
        folder: folder of the export.
        manifest: contents of `export.json`: the variants, their parity and speed.
        skipped: images that could not be read.
        left_out: remarks on requested variants that were not written.
    """

    folder: Path
    manifest: Manifest
    skipped: list[Skipped]
    left_out: list[str]

    def to_json(self) -> dict[str, Any]:
        skipped = [asdict(skip) for skip in self.skipped]
        return {
            "folder": str(self.folder),
            **asdict(self.manifest),
            "left_out": self.left_out,
            "skipped": skipped,
        }

    def lines(self) -> list[str]:
        """Return the lines of the table and the remarks, for display."""
        return lines(self.manifest)


@random_state_kept()
def export(
    student: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    formats: Sequence[str] | str = ("onnx",),
    precisions: Sequence[str] | str = ("fp32",),
    images: str | os.PathLike[str] | None = None,
    fold_normalisation: bool = False,
    int8_floor: float = INT8_FLOOR,
    int8_loss: float = INT8_LOSS,
    exclude: Patterns = (),
    include: Patterns = (),
    workers: int | None = None,
    show_progress: bool = False,
) -> Exports:
    """Export a student in all requested formats and precisions, or not at all.

    Args:
        student: folder of the student, or of the run that made it.
        out: folder to write; replaces an earlier export.
        formats: onnx, openvino, torchscript.
        precisions: fp32, fp16, bf16 (not with ONNX), int8 (not with TorchScript).
        images: a folder or table of images like those in use. Half of them calibrate int8; the
            other half is held out to compare embeddings. Without them, synthetic images are
            compared, and int8 is not available.
        fold_normalisation: make the graphs take (n, h, w, 3) uint8 RGB and normalise it.
        int8_floor: minimum mean-centred cosine to torch, on average, for int8.
        int8_loss: maximum loss of retrieval mAP for int8, if the images have groups.
        exclude, include: patterns that choose among the images, see `whiten.datasets.patterns`.
        workers: number of decoding threads; by default one per core.

    Raises:
        ConfigError: an option is invalid, int8 is requested without images, or its limits without
            int8.
        TeacherError: the student cannot be loaded or exported, or an export is not exact enough.
        MissingExtraError: a library is not installed.
    """
    wanted, left_out = choose(several(formats), several(precisions))
    if math.isnan(int8_floor) or math.isnan(int8_loss):  # nothing would be refused
        raise ConfigError("int8_floor and int8_loss must be numbers, not nan")
    require_workers(workers)
    if images is None and (exclude or include):
        raise ConfigError("--exclude and --include choose among images: add --images")
    has_int8 = any(precision == "int8" for _, precision in wanted)
    if not has_int8 and (int8_floor, int8_loss) != (INT8_FLOOR, INT8_LOSS):
        raise ConfigError("int8_floor and int8_loss are limits of int8: add int8 to the precisions")
    if images is None and has_int8:
        raise ConfigError("int8 is calibrated on images: add --images with some like those in use")
    target, source = Path(out), student_folder(student)
    with (
        replacing(target, MANIFEST, "an export") as folder,
        progress("export", enabled=show_progress) as update,
    ):
        net, config = load_student(source)
        teacher = as_teacher(net, config, f"whiten:{source}")
        sample = _sample(images, teacher, wanted, workers, exclude, include)
        reference = _embed(teacher, sample)
        if not np.isfinite(reference).all():
            raise TeacherError(f"{source} computes NaN or infinity: train it again")
        truth = find_truth(sample.items, reference)
        manifest = Manifest(
            name=teacher.name,
            dim=config.dim,
            preprocess=config.preprocess,
            input="pixels" if fold_normalisation else "normalised",
            licence=teacher.licence,
            params=teacher.params or 0,
            source_fingerprint=teacher.fingerprint(),
            variants=[],
            gallery=fused_fingerprint([teacher.fingerprint()], [None]),
            compatible_with=config.compatible_with,
        )
        models = {TORCH: teacher}
        with Builder(source, manifest, sample.calibration) as builder:
            for number, (name, precision) in enumerate(wanted):
                update(number, len(wanted))
                variant = builder.write(folder, name, precision)
                model = models[title(variant)] = open_variant(folder, manifest, variant)
                vectors = _embed(model, sample)
                if broken := int((~np.isfinite(vectors).all(axis=1)).sum()):
                    raise TeacherError(
                        f"{title(variant)} is refused: it computes NaN or infinity for {broken} of "
                        f"{len(vectors)} images: export another precision"
                    )
                parity = compare(reference, vectors, truth)
                reason = reason_to_refuse(
                    precision, parity, by=truth.by, int8_floor=int8_floor, int8_loss=int8_loss
                )
                if reason:
                    raise TeacherError(f"{title(variant)} is refused: {reason}")
                manifest.variants.append(replace(variant, parity=asdict(parity)))
            # A variant slower than fp32 gets a remark, even if fp32 is not kept.
            for name in {name for name, _ in wanted if (name, "fp32") not in wanted}:
                plain = builder.write(builder.scratch, name, "fp32")
                models[title(plain)] = open_variant(builder.scratch, manifest, plain)
            speeds = measure_speeds(models)
        update(len(wanted), len(wanted))
        manifest = _timed(manifest, sample, truth, speeds)
        (folder / MANIFEST).write_text(manifest_text(manifest), "utf-8")
        card = export_card(manifest, _student_card(source))
        (folder / "README.md").write_text(card, "utf-8", errors="backslashreplace")
    return Exports(target, manifest, sample.skipped, left_out)


def student_folder(student: str | os.PathLike[str]) -> Path:
    """Return the folder of a student, given that folder, its run's folder or a `whiten:` URI."""
    folder = Path(os.fspath(student).removeprefix("whiten:"))
    run = RunFolder(folder)
    return run.student if run.config.is_file() else folder


def _sample(
    images: str | os.PathLike[str] | None,
    teacher: Teacher,
    wanted: list[Wanted],
    workers: int | None,
    exclude: Patterns,
    include: Patterns,
) -> Sample:
    if images is None:
        return draw_images(teacher.preprocess)
    sample = sample_images(find_items(images, None, exclude, include), teacher.preprocess, workers)
    if not len(sample.calibration) and any(precision == "int8" for _, precision in wanted):
        raise ConfigError(f"int8 is calibrated on images, and {images} has too few: add more")
    return sample


def _embed(model: Teacher, sample: Sample) -> Vectors:
    """Embed the held-out images in batches; the last one is usually smaller.

    Embeddings may be not finite.
    """
    batches = range(0, len(sample.pixels), _BATCH)
    return np.concatenate([model.embed_usable(sample.pixels[i : i + _BATCH])[0] for i in batches])


def _timed(
    manifest: Manifest, sample: Sample, truth: Truth, speeds: Mapping[str, Mapping[str, float]]
) -> Manifest:
    """Add the speeds, remarks on them, and the measuring conditions."""
    return replace(
        manifest,
        variants=[
            replace(v, speed=dict(speeds[title(v)]), remarks=remarks_on(v, speeds))
            for v in manifest.variants
        ],
        measured={
            "torch": {"speed": dict(speeds[TORCH]), "map": truth.map},
            "map_by": truth.by,
            "held_out": 0 if sample.is_drawn else len(sample.items),
            "drawn": len(sample.items) if sample.is_drawn else 0,
            "calibration": len(sample.calibration),
            "threads": threads(),
            "cpu": cpu_name(),
        },
    )


def _student_card(folder: Path) -> str:
    try:
        return (folder / "README.md").read_text("utf-8", errors="replace")
    except OSError:
        return "It had none.\n"
