"""Read the whitenings and students that the authors of Whiten-MTD released.

Their PCA-whitening files hold the state of a module (`dim1`, `dim2`, `whit`, `d`, `v`, `n_0`,
`mean`, `dvt`); their students are training checkpoints of a ResNet-18 or -34 with GeM pooling, L2
normalisation and a linear projection, under `module.base_encoder.`. Both are linked from
https://github.com/Maryeon/whiten_mtd, which states no licence for them.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from whiten.errors import ConfigError, TeacherError, WhiteningError, one_line
from whiten.models.card import model_card
from whiten.models.sources.paper.catalogue import PUBLISHED
from whiten.models.sources.paper.checkpoints import entries, require_shapes, some, take_tensors
from whiten.models.student import StudentNet, save_student
from whiten.models.student_folder import StudentConfig
from whiten.models.torch_file import read_torch_file
from whiten.views.rendering import Preprocess
from whiten.whitening.whitener import Whitener

_STUDENT_PREFIX = "module.base_encoder."
_FEATURES = 512  # of both architectures

# Prefixes of the released students' file names, with their teachers according to the README.
_RELEASES = {
    "rg_rag_rs_": ("resnet101_gem", "resnet101_ap_gem", "resnet101_solar"),
    "ro_re_": ("resnet101_dolg", "resnet101_delg"),
    "mc_bt_": ("mocov3", "barlowtwins"),
}
_VIDEO_RELEASE = "mc_bt_"


# --- whitenings -------------------------------------------------------------------------


def read_published_whitening(path: str | os.PathLike[str]) -> Whitener:
    """Read one of the authors' PCA-whitening files; its transform is `dvt @ (x - mean)`.

    They whiten L2-normalised embeddings and raise eigenvalues to at least 1e-5 of the largest,
    which `dvt` already includes. The file does not record the number of samples.

    Raises:
        TeacherError: the file is missing, damaged, or holds more than tensors.
        WhiteningError: the file is no such whitening; names missing, unknown or misshapen keys.
    """
    return _whitening(read_torch_file(os.fspath(path)), os.fspath(path))


def _whitening(state: Any, path: str) -> Whitener:
    if not _is_whitening(state):
        raise WhiteningError(f"{path} has no 'dvt': it is no PCA-whitening of Whiten-MTD")
    try:
        projection = _check_whitening(state, path)
    except TeacherError as error:
        raise WhiteningError(str(error)) from error
    norms = np.linalg.norm(projection, axis=1)
    if float(state["whit"]) != 0.5 or not norms.all():
        raise WhiteningError(
            f"{path} is no PCA-whitening: its axes are not divided by the square roots of their "
            f"eigenvalues (whit {float(state['whit']):g}, 0.5 expected)"
        )
    whitener = Whitener.from_arrays(
        _as_array(state["mean"])[0],
        projection,
        1 / norms**2,
        spectrum_mean=float(_as_array(state["d"]).mean()),
    )
    whitener.metadata["source"] = Path(path).name
    return whitener


def _check_whitening(state: dict[str, Any], path: str) -> npt.NDArray[np.float64]:
    """Return the projection, after checking everything in the file."""
    tensors = take_tensors({"whitening": state}, "whitening", path)
    dims = [tensors.get(key, torch.zeros(0)) for key in ("dim1", "dim2")]
    source, dim = (int(t) if t.numel() == 1 else 0 for t in dims)
    shapes = {
        **dict.fromkeys(("dim1", "dim2", "whit", "n_0"), ()),
        "d": (source,),
        "v": (source, source),
        "mean": (1, source),
        "dvt": (dim, source),
    }
    require_shapes(tensors, shapes, path)
    broken = sorted(key for key, value in tensors.items() if not torch.isfinite(value).all())
    if broken:
        raise WhiteningError(f"{path} holds NaN or infinity in {', '.join(broken)}: get it again")
    return _as_array(tensors["dvt"])


def _as_array(tensor: Tensor) -> npt.NDArray[np.float64]:
    return tensor.double().numpy()


def _is_whitening(loaded: Any) -> bool:
    return isinstance(loaded, dict) and "dvt" in loaded


# --- students ---------------------------------------------------------------------------


def read_published_student(
    path: str | os.PathLike[str], *, p: float | None = None, size: int | None = None
) -> tuple[StudentNet, StudentConfig]:
    """Read one of the authors' students; the keys tell ResNet-18 from -34.

    Tensors of the training module outside `module.base_encoder.` are ignored, as in the authors'
    evaluation.

    Args:
        p: power of the GeM pooling, which the file does not hold. The authors use 3 for landmarks
            and 1, the average, for videos; the default is 1 for files named mc_bt_…, as the video
            students are, and 3 for others.
        size: input side in pixels; by default 512, or 224 with p=1.

    Raises:
        ConfigError: p or size is invalid.
        TeacherError: the file is no such student; names missing, unknown or misshapen keys.
    """
    return _student(read_torch_file(os.fspath(path)), os.fspath(path), p, size)


def _student(
    checkpoint: Any, path: str, p: float | None, size: int | None
) -> tuple[StudentNet, StudentConfig]:
    import timm

    name = Path(path).name
    power = (1.0 if name.startswith(_VIDEO_RELEASE) else 3.0) if p is None else p
    side = (224 if power == 1 else 512) if size is None else size
    if not 0 < power < math.inf or side < 32:
        raise ConfigError(f"p={power:g} must be above 0 and size={side} at least 32")
    tensors = take_tensors(checkpoint, "state_dict", path)
    others = {k: v for k, v in tensors.items() if not k.startswith("module.")}
    encoder = {k: v for k, v in tensors.items() if k.startswith(_STUDENT_PREFIX)}
    if not encoder:
        raise TeacherError(
            f"{path} has no tensors under {_STUDENT_PREFIX}, but {some(list(tensors))}: it is no "
            "student of Whiten-MTD (a teacher's file opens as paper:NAME?weights=FILE)"
        )
    is_deep = f"{_STUDENT_PREFIX}layer1.2.conv1.weight" in encoder
    architecture = "resnet34" if is_deep else "resnet18"
    backbone = timm.create_model(architecture, pretrained=False, num_classes=0)
    projection = encoder.get(f"{_STUDENT_PREFIX}fc.bias")
    dim = len(projection) if projection is not None and projection.ndim == 1 else _FEATURES
    shapes = {key: tuple(value.shape) for key, value in backbone.state_dict().items()}
    shapes |= {"fc.weight": (dim, _FEATURES), "fc.bias": (dim,)}
    expected = {f"{_STUDENT_PREFIX}{key}": shape for key, shape in shapes.items()}
    require_shapes({**encoder, **others}, expected, path)
    config = StudentConfig(
        architecture=architecture,
        pool="avg" if power == 1 else "gem-fixed",
        dim=dim,
        # The authors crop videos for evaluation; landmarks are used whole.
        preprocess=Preprocess(
            size=(side, side),
            interpolation="bilinear",
            crop_fraction=224 / 256 if power == 1 else 1.0,
        ),
        backbone=f"torchvision:{architecture}?pretrained=IMAGENET1K_V1",
        teachers=_teachers(name),
        training=_history(checkpoint, name, power),
    )
    net = StudentNet(backbone, config.pool, dim, config.preprocess)
    state = {f"backbone.{key}": encoder[f"{_STUDENT_PREFIX}{key}"] for key in backbone.state_dict()}
    state |= {f"projection.{k}": encoder[f"{_STUDENT_PREFIX}fc.{k}"] for k in ("weight", "bias")}
    if net.is_gem:
        state["power"] = torch.tensor(power)
    net.load_state_dict(state)
    return net.eval(), config


def _teachers(name: str) -> list[dict[str, str]]:
    """Return the teachers of a released student, as far as its file name tells."""
    found = [teachers for start, teachers in _RELEASES.items() if name.startswith(start)]
    return [
        {"uri": f"paper:{teacher}", "fingerprint": "unknown", "licence": PUBLISHED[teacher].licence}
        for teachers in found
        for teacher in teachers
    ]


def _history(checkpoint: dict[str, Any], name: str, power: float) -> dict[str, Any]:
    history: dict[str, Any] = {
        "origin": "released by the authors of Whiten-MTD (Ma et al., AAAI 2024)",
        "file": name,
        "gem_power": power,
    }
    if isinstance(epochs := checkpoint.get("epoch"), int):
        history["epochs"] = epochs
    return history


# --- conversion -------------------------------------------------------------------------


@dataclass(frozen=True)
class Converted:
    """Result of a conversion.

    Attributes:
        kind: whitening or student.
        out: file of the whitener, or folder of the student.
        dim: dimension of the whitened or the student's embeddings.
        source: input dimension of the whitening, or architecture of the student.
    """

    kind: Literal["whitening", "student"]
    out: str
    dim: int
    source: int | str


def convert(
    file: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    p: float | None = None,
    size: int | None = None,
) -> Converted:
    """Convert a released file into a `Whitener` file, or into a folder that `whiten.load` opens.

    Args:
        file: a whitening or a student of the authors; its keys tell which.
        out: the file or folder to write; it must not exist.
        p, size: for a student, see `read_published_student`.

    Raises:
        ConfigError: `out` exists, or p or size are given for a whitening.
        TeacherError, WhiteningError: the file is neither, or `out` cannot be written.
    """
    source, target = os.fspath(file), Path(out)
    if target.exists():
        raise ConfigError(f"{target} exists: name another --out, or delete it first")
    loaded = read_torch_file(source)
    if not _is_whitening(loaded):
        if not (isinstance(loaded, dict) and "state_dict" in loaded):
            raise TeacherError(
                f"{source} is neither a PCA-whitening nor a student of Whiten-MTD, it has "
                f"{entries(loaded)}: name one of these (a teacher's file opens as "
                "paper:NAME?weights=FILE)"
            )
        net, config = _student(loaded, source, p, size)
        save_student(net, config, target, model_card(config))
        return Converted("student", str(target), config.dim, config.architecture)
    if p is not None or size is not None:
        raise ConfigError(f"{source} is a whitening: p and size are for students, leave them out")
    whitener = _whitening(loaded, source)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        whitener.save(target)
    except OSError as error:
        raise WhiteningError(f"cannot write {target} ({one_line(error)}): name another") from error
    dim, source_dim = whitener.projection_.shape
    return Converted("whitening", str(target), dim, source_dim)
