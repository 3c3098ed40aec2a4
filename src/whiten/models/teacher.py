"""The interface of every network that embeds, from any source.

Torch is imported on demand: models of ONNX Runtime and OpenVINO run without it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from whiten.errors import TeacherError, WhitenError, one_line
from whiten.models.choice import chosen_device
from whiten.models.uri import MOST_PIXELS, lasting
from whiten.utils.arrays import has_direction, normalize_rows
from whiten.utils.hashing import fingerprint
from whiten.utils.memory import is_out_of_memory
from whiten.views.rendering import Preprocess

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

_log = logging.getLogger("whiten.models")

UNKNOWN_LICENCE = "unknown"
_NOT_FINITE = "returned NaN or infinity: check that its weights match the model"


@dataclass
class Identity:
    """Identifies a model, whether it computes embeddings or holds them.

    Attributes:
        uri: URI that opens it again.
        name: short display name.
        dim: embedding dimension.
        preprocess: preprocessing of its input.
        weights_hash: 32 hexadecimal digits, equal for equal weights.
        licence: licence of the weights, as stated by their publisher.
        params: number of parameters; None if unknown.
        compatible_with: for a student, fingerprints of the encoders of galleries that its
            embeddings can query besides its own.
        details: everything else that decides on an embedding, such as an architecture that shares
            its weights with others, or the source of a factory.
    """

    uri: str
    name: str
    dim: int
    preprocess: Preprocess
    weights_hash: str
    licence: str = field(default=UNKNOWN_LICENCE, kw_only=True)
    params: int | None = field(default=None, kw_only=True)
    compatible_with: tuple[str, ...] = field(default=(), kw_only=True)
    details: tuple[str, ...] = field(default=(), kw_only=True)

    def fingerprint(self) -> str:
        """Fingerprint of its embeddings; changes with anything that decides on them."""
        # Omit the default so that existing fingerprints stay valid.
        details = [{"details": list(self.details)}] if self.details else []
        return fingerprint([*self._identity(), *details])

    def earlier_fingerprint(self) -> str:
        """Fingerprint in files of earlier versions, which did not look at the details."""
        return fingerprint(self._identity())

    def made(self, uri: str, recorded: str) -> bool:
        """Return whether this model made embeddings that are recorded under a URI and fingerprint.

        In files of earlier versions models of other details had equal fingerprints, so that the URI
        must be the same, too.
        """
        if recorded == self.fingerprint():
            return True
        return lasting(uri) == lasting(self.uri) and recorded == self.earlier_fingerprint()

    def _identity(self) -> list[Any]:
        return [self.weights_hash, self.preprocess.fingerprint(), self.dim]


@dataclass
class Teacher(Identity):
    """A frozen network that embeds images.

    Attributes:
        forward: (n, …) normalised float32 tensor on `device` -> (n, dim) tensor of embeddings, not
            necessarily normalised.
        module: the torch module behind `forward`; None if there is none.
        macs_counter: counts the multiply-accumulates per image if there is no `module`.
        device: device of `module`; None is the CPU, or wherever `forward` computes.
        readout: output that serves as embedding if the user chose one (a pooling, a tensor); "" is
            the network's own.
        takes_pixels: whether `forward` takes (n, h, w, 3) uint8 RGB and normalises it itself.
        runtime: runtime of its network: torch, onnx, openvino or torchscript.
        twin: opens the same model in torch, if this is a graph that was traced from it.
        traced: the model that embeds many images; itself if it shall not be traced.
        _at_once: images that fit into memory at once; None if all have so far.
    """

    forward: Callable[[Any], Any]
    module: nn.Module | None = None
    macs_counter: Callable[[], int | None] | None = None
    device: torch.device | None = None
    readout: str = ""
    takes_pixels: bool = False
    runtime: str = "torch"
    twin: Callable[[], Teacher] | None = None
    traced: Teacher | None = field(default=None, init=False, repr=False, compare=False)
    _at_once: int | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.module is not None:
            import torch

            self.module.eval().requires_grad_(False)
            # Convolutions are 1.2 times faster in this layout on CPUs, more on GPUs.
            self.module.to(memory_format=torch.channels_last)
            if self.params is None:
                self.params = sum(p.numel() for p in self.module.parameters())

    def _identity(self) -> list[Any]:
        facts = super()._identity()
        return [*facts, self.readout] if self.readout else facts

    @property
    def device_type(self) -> str:
        return "cpu" if self.device is None else self.device.type

    def to(self, device: torch.device | str) -> Teacher:
        if self.module is not None:
            import torch

            self.device = torch.device(device)
            self.module.to(self.device)
        return self

    def on_chosen_device(self) -> Teacher:
        """Return the teacher on the chosen device, if it is a torch module; else itself."""
        return self if self.module is None else self.to(chosen_device())

    def in_torch(self) -> Teacher:
        """Return the model in torch, for what its traced graph cannot do; else itself."""
        if self.twin is None:
            return self
        same = {entry.name: getattr(self, entry.name) for entry in fields(Identity)}
        twin = replace(self.twin(), **same, readout=self.readout)
        self.twin = lambda: twin
        return twin

    def embed(
        self, pixels: npt.NDArray[np.uint8] | Tensor, *, bf16: bool = False
    ) -> npt.NDArray[np.float32]:
        """Embed a batch of rendered views.

        Args:
            pixels: (n, h, w, 3) uint8 RGB of the size in `preprocess`; a tensor is on the device.
            bf16: compute in bfloat16 if the device benefits.

        Returns:
            (n, dim) float32, rows L2-normalised.

        Raises:
            TeacherError: the output is not (n, dim), or not finite.
        """
        embeddings = self._embed_in_parts(pixels, bf16)
        if not np.isfinite(embeddings).all():
            raise TeacherError(f"{self.uri} {_NOT_FINITE}")
        return embeddings

    def embed_usable(
        self, pixels: npt.NDArray[np.uint8] | Tensor, *, bf16: bool = False
    ) -> tuple[npt.NDArray[np.float32], dict[int, str]]:
        """Embed a batch, see `embed`; also return which rows are no embedding, and why.

        Zeros have no direction: nothing is similar to them.
        """
        embeddings = self._embed_in_parts(pixels, bf16)
        return embeddings, {
            row: f"{self.uri} {_NOT_FINITE if embeddings[row].any() else 'returned only zeros'}"
            for row in np.flatnonzero(~has_direction(embeddings)).tolist()
        }

    def forward_tensor(self, inputs: Tensor) -> Tensor:
        """Run the network on a torch tensor, whatever the runtime."""
        out: Tensor = self.forward(inputs)
        return out

    def _embed_in_parts(
        self, pixels: npt.NDArray[np.uint8] | Tensor, bf16: bool
    ) -> npt.NDArray[np.float32]:
        """Embed a batch; in halves, also from then on, if it does not fit into memory."""
        while True:
            size = min(self._at_once or len(pixels), len(pixels))
            try:
                if size == len(pixels):
                    return self._embed_pixels(pixels, bf16)
                parts = range(0, len(pixels), size)
                return np.concatenate(
                    [self._embed_pixels(pixels[n : n + size], bf16) for n in parts]
                )
            except MemoryError as error:
                if size == 1:
                    raise TeacherError(
                        f"{self.uri} needs more memory than there is for a single image "
                        f"({one_line(error)}): lower its ?size=, or use another --device"
                    ) from error
                self._at_once = size // 2
            _log.info("%s: %d images at once do not fit into memory", self.uri, size)

    def _embed_pixels(
        self, pixels: npt.NDArray[np.uint8] | Tensor, bf16: bool
    ) -> npt.NDArray[np.float32]:
        import torch

        from whiten.views.on_device import model_input, to_device

        device = self.device or torch.device("cpu")
        with (
            torch.inference_mode(),
            torch.autocast(self.device_type, dtype=torch.bfloat16, enabled=bf16),
        ):
            inputs = (
                to_device(pixels, device)
                if self.takes_pixels
                else model_input(self.preprocess, pixels, device)
            )
            out = self._run(inputs)
        self._require_shape(tuple(out.shape), len(pixels))
        with torch.inference_mode():
            rows = torch.as_tensor(out).float()
            norms = rows.norm(dim=1).cpu().numpy()
            unit: npt.NDArray[np.float32] = normalize_rows(rows.cpu().numpy(), norms)
        return unit

    def _run(self, inputs: Any) -> Any:
        """Run the network; what a user's code raises is told in one line."""
        try:
            return self.forward(inputs)
        except (WhitenError, MemoryError):
            raise
        except Exception as error:  # networks raise almost anything
            if is_out_of_memory(error):
                raise MemoryError(one_line(error)) from error
            height, width = self.preprocess.size
            raise TeacherError(
                f"{self.uri} failed ({type(error).__name__}: {first_line(error)}): it must embed "
                f"any batch of {height}x{width} images, here {len(inputs)}"
            ) from error

    def _require_shape(self, shape: tuple[int, ...], count: int) -> None:
        if shape != (count, self.dim):
            raise TeacherError(
                f"{self.uri} returned shape {shape} for {count} images, expected "
                f"{(count, self.dim)}: it must return one embedding per image"
            )

    def count_macs(self) -> int | None:
        """Count multiply-accumulates per image: convolutions, matrix products and attention."""
        if self.module is not None:
            return count_macs(self.forward, self.preprocess, self.device)
        return None if self.macs_counter is None else self.macs_counter()


