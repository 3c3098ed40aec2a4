"""Train on a whole batch with the activations of a few images: gradient caching.

The batch is embedded in parts without gradients, the loss gives the gradient with respect to the
embeddings, and the parts run again with it (Gao et al. 2021, "Scaling Deep Contrastive Learning
Batch Size under Memory Limited Setup"). The gradient is that of the whole batch, up to rounding, if
an image's embedding does not depend on the others of its batch: with moving batch statistics, each
part is normalised by its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from whiten.errors import RunError, WhitenError, one_line
from whiten.utils.memory import is_out_of_memory

_SHARE = 0.5  # of the free memory that activations may take
_PROBED = 2  # images whose activations are counted
_WORKSPACE = 2.0  # gradients and workspaces, relative to the activations that are kept
_FEWEST = 4  # images


class MicroBatches:
    """One batch in parts.

    Args:
        fabric: runs the backward passes.
        model: as `fabric.setup` returns it.
        inputs: (n, …) of this process.
        size: images per part.
    """

    def __init__(self, fabric: Any, model: nn.Module, inputs: Tensor, size: int) -> None:
        self._fabric, self._model = fabric, model
        self._parts = torch.split(inputs, size)
        self._states: list[list[Tensor]] = []

    def embed(self) -> Tensor:
        """Embed all parts, (n, dim), as a leaf that collects the gradient of a loss."""
        found = []
        with torch.no_grad():
            for part in self._parts:
                self._states.append(_random_state(part.device))
                found.append(self._model(part).float())
        return torch.cat(found).requires_grad_()

    def backward(self, loss: Tensor, embeddings: Tensor) -> None:
        """Add the gradient of a loss on the embeddings to that of the model's parameters.

        Processes average their gradients once, after the last part.
        """
        (gradient,) = torch.autograd.grad(loss, embeddings)
        last = len(self._parts) - 1
        with _kept_statistics(self._model):
            pairs = zip(
                self._parts, self._states, torch.split(gradient, len(self._parts[0])), strict=True
            )
            for number, (part, state, wanted) in enumerate(pairs):
                _set_random_state(part.device, state)  # random layers draw what they drew
                is_shared = self._fabric.world_size > 1 and number < last
                waiting = self._fabric.no_backward_sync(self._model) if is_shared else nullcontext()
                with waiting:
                    self._fabric.backward((self._model(part).float() * wanted).sum())


@contextmanager
def _kept_statistics(model: nn.Module) -> Iterator[None]:
    """Leave moving batch statistics alone: the first pass has updated them."""
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum


def _random_state(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    elif device.type == "mps":
        states.append(torch.mps.get_rng_state())
    return states


def _set_random_state(device: torch.device, states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
    elif device.type == "mps":
        torch.mps.set_rng_state(states[1])


# --- memory ---------------------------------------------------------------------------------


@contextmanager
def memory_told() -> Iterator[None]:
    """Say what to do where a step needs more memory than there is."""
    try:
        yield
    except Exception as error:  # torch raises a RuntimeError of each device
        if isinstance(error, WhitenError) or not is_out_of_memory(error):
            raise
        raise RunError(
            f"training needs more memory than there is ({one_line(error)[:200]}): go on with "
            "--resume and a --micro-batch, 32 or fewer images at once, or with another --device"
        ) from error


def fitting_size(net: nn.Module, side: int, views: int, free: int) -> int | None:
    """Return the images per part whose activations fit into memory; None if the batch does.

    Args:
        net: maps (n, 3, side, side) to embeddings.
        views: images of a batch.
        free: bytes of memory that are free.
    """
    most = int(_SHARE * free / max(1, activation_bytes(net, side)))
    if most >= views:
        return None
    return max(_FEWEST, 1 << max(0, most.bit_length() - 1))


def activation_bytes(net: nn.Module, side: int) -> int:
    """Return the bytes per image that training needs: kept activations, and their gradients."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    was_training = net.training
    net.eval()  # batch statistics stay as they are
    device = next(net.parameters()).device
    inputs = torch.zeros(_PROBED, 3, side, side, device=device)
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept):
        out = net(inputs)  # holds what was packed until all is counted
    del out
    net.train(was_training)
    return int(_WORKSPACE * sum(kept.values()) / _PROBED)


def free_memory(device: torch.device) -> int:
    """Return the bytes of memory that are free on a device, within the limit of a container."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = _from_meminfo()
    limit, used = (_number(Path("/sys/fs/cgroup") / name) for name in _CGROUP)
    if limit is not None and used is not None:
        free = min(free, max(0, limit - used))
    return free


_CGROUP = ("memory.max", "memory.current")
_WITHOUT_MEMINFO = 4 << 30  # bytes, on systems that do not tell


def _from_meminfo() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return _WITHOUT_MEMINFO
    found = [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")]
    return found[0] if found else _WITHOUT_MEMINFO


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no such group, or "max"
        return None
