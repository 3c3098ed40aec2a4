"""Open an encoder by name: a model, the student of a run, or several teachers."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from whiten.datasets.collection import Items
from whiten.datasets.finding import find_items
from whiten.embedding.encoder import Encoder, Part, embed_cached
from whiten.embedding.fitting import fit_whitener
from whiten.errors import ConfigError, TeacherError, WhiteningError
from whiten.models.inputs import require_batch_size
from whiten.models.opening import open_model
from whiten.models.stored_model import Model
from whiten.models.uri import lasting, split_uris
from whiten.runs.folder import RunFolder
from whiten.runs.spec import DistillSpec
from whiten.store.store import embedded_by_all
from whiten.utils.devices import random_state_kept
from whiten.utils.files import temporary_folder
from whiten.whitening.whitener import Whitener

_DIM, _SHRINKAGE = 256, 0.1  # of a whitening that is fitted when a model is opened


@random_state_kept()
def load(
    model: str | os.PathLike[str],
    device: str | None = None,
    batch_size: int | None = None,
    *,
    runtime: str | None = None,
    whitener: str | os.PathLike[str] | None = None,
    whiten_on: str | os.PathLike[str] | Items | None = None,
    whiten_dim: int = _DIM,
    shrinkage: float = _SHRINKAGE,
    cache: str | os.PathLike[str] | None = None,
) -> Encoder:
    """Open an encoder.

    Args:
        model: URI of a teacher; folder of a student, or of the run that made it;
            `fuse:raw:URI,URI,…` or `fuse:whitened:URI,URI,…` for the concatenation of several;
            `fuse:raw:RUN` or `fuse:whitened:RUN` for the teachers of a run, with its whiteners;
            `fuse:compatible:RUN` likewise, but rotated and cut to the dimension of a student that
            was distilled with `compatible` and can query this gallery.
        device: auto, cpu, cuda or mps; by default the fastest.
        batch_size: images per batch; by default chosen by device.
        runtime: auto, torch, onnx or openvino, see `open_model`; by default auto, which on a CPU
            runs students without torch.
        whitener: file written by `Whitener.save`, for the embeddings of a single model.
        whiten_on: images to fit the whitening on, for `fuse:whitened:URI,…`: a folder or table, or
            the images that were found there.
        whiten_dim: number of axes that this whitening keeps.
        shrinkage: shrinkage of this whitening, see `Whitener`.
        cache: folder that keeps embeddings of `whiten_on`; none by default.

    Raises:
        ConfigError, TeacherError: the model, runtime or device is unknown, or cannot be loaded.
        WhiteningError: the whitener cannot be read, or was fitted on another model.
    """
    require_batch_size(batch_size)
    text, open_one = os.fspath(model), partial(open_model, runtime=runtime, device=device)
    if whiten_on is not None and not fits_whitening(text):
        raise ConfigError(
            f"images to whiten on are for fuse:whitened:URI,URI, not for {text}: leave them out"
            if text.startswith("fuse:")
            else f"whitening {text} is written fuse:whitened:{text}"
        )
    if whiten_on is None and (whiten_dim, shrinkage) != (_DIM, _SHRINKAGE):
        raise ConfigError(
            "whiten_dim and shrinkage are of a whitening that is fitted on images: add --whiten-on"
        )
    if text.startswith("fuse:"):
        if whitener is not None:
            raise ConfigError(
                f"a whitener is for a single model, not for {text}: write fuse:whitened:RUN, or "
                "fuse:whitened:URI,URI with images to fit on"
            )
        fit: Fit | None = None
        if whiten_on is not None:
            Whitener(whiten_dim, shrinkage=shrinkage)  # refuses settings before models are opened
            found = whiten_on if isinstance(whiten_on, Items) else find_items(whiten_on)
            fit = partial(fit_on, images=found, dim=whiten_dim, shrinkage=shrinkage, cache=cache)
        encoder = _load_fused(text, open_one, fit)
    else:
        encoder = _load_single(text, open_one, whitener)
    encoder.batch_size = batch_size
    return encoder


Open = Callable[[str], Model]
Fit = Callable[[Model], Whitener]
_WHITENED = "fuse:whitened:"


def _load_single(text: str, open_one: Open, whitener: str | os.PathLike[str] | None) -> Encoder:
    run = RunFolder(Path(text))
    if run.config.is_file():
        text = f"whiten:{run.student}"
    if whitener is None:
        teacher = open_one(text)
        return Encoder(teacher.name, [Part(teacher)], lasting(text))
    fitted = Whitener.load(whitener)  # refused before the model is opened
    teacher = open_one(text)
    _require_fitted_on(teacher, fitted, os.fspath(whitener))
    return Encoder(f"{teacher.name}, whitened", [Part(teacher, fitted)])


def fits_whitening(text: str) -> bool:
    """Return whether a model's whitening is fitted on images when it is opened."""
    kind, rest = text[: len(_WHITENED)], text[len(_WHITENED) :]
    run = RunFolder(Path(rest))
    return kind == _WHITENED and not (run.config.is_file() and run.read_config()[1].whiten)


