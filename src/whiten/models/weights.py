"""Read weights from files without running code in them, hash them, and load them strictly."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from whiten.errors import TeacherError

if TYPE_CHECKING:
    from torch import Tensor, nn

from whiten.models.teacher import first_line


def hash_state(state: Mapping[str, Tensor]) -> str:
    """Hash a state dict: names, shapes, types and values, sorted by name."""
    import torch

    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tuple(tensor.shape)}|{tensor.dtype}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a `.safetensors`, `.pth`, `.pt` or `.bin` file; runs no pickled code.

    Weights nested under `state_dict`, `model` or `teacher` are unpacked, and a common `module.`
    prefix is removed.

    Raises:
        TeacherError: the file is missing, damaged, or holds more than tensors.
    """
    from torch import Tensor

    from whiten.models.torch_file import read_torch_file

    path = Path(path)
    loaded = _read_safetensors(path) if path.suffix == ".safetensors" else read_torch_file(path)
    for key in ("state_dict", "model", "teacher"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    tensors = (
        {k: v for k, v in loaded.items() if isinstance(v, Tensor)}
        if isinstance(loaded, dict)
        else {}
    )
    if not tensors:
        raise TeacherError(f"{path} holds no state dict: save the model's state_dict()")
    if all(key.startswith("module.") for key in tensors):
        tensors = {key.removeprefix("module."): value for key, value in tensors.items()}
    return tensors


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    if not path.is_file():
        raise TeacherError(f"weights file {path} does not exist: check its path")
    try:
        return load_file(path)
    except Exception as error:  # a damaged header raises almost anything
        raise TeacherError(
            f"cannot read weights from {path} ({first_line(error)}): it must be a safetensors file"
        ) from error


def load_into(
    module: nn.Module, state: Mapping[str, Tensor], source: str, *, ignore: tuple[str, ...] = ()
) -> None:
    """Load weights strictly, except for keys that begin with one of `ignore` (a classifier head).

    Step counters of batch norm may be missing, as in files from before PyTorch 0.4.1: no embedding
    depends on them.

    Raises:
        TeacherError: keys or shapes do not match; the first ones are named.
    """
    own = module.state_dict()
    extra = [k for k in state if k not in own and not k.startswith(ignore)]
    missing = [k for k in own if k not in state and not k.endswith(".num_batches_tracked")]
    wrong = [k for k in own if k in state and own[k].shape != state[k].shape]
    for problem, keys in (("lacks", missing), ("has unknown", extra), ("misshapes", wrong)):
        if keys:
            raise TeacherError(
                f"{source} {problem} {', '.join(keys[:3])}{' …' if len(keys) > 3 else ''}: "
                "these weights belong to another architecture"
            )
    module.load_state_dict({k: state.get(k, own[k]) for k in own})
