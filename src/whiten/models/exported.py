"""Open an exported student: a folder that embeds images without torch.

`Exported` needs only NumPy, Pillow and the runtime of its format (ONNX Runtime or OpenVINO). The
command line opens the same folders as `onnx:FOLDER` and `openvino:FOLDER`, with the same
embeddings.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt

from whiten.errors import (
    DAMAGED,
    ConfigError,
    TeacherError,
    WhitenError,
    nearest,
    one_line,
    refuse_later,
)
from whiten.models.inputs import (
    Embeddable,
    Embedded,
    Errors,
    Failed,
    embed_inputs,
    listed,
    require_errors,
)
from whiten.models.runtimes import RUNTIMES, Arrays, Run
from whiten.models.teacher import ArrayTeacher, Teacher
from whiten.models.uri import TeacherURI
from whiten.utils.hashing import fingerprint, hash_file
from whiten.utils.validation import check_types
from whiten.views.rendering import Preprocess

FORMAT = 1
MANIFEST = "export.json"
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "torchscript": ".pt"}  # suffix of the file to open
PRECISIONS = ("fp32", "bf16", "fp16", "int8")  # most exact first

Input = Literal["normalised", "pixels"]


@dataclass(frozen=True)
class Variant:
    """The student in one format and precision.

    Attributes:
        format: onnx, openvino or torchscript.
        precision: fp32, fp16, bf16 or int8.
        files: file names, with a hash of each file's content.
        bytes: total size.
        parity: agreement of its embeddings with torch's.
        speed: images per second on the exporting machine, by batch size, and the speed-up.
        remarks: notes for the user.
    """

    format: str
    precision: str
    files: dict[str, str]
    bytes: int
    parity: dict[str, Any] = field(default_factory=dict)
    speed: dict[str, Any] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Manifest:
    """Contents of `export.json`.

    Attributes:
        name: name of the student.
        dim: embedding dimension.
        preprocess: preprocessing of the input.
        input: input of the graphs: `normalised`, (n, 3, h, w) float32, or `pixels`, (n, h, w, 3)
            uint8 RGB, with normalisation folded into the graph.
        licence: licence of the student.
        params: number of parameters.
        source_fingerprint: fingerprint of the student in torch, as recorded in stores of its
            embeddings.
        variants: the exported variants.
        gallery: fingerprint of the encoder of the student in torch; fp32 can search what that has
            embedded, being numerically equivalent.
        compatible_with: fingerprint of the gallery encoder that the student was distilled to query.
        measured: the images and the machine of the measurements, and torch's own metrics.
    """

    name: str
    dim: int
    preprocess: Preprocess
    input: Input
    licence: str
    params: int
    source_fingerprint: str
    variants: list[Variant]
    gallery: str = ""
    compatible_with: str | None = None
    measured: dict[str, Any] = field(default_factory=dict)


class Exported:
    """An exported student, open for embedding.

    Args:
        folder: folder that `whiten export` wrote.
        format: onnx, openvino or torchscript; by default the first one in the folder.
        precision: fp32, bf16, fp16 or int8; by default the most exact one in the folder.

    Attributes:
        manifest: contents of `export.json`.
        variant: the opened variant.
        dim: embedding dimension.
        teacher: the variant as a model for the rest of the library.

    Raises:
        ConfigError: there is no such format or precision.
        TeacherError: the folder is damaged, foreign, of a later format, or lacks the variant.
        MissingExtraError: the format's runtime is not installed.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        format: str | None = None,  # noqa: A002 - the field's name
        precision: str | None = None,
    ) -> None:
        root = Path(folder)
        self._opened = (os.path.abspath(root), format, precision)  # noqa: PTH100 - links stay
        self.manifest = read_manifest(root)
        self.variant = choose_variant(self.manifest, root, format, precision)
        self.dim = self.manifest.dim
        self.teacher = open_variant(root, self.manifest, self.variant)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as its folder: sessions of runtimes cannot be, and the files are checked again."""
        return _open_again, (*self._opened, self.fingerprint())

    def fingerprint(self) -> str:
        """Fingerprint; changes when the exported file or the preprocessing changes."""
        return self.teacher.fingerprint()

    @overload
    def embed(
        self, images: Iterable[Embeddable] | Embeddable, *, errors: Literal["raise"] = "raise"
    ) -> npt.NDArray[np.float32]: ...

    @overload
    def embed(
        self, images: Iterable[Embeddable] | Embeddable, *, errors: Literal["skip"]
    ) -> Embedded: ...

    def embed(
        self, images: Iterable[Embeddable] | Embeddable, *, errors: Errors = "raise"
    ) -> npt.NDArray[np.float32] | Embedded:
        """Embed images: (n, dim) float32, L2-normalised.

        Args:
            images: one or several, in any form of `Embeddable`.
            errors: `raise` at the first image that cannot be read; or `skip` such images and
                return an `Embedded`, which holds the others' embeddings and says which failed.

        Raises:
            ImageError: an image cannot be read; the message names it.
        """
        require_errors(errors)
        inputs = listed(images)
        failed: Failed | None = {} if errors == "skip" else None
        vectors = embed_inputs(self.teacher, inputs, failed=failed)
        return vectors if failed is None else Embedded.of(vectors, failed)


def _open_again(folder: str, wanted: str | None, precision: str | None, made: str) -> Exported:
    exported = Exported(folder, format=wanted, precision=precision)
    if exported.fingerprint() != made:
        raise TeacherError(f"{folder} was exported again meanwhile: open it again")
    return exported


# --- the folder -------------------------------------------------------------------------


def read_manifest(root: Path) -> Manifest:
    """Read and check `export.json`.

    Raises:
        TeacherError: the file is missing, damaged, or of a later format.
    """
    try:
        facts = json.loads((root / MANIFEST).read_text("utf-8"))
        refuse_later(root, "export", facts["format"], FORMAT, error=TeacherError)
        if facts["format"] != FORMAT:
            raise ValueError(f"its format is {facts['format']!r}")
        if facts.pop("checksum") != fingerprint(facts):
            raise ValueError("its content does not have the checksum it was saved with")
        del facts["format"]
        preprocess = Preprocess.from_mapping(facts.pop("preprocess"))
        variants = [Variant(**variant) for variant in facts.pop("variants")]
        manifest = Manifest(preprocess=preprocess, variants=variants, **facts)
        for part in (manifest.preprocess, *variants, manifest):
            check_types(part)
        if not variants:
            raise ValueError("it holds no variant")
        for variant in variants:
            if variant.format not in RUNTIMES or variant.precision not in PRECISIONS:
                raise ValueError(f"it has a variant {variant.format!r} {variant.precision!r}")
            if [Path(name).suffix for name in variant.files].count(SUFFIXES[variant.format]) != 1:
                raise ValueError(f"its variant {variant.format} {variant.precision} has no file")
            if any(Path(name).name != name for name in variant.files):
                raise ValueError("it names files outside of the folder")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise TeacherError(
            f"{root} is no exported student, it lacks {MANIFEST}: write one with `whiten export`"
        ) from error
    except (*DAMAGED, ConfigError) as error:
        raise TeacherError(f"{root} is damaged ({one_line(error)}): export it again") from error
    return manifest


def manifest_text(manifest: Manifest) -> str:
    """Return the text of `export.json`, see `read_manifest`."""
    facts = json.loads(json.dumps({"format": FORMAT, **dataclasses.asdict(manifest)}))
    return json.dumps(facts | {"checksum": fingerprint(facts)}, indent=2, sort_keys=True) + "\n"


def file_metadata(manifest: Manifest, precision: str) -> dict[str, str]:
    """Return the metadata that a file records for when it is moved alone; all as text."""
    return {
        "format": str(FORMAT),
        "name": manifest.name,
        "dim": str(manifest.dim),
        "precision": precision,
        "input": manifest.input,
        "preprocess": json.dumps(dataclasses.asdict(manifest.preprocess)),
        "licence": manifest.licence,
        "source_fingerprint": manifest.source_fingerprint,
    }


def choose_variant(
    manifest: Manifest, root: Path, wanted_format: str | None, precision: str | None
) -> Variant:
    """Choose the requested variant; by default the most exact one of the first format.

    Raises:
        ConfigError: there is no such format or precision.
        TeacherError: the folder lacks it; the message lists the available ones.
    """
    for name, value, known in (
        ("format", wanted_format, tuple(RUNTIMES)),
        ("precision", precision, PRECISIONS),
    ):
        if value is not None and value not in known:
            hint = nearest(value, known)
            raise ConfigError(f"{name} must be one of {', '.join(known)}, not {value!r}{hint}")
    found = [
        variant
        for variant in sorted(manifest.variants, key=lambda v: PRECISIONS.index(v.precision))
        if wanted_format in (None, variant.format) and precision in (None, variant.precision)
    ]
    if not found:
        there = ", ".join(f"{v.format} {v.precision}" for v in manifest.variants)
        wanted = " ".join(filter(None, (wanted_format, precision)))
        raise TeacherError(f"{root} holds no {wanted}, it holds {there}: export it too")
    return found[0]


def open_variant(root: Path, manifest: Manifest, variant: Variant, uri: str = "") -> Teacher:
    """Open a variant as a model, after checking its files.

    Raises:
        TeacherError: a file is missing or damaged, or the runtime refuses it.
    """
    for name, expected in variant.files.items():
        if not (root / name).is_file():
            raise TeacherError(f"{root} lacks {name}: export it again")
        if hash_file(root / name) != expected:
            raise TeacherError(
                f"{root / name} is damaged, its content does not have the checksum it was saved "
                "with: export it again"
            )
    file = root / next(n for n in variant.files if n.endswith(SUFFIXES[variant.format]))
    try:
        run = RUNTIMES[variant.format](file, variant.precision)
    except WhitenError:
        raise
    except Exception as error:  # runtimes raise anything
        raise TeacherError(
            f"{file} cannot be opened ({one_line(error)}): upgrade its runtime, or export it again"
        ) from error
    return ArrayTeacher(
        uri=uri or f"{variant.format}:{root}?precision={variant.precision}",
        name=f"{manifest.name} {variant.format} {variant.precision}",
        dim=manifest.dim,
        preprocess=manifest.preprocess,
        weights_hash=fingerprint(variant.files),
        forward=partial(_run, run, str(file)),
        licence=manifest.licence,
        params=manifest.params,
        takes_pixels=manifest.input == "pixels",
        runtime=variant.format,
        compatible_with=_galleries(manifest, variant),
    )


def _galleries(manifest: Manifest, variant: Variant) -> tuple[str, ...]:
    own = manifest.gallery if variant.precision == "fp32" else None
    return tuple(gallery for gallery in (own, manifest.compatible_with) if gallery)


def _run(run: Run, name: str, inputs: Arrays) -> Arrays:
    try:
        return run(inputs)
    except Exception as error:
        raise TeacherError(
            f"{name} cannot embed images of {inputs.shape[1:]} ({one_line(error)}): export it again"
        ) from error


# --- as a teacher -----------------------------------------------------------------------


def open_uri(uri: TeacherURI) -> Teacher:
    """Open `onnx:`, `openvino:` or `torchscript:FOLDER`, with `?precision=`; or `onnx:FILE`.

    Raises:
        TeacherError: see `Exported`.
    """
    root = Path(uri.target)
    if uri.scheme == "onnx" and not root.is_dir():
        from whiten.models.sources.onnx_file import open_uri as open_file

        return open_file(uri)
    precision = uri.take(precision=(str, ""))["precision"] or None
    manifest = read_manifest(root)
    variant = choose_variant(manifest, root, uri.scheme, precision)
    return open_variant(root, manifest, variant, str(uri))
