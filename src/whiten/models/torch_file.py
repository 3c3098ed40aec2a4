"""Read files that `torch.save` wrote, without running any code in them."""

from __future__ import annotations

import re
import shlex
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from numpy import dtypes
from torch.serialization import safe_globals

from whiten.errors import TeacherError, one_line


class _Ignored:
    """Placeholder for objects of a checkpoint other than tensors; discards their state."""

    def __setstate__(self, state: object) -> None:
        pass


_reconstruct: Any = np.zeros(1).__reduce__()[0]
_scalar: Any = np.float32(1).__reduce__()[0]

# Types in published checkpoints besides tensors and plain values: NumPy numbers and arrays, under
# old and new names, and the PCA of the AP-GeM files, which scikit-learn would unpickle.
_HARMLESS: list[Any] = [
    np.ndarray,
    np.dtype,
    *(getattr(dtypes, name) for name in dtypes.__all__),
    *((_reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *((_Ignored, f"sklearn.decomposition.{pca}.PCA") for pca in ("pca", "_pca")),
]
_FOREIGN = re.compile(r"GLOBAL ([\w.]+)")


def read_torch_file(path: str | Path) -> Any:
    """Read a file of `torch.save`: tensors, plain and NumPy values; never runs pickled code.

    Raises:
        TeacherError: the file is missing, damaged, or holds other objects.
    """
    if not Path(path).is_file():
        raise TeacherError(f"weights file {path} does not exist: check its path")
    try:
        _require_whole(path)
        with safe_globals(_HARMLESS):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpicklers raise almost anything on damaged files
        way = (
            f"; if you trust it, keep its weights with {_keeping(path)}" if _foreign(error) else ""
        )
        raise TeacherError(
            f"cannot read weights from {path} ({_reason(error)}): it must be a safetensors file, "
            f"or a torch file that holds tensors only{way}"
        ) from error
    if _is_empty(loaded):
        raise TeacherError(
            f"{path} holds tensors of the device meta, which have no values: load the weights "
            "into the model before you save them"
        )
    return loaded


def _is_empty(loaded: Any) -> bool:
    """Return whether a file's content has a tensor without values."""
    if isinstance(loaded, dict | list | tuple):
        return any(map(_is_empty, loaded.values() if isinstance(loaded, dict) else loaded))
    return isinstance(loaded, torch.Tensor) and loaded.is_meta


def _require_whole(path: str | Path) -> None:
    """Compare checksums, which torch writes but does not check; its old format has none."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if broken := archive.testzip():
                raise ValueError(f"{broken} does not have the checksum it was saved with")


def _reason(error: Exception) -> str:
    """Return the error without torch's advice to load the file unsafely."""
    if foreign := _foreign(error):
        return f"it asks for {foreign}"
    if isinstance(error, UnpicklingError):
        return "it is no pickle of tensors"
    return one_line(error).partition(". ")[0]


def _foreign(error: Exception) -> str:
    """Return the object that a file asks for besides tensors; "" if it is something else."""
    found = _FOREIGN.search(str(error))
    return found[1] if found else ""


def _keeping(path: str | Path) -> str:
    """Return the command that writes the weights alone, which runs the code in the file."""
    # The nesting stays, so that the weights are found as in the file.
    keep = (
        "keep = lambda x: {k: v if isinstance(v, torch.Tensor) else keep(v) for k, v in "
        "getattr(x, 'state_dict', lambda: x)().items() "
        "if isinstance(v, (torch.Tensor, dict, torch.nn.Module))}"
    )
    source, target = str(path), str(Path(path).with_suffix(".weights.pth"))
    code = (
        f"import torch; {keep}; torch.save(keep(torch.load({source!r}, map_location='cpu', "
        f"weights_only=False)), {target!r})"
    )
    return f"`python -c {shlex.quote(code)}`"
