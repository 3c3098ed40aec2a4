"""The device and the precision to compute in."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whiten.errors import ConfigError, one_line

if TYPE_CHECKING:
    import torch

DEVICES = ("auto", "cpu", "cuda", "mps")


def best_device() -> torch.device:
    """Return CUDA if there is one, else MPS, else the CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Leave torch's random state as the caller has it, also where the block seeds it."""
    torch = sys.modules.get("torch")
    if torch is None:  # nobody has drawn or seeded anything
        yield
        return
    # The state of a GPU that nobody uses yet is not read: that takes memory on each.
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices):
        yield


def cpu_name() -> str:
    """Return the processor's name for records of measurements; "" if it is unknown."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if "model name" in line), "")


def may_have_gpu() -> bool:
    """Return whether torch may find a GPU; tells without importing torch, which takes seconds.

    False is certain. Otherwise `best_device` asks torch.
    """
    if "torch" in sys.modules:
        return best_device().type != "cpu"
    if sys.platform == "darwin":
        return platform.machine() == "arm64"
    if sys.platform != "linux":
        return True
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    # Drivers of NVIDIA, of NVIDIA below WSL and on Jetson, and of AMD.
    devices = ("nvidia0", "nvidiactl", "nvidia-uvm", "dxg", "nvhost-gpu", "nvmap", "kfd")
    return any(os.path.exists(f"/dev/{name}") for name in devices)  # noqa: PTH110 - imports less


def check_device(name: str) -> None:
    """Refuse what is no device anywhere.

    Raises:
        ConfigError: it is none of `DEVICES`, nor a GPU with its number.
    """
    kind, colon, number = name.partition(":")
    is_number = kind in ("cuda", "mps") and number.isascii() and number.isdecimal()
    if kind not in DEVICES or (colon and not is_number):
        raise ConfigError(f"device must be one of {', '.join(DEVICES)}, or cuda:1, not {name!r}")


def require_device(name: str) -> None:
    """Refuse a device that this machine lacks.

    Raises:
        ConfigError: it is unknown, or torch does not find it.
    """
    check_device(name)
    kind, _, number = name.partition(":")
    if kind in ("auto", "cpu"):
        return
    import torch

    has = torch.backends.mps.is_available()
    if kind == "cuda":
        has = torch.cuda.is_available() and int(number or 0) < torch.cuda.device_count()
    if not has:
        raise ConfigError(f"torch finds no device {name} on this machine: use cpu or auto")


def require_compiler(device: torch.device) -> None:
    """Refuse to compile where torch cannot; takes seconds.

    Raises:
        ConfigError: there is no compiler, for one.
    """
    import torch

    try:
        torch.compile(torch.nn.Linear(2, 2).to(device))(torch.zeros(1, 2, device=device))
    except RuntimeError as error:
        raise ConfigError(
            f"--compile does not work here ({one_line(error)}): install a C++ compiler, or leave "
            "out --compile"
        ) from error


def computes_bf16(device_type: str) -> bool:
    """Return whether the device computes in bfloat16 natively, and so gains from it."""
    import torch

    if device_type == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    if device_type == "cpu":
        facts: Any = getattr(torch.cpu, "get_capabilities", dict)()  # since torch 2.11
        return bool(facts.get("avx512_bf16") or facts.get("amx_bf16") or facts.get("bf16"))
    return False


def resolve_precision(wanted: str, device_type: str) -> str:
    """Return `32`, `bf16` or `16` for a requested precision that may be `auto`.

    Raises:
        ConfigError: half precision is requested on a device without it.
    """
    if wanted == "auto":
        return "bf16" if computes_bf16(device_type) else "32"
    if wanted == "16" and device_type != "cuda":
        raise ConfigError(
            f"precision 16 needs a CUDA device, this is {device_type}: use bf16 or 32"
        )
    return wanted


def computes_faster_in_bf16(module: torch.nn.Module, device_type: str) -> bool:
    """Return whether training gains from bfloat16.

    On CPUs the backward pass of depthwise convolutions is about twice as slow in bfloat16.
    """
    import torch

    is_grouped = any(
        isinstance(layer, torch.nn.Conv2d) and layer.groups > 1 for layer in module.modules()
    )
    return computes_bf16(device_type) and not (device_type == "cpu" and is_grouped)
