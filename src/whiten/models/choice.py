"""The choice of a runtime and a device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from whiten.errors import ConfigError, MissingExtraError, nearest
from whiten.utils.devices import best_device, may_have_gpu, require_device

if TYPE_CHECKING:
    import torch

CHOICES = ("auto", "torch", "onnx", "openvino")
_LIBRARIES = {"onnx": "onnxruntime", "openvino": "openvino"}


@dataclass(frozen=True)
class Choice:
    """Runtime and device to compute with.

    Attributes:
        runtime: one of `CHOICES`.
        device: auto, cpu, cuda, cuda:1 or mps.
    """

    runtime: str = "auto"
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.runtime not in CHOICES:
            hint = nearest(self.runtime, CHOICES)
            raise ConfigError(
                f"runtime must be one of {', '.join(CHOICES)}, not {self.runtime!r}{hint}"
            )

    @property
    def is_auto(self) -> bool:
        return self.runtime == "auto"

    @property
    def resolved(self) -> str:
        """The runtime: `auto` is torch on a GPU, and ONNX Runtime on a CPU."""
        if not self.is_auto:
            return self.runtime
        if self.device != "auto":
            return "onnx" if self.device == "cpu" else "torch"
        try:
            return "torch" if may_have_gpu() and best_device().type != "cpu" else "onnx"
        except ImportError:  # exported students run where there is no torch
            return "onnx"

    def check(self) -> None:
        """Refuse what is not there, and a device that the runtime does not compute on.

        Raises:
            ConfigError: see above.
            MissingExtraError: the runtime is not installed.
        """
        library = _LIBRARIES.get(self.runtime)
        if library is not None and find_spec(library) is None:
            raise MissingExtraError(f"runtime {self.runtime}", self.runtime)
        require_device(self.device)
        kind = self.device.partition(":")[0]
        if (self.runtime == "openvino" and kind not in ("auto", "cpu")) or (
            self.runtime == "onnx" and kind == "mps"
        ):
            raise ConfigError(
                f"{self.runtime} does not compute on {self.device}: leave out one of --runtime and "
                "--device"
            )

    @property
    def torch_device(self) -> torch.device:
        """Device of a model in torch: `auto` is the fastest."""
        import torch

        return best_device() if self.device == "auto" else torch.device(self.device)

    @property
    def graph_device(self) -> str:
        """Device of a graph: a GPU keeps its number."""
        return self.device if self.device.startswith("cuda") else "cpu"


_chosen = Choice()


def chosen() -> Choice:
    """Return the choice of the command line; `auto` for programs."""
    return _chosen


def chosen_device() -> torch.device:
    """Return the device to compute on in torch."""
    return _chosen.torch_device


def choose(runtime: str, device: str = "auto") -> None:
    """Set the runtime and the device of models opened from now on.

    Process-wide: called by the command line and by `distill`, inside `choice_restored`.

    Raises:
        ConfigError, MissingExtraError: see `Choice.check`.
    """
    global _chosen
    _chosen = Choice(runtime, device)
    _chosen.check()


@contextmanager
def choice_restored() -> Iterator[None]:
    """Restore the choice when the block ends."""
    global _chosen
    before = _chosen
    try:
        yield
    finally:
        _chosen = before


def describe_auto() -> str:
    """Say in one line what `auto` means on this machine."""
    if Choice().resolved == "torch":
        return "auto is torch, on the GPU"
    if find_spec(_LIBRARIES["onnx"]) is None:
        return "auto is torch: onnxruntime is not installed, which is faster on a CPU"
    return "auto is onnx, on the CPU; torch for models that cannot be traced"