def _require_fitted_on(teacher: Model, whitener: Whitener, source: str) -> None:
    """Refuse a whitener of another model, before hours of embedding."""
    takes = whitener.projection_.shape[1]
    if takes != teacher.dim:
        raise WhiteningError(
            f"{source} whitens {takes} dimensions and {teacher.uri} has {teacher.dim}: name the "
            "model that it was fitted on"
        )
    # Whitenings from elsewhere, such as released ones, do not record their embeddings.
    known = whitener.metadata.get("fingerprint")
    # A store has its model's fingerprint in place of weights.
    is_it = known in (None, teacher.weights_hash) or teacher.made(
        str(whitener.metadata.get("model")), str(known)
    )
    if not is_it:
        fitted_on = whitener.metadata.get("model", "another model")
        raise WhiteningError(
            f"{source} was fitted on {fitted_on}, and {teacher.uri} has other weights or sees "
            "images otherwise: name the model that it was fitted on"
        )


def load_fusions(
    root: str | os.PathLike[str], teachers: Sequence[Model] | None = None
) -> dict[str, Encoder]:
    """Open the teachers of a run once for all its fusions.

    Args:
        root: folder of the run.
        teachers: the teachers, if already open.

    Returns:
        `raw`, and `whitened` and `compatible` if the run has them: the results of `load` for
        `fuse:raw:RUN` and so on.
    """
    run = RunFolder(Path(root))
    _, spec = run.read_config()
    if teachers is None:
        teachers = _open_teachers(run, spec, open_model)
    fusions = {"raw": _raw(teachers, lasting(f"fuse:raw:{root}"))}
    if spec.whiten:
        fusions["whitened"] = _whitened(run, teachers)
    if spec.compatible and run.rotation.is_file():
        fusions["compatible"] = _compatible(run, open_model, teachers)
    return fusions


def _load_fused(text: str, open_one: Open, fit: Fit | None) -> Encoder:
    _, kind, rest = (*text.split(":", 2), "", "")[:3]
    if kind not in ("raw", "whitened", "compatible") or not rest:
        raise ConfigError(
            f"cannot read {text!r}: write fuse:raw:URI,URI or fuse:whitened:URI,URI or "
            "fuse:whitened:RUN, or fuse:compatible:RUN"
        )
    run = RunFolder(Path(rest))
    if kind == "compatible":
        return _compatible(run, open_one)
    spec = run.read_config()[1] if run.config.is_file() else None
    if spec is None:
        teachers = [open_one(uri) for uri in split_uris(rest)]
    else:
        teachers = _open_teachers(run, spec, open_one)
    if kind == "raw":
        return _raw(teachers, lasting(text))
    if spec is not None and spec.whiten:
        return _whitened(run, teachers)
    if fit is None:
        raise ConfigError(f"{text} must know what to fit its whitening on: add --whiten-on IMAGES")
    parts = [Part(teacher, fit(teacher)) for teacher in teachers]
    return Encoder(f"{_names(teachers)}, whitened", parts)