@dataclass
class ArrayTeacher(Teacher):
    """A network of a runtime that computes with NumPy arrays, such as ONNX Runtime.

    Its `forward` takes and returns arrays, so that embedding does not import torch.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the URI: sessions of runtimes cannot be."""
        return _open_again, (self.uri, self.fingerprint(), self.runtime)

    def forward_tensor(self, inputs: Tensor) -> Tensor:
        import torch

        return torch.from_numpy(self.forward(inputs.numpy()))

    def _embed_pixels(
        self, pixels: npt.NDArray[np.uint8] | Tensor, bf16: bool
    ) -> npt.NDArray[np.float32]:
        shown = np.asarray(pixels)
        inputs = shown if self.takes_pixels else self.preprocess.normalize(shown)
        out: npt.NDArray[np.float32] = self._run(inputs).astype(np.float32, copy=False)
        self._require_shape(out.shape, len(inputs))
        unit: npt.NDArray[np.float32] = normalize_rows(out)
        return unit


def _open_again(uri: str, made: str, runtime: str) -> Teacher:
    from whiten.models.opening import open_model
    from whiten.models.stored_model import require_network

    teacher = require_network(open_model(uri, runtime=runtime))
    if made not in (teacher.fingerprint(), teacher.earlier_fingerprint()):
        raise TeacherError(f"{uri} is another model now than when it was opened: open it again")
    return teacher


