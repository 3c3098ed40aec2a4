"""Read weights from files without running code in them, hash them, and load them strictly."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whiten.errors import DAMAGED, ConfigError, TeacherError, one_line
from whiten.models.state_dicts import choose_state
from whiten.models.teacher import first_line

if TYPE_CHECKING:
    from torch import Tensor, nn

    from whiten.models.uri import TeacherURI


def hash_state(state: Mapping[str, Tensor]) -> str:
    """Hash a state dict: names, shapes, types and values, sorted by name."""
    import torch

    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tuple(tensor.shape)}|{tensor.dtype}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_state_dict(
    path: str | Path, wanted: Mapping[str, Tensor] | None = None, choice: str = ""
) -> dict[str, Tensor]:
    """Read the weights of a network from a file of any trainer; runs no pickled code.

    Args:
        path: a `.safetensors`, `.pth`, `.pt` or `.bin` file, or the `.index.json` of its shards.
        wanted: the network's own state dict, see `choose_state`.
        choice: which weights to take where several fit.

    Raises:
        TeacherError: the file is missing, damaged, holds more than tensors, or none that could be
            the network's, or several.
    """
    return choose_state(_read(Path(path)), wanted or {}, str(path), choice)


def refuse_lone_state(uri: TeacherURI) -> None:
    """Refuse `state` without `weights`: it would be ignored.

    Raises:
        ConfigError: see above.
    """
    options = dict(uri.options)
    if options.get("state") and not options.get("weights"):
        raise ConfigError(
            f"state={options['state']!r} of {uri} chooses among the weights in a file: add "
            "&weights=FILE, or leave it out"
        )


def _read(path: Path) -> Any:
    from whiten.models.torch_file import read_torch_file

    if path.name.endswith(".index.json"):
        return _read_shards(path)
    return _read_safetensors(path) if path.suffix == ".safetensors" else read_torch_file(path)


def _read_shards(path: Path) -> dict[str, Any]:
    """Read all shards that an index names; each holds some of the tensors."""
    if not path.is_file():
        raise TeacherError(f"weights file {path} does not exist: check its path")
    try:
        names = sorted(set(json.loads(path.read_text("utf-8"))["weight_map"].values()))
        shards = [path.parent / Path(name).name for name in names]
    except DAMAGED as error:
        raise TeacherError(
            f"{path} is no index of shards ({one_line(error)}): get it again"
        ) from error
    return {key: tensor for shard in shards for key, tensor in _read(shard).items()}


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


# Of SwAV; of Barlow Twins, VICReg and SimCLR; of BYOL and SimSiam.
_TRAINING_HEADS = ("projection_head.", "prototypes.", "projector.", "predictor.")


def load_into(
    module: nn.Module, state: Mapping[str, Tensor], source: str, *, ignore: tuple[str, ...] = ()
) -> None:
    """Load weights strictly, except for keys that begin with one of `ignore` (a classifier head).

    The heads of self-supervised training are left out too.
    Step counters of batch norm may be missing, as in files from before PyTorch 0.4.1: no embedding
    depends on them.

    Raises:
        TeacherError: keys or shapes do not match; the first ones are named.
    """
    own = module.state_dict()
    extra = [k for k in state if k not in own and not k.startswith((*ignore, *_TRAINING_HEADS))]
    missing = [k for k in own if k not in state and not k.endswith(".num_batches_tracked")]
    wrong = [k for k in own if k in state and own[k].shape != state[k].shape]
    for problem, keys in (("lacks", missing), ("has unknown", extra), ("misshapes", wrong)):
        if keys:
            raise TeacherError(
                f"{source} {problem} {', '.join(keys[:3])}{' …' if len(keys) > 3 else ''}: "
                "these weights belong to another architecture"
            )
    module.load_state_dict({k: state.get(k, own[k]) for k in own})