def _open_teachers(run: RunFolder, spec: DistillSpec, open_one: Open) -> list[Model]:
    """Open the teachers of a run, with the fingerprints that its student and galleries know.

    Raises:
        TeacherError: one cannot be opened, or is another model now.
    """
    teachers = [open_one(uri) for uri in spec.teachers]
    known = run.read_teachers()
    for teacher, recorded in zip(teachers, known, strict=False):
        if recorded == teacher.fingerprint():
            continue
        if not teacher.made(teacher.uri, recorded):
            raise TeacherError(
                f"{teacher.uri} has other weights, or sees images otherwise, than when {run.root} "
                "learned from it: restore it, or distil again"
            )
        teacher.details = ()  # the run is of an earlier version, which did not look at them
    return teachers


def _raw(teachers: Sequence[Model], uri: str) -> Encoder:
    return Encoder(_names(teachers), [Part(teacher) for teacher in teachers], uri)


def _whitened(run: RunFolder, teachers: Sequence[Model]) -> Encoder:
    """Return the teachers of a run with its whitenings."""
    parts = [Part(teacher, _whitener(run, n, teacher)) for n, teacher in enumerate(teachers)]
    uri = lasting(f"fuse:whitened:{run.root}")
    name = f"{_names(teachers)}, whitened"
    return Encoder(name, parts, uri, weights=run.read_weights())


def _whitener(run: RunFolder, number: int, teacher: Model) -> Whitener:
    """Return the run's whitening of a teacher, which may have been replaced since."""
    whitener = Whitener.load(run.whitener(number))
    _require_fitted_on(teacher, whitener, str(run.whitener(number)))
    return whitener


def _compatible(run: RunFolder, open_one: Open, teachers: Sequence[Model] | None = None) -> Encoder:
    """Return the encoder that the run's student was made compatible with."""
    if not run.config.is_file():
        raise ConfigError(
            f"fuse:compatible: takes the folder of a run, and {run.root} is none: name the --out "
            "of `whiten distill --compatible`"
        )
    _, spec = run.read_config()
    if not spec.compatible or not run.rotation.is_file():
        raise ConfigError(
            f"the student of {run.root} cannot search its teachers' gallery: distil with "
            "--compatible, to the end"
        )
    rotation = Whitener.load(run.rotation)
    parts = [Part(teacher) for teacher in teachers or _open_teachers(run, spec, open_one)]
    for number, part in enumerate(parts if spec.whiten else []):
        part.whitener = _whitener(run, number, part.teacher)
    name = f"{_names([part.teacher for part in parts])}, compatible"
    return Encoder(
        name, parts, lasting(f"fuse:compatible:{run.root}"), rotation, run.read_weights()
    )


def _names(teachers: Sequence[Model]) -> str:
    return " + ".join(teacher.name for teacher in teachers)


def fit_on(
    teacher: Model,
    images: str | os.PathLike[str] | Items,
    *,
    dim: int = _DIM,
    shrinkage: float = _SHRINKAGE,
    cache: str | os.PathLike[str] | None = None,
) -> Whitener:
    """Fit a teacher's whitening on a collection of images.

    Args:
        images: a folder or table, or the images that were found there.
        dim, shrinkage: see `Whitener`; dim is lowered to what the images support.
        cache: folder that keeps the embeddings; none by default.
    """
    items = images if isinstance(images, Items) else find_items(images)
    with temporary_folder() as temporary:
        store = embed_cached(teacher, items, Path(cache or temporary))
        usable, _ = embedded_by_all(items, [store])
        return fit_whitener(store, usable.by_id, dim=dim, shrinkage=shrinkage)