def count_macs(
    forward: Callable[[Tensor], Tensor], preprocess: Preprocess, device: torch.device | None
) -> int:
    """Run one blank image and count its multiply-accumulates (half the FLOPs)."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    blank = np.zeros((1, *preprocess.size, 3), np.uint8)
    inputs = torch.from_numpy(preprocess.normalize(blank)).to(device)
    # The counter sees no operators in inference mode.
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        forward(inputs)
    return int(counter.get_total_flops()) // 2


def probe_dim(forward: Callable[[Tensor], Tensor], preprocess: Preprocess, uri: str) -> int:
    """Return the embedding dimension, found by running one blank image.

    Raises:
        TeacherError: the model rejects its own input size, or returns no embedding.
    """
    import torch

    def run(inputs: npt.NDArray[np.float32]) -> Any:
        with torch.inference_mode():
            out = forward(torch.from_numpy(inputs))
        # NumPy has no bfloat16.
        return out.float().numpy() if isinstance(out, torch.Tensor) else out

    return probe_arrays(run, preprocess, uri)


def probe_arrays(
    forward: Callable[[npt.NDArray[np.float32]], Any], preprocess: Preprocess, uri: str
) -> int:
    """Return the embedding dimension of a network that takes and returns NumPy arrays."""
    blank = np.zeros((1, *preprocess.size, 3), np.uint8)
    try:
        out = forward(preprocess.normalize(blank))
    except WhitenError:
        raise
    except Exception as error:
        raise TeacherError(
            f"{uri} cannot embed a {preprocess.size[0]}x{preprocess.size[1]} image "
            f"({first_line(error)}): try another ?size="
        ) from error
    if not isinstance(out, np.ndarray) or out.ndim != 2 or len(out) != 1:
        shape = out.shape if isinstance(out, np.ndarray) else type(out).__name__
        what = {3: " (tokens)", 4: " (feature maps)"}.get(len(shape) if shape else 0, "")
        raise TeacherError(
            f"{uri} returned {shape}{what}, not one embedding per image: pool it to (n, d)"
        )
    return int(out.shape[1])


def drawn_pixels(preprocess: Preprocess, count: int) -> npt.NDArray[np.uint8]:
    """Draw images, smooth blobs of colour, to compare two runtimes: (count, h, w, 3) uint8."""
    from PIL import Image

    blobs = np.random.default_rng(0).integers(0, 256, (count, 7, 7, 3), np.uint8)
    size = preprocess.size[::-1]
    return np.stack(
        [np.asarray(Image.fromarray(b).resize(size, Image.Resampling.BICUBIC)) for b in blobs]
    )


def exact(number: float) -> str:
    """Write a number so that no other is written alike; in short where that is exact."""
    short = f"{number:g}"
    return short if float(short) == number else repr(number)


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def positive_int(text: str) -> int:
    """Parse an option that is a size in pixels, from 1 on."""
    if not 1 <= (value := int(text)) <= MOST_PIXELS:
        raise ValueError(text)
    return value


def positive_number(text: str) -> float:
    """Parse an option that is above 0 and finite."""
    if not 0 < (value := float(text)) < math.inf:
        raise ValueError(text)
    return value


# Errors show these names.
positive_int.__name__ = f"whole number above 0 and up to {MOST_PIXELS}"
positive_number.__name__ = "number above 0"
