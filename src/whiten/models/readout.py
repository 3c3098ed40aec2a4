"""Turn what a network returns into one embedding per image, and refuse what is none."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt

from whiten.errors import ConfigError, TeacherError

Arrays = npt.NDArray[Any]

TOKEN_POOLS = ("cls", "mean", "gem", "max")
MAP_POOLS = ("mean", "gem", "max")
_GEM_POWER, _GEM_LEAST = 3.0, 1e-6  # Radenović et al., TPAMI 2019, eq. 2

# Classes of ImageNet-1k, with background in TensorFlow's, of ImageNet-21k and its parts, of Places.
CLASS_COUNTS = frozenset([1000, 1001, 21841, 21842, 21843, 11221, 11821, 10450, 365])
_OF_CLASSES = re.compile(r"logit|softmax|prob|class|score|predict", re.IGNORECASE)
_OF_FEATURES = re.compile(r"embed|feat|descriptor|vector|pool|hidden", re.IGNORECASE)


def is_scores(name: str, dim: int) -> bool:
    """Return whether an output is likely one score per class, by its name and dimension."""
    if _OF_FEATURES.search(name):
        return False
    return dim in CLASS_COUNTS or _OF_CLASSES.search(name) is not None


def describe(shape: tuple[int, ...]) -> str:
    """Describe an output of a batch that is not one embedding per image, for a message."""
    if len(shape) == 3:
        return f"{shape[1]} tokens of {shape[2]} dimensions per image"
    if len(shape) == 4:
        return f"feature maps of {'x'.join(map(str, shape[1:]))} per image"
    return f"the shape {shape}"


def pools_of(shape: tuple[int, ...]) -> tuple[str, ...]:
    """Return the poolings that make one embedding per image of an output; none if it is one."""
    return {3: TOKEN_POOLS, 4: MAP_POOLS}.get(len(without_ones(shape)), ())


def without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape without axes of length 1 if only one other than the first is longer."""
    longer = [side for side in shape[1:] if side != 1]
    return (shape[0], *(longer or [1])) if len(shape) > 2 and len(longer) < 2 else shape


def pool_array(out: Arrays, pool: str, layout: str, name: str) -> npt.NDArray[np.float32]:
    """Pool a network's output to (n, d) float32.

    Args:
        out: (n, d), (n, tokens, d), (n, d, h, w) or, as `layout` says, (n, h, w, d).
        pool: cls (the first token), mean, gem (power 3, values below 1e-6 raised to that) or max,
            over all tokens or positions; "" if it is (n, d) already.
        layout: nchw or nhwc, of feature maps that do not tell by two equal sides.
        name: what to call the model in messages.

    Raises:
        TeacherError: it is not (n, d), and no pooling is given.
        ConfigError: the pooling does not fit.
    """
    shape = without_ones(out.shape)
    pools = pools_of(out.shape)
    if len(shape) == 2 and not pool:
        return out.reshape(shape).astype(np.float32, copy=False)
    if len(shape) == 2:
        raise ConfigError(f"{name} returns one embedding per image: leave out ?pool=")
    if not pools:
        raise TeacherError(f"{name} returned {describe(out.shape)}, not one embedding per image")
    if not pool:
        raise TeacherError(
            f"{name} returned {describe(out.shape)}, not one embedding: add ?pool={'|'.join(pools)}"
        )
    if pool not in pools:
        raise ConfigError(
            f"{name} returned {describe(out.shape)}, for which pool={pool!r} must be one of "
            f"{', '.join(pools)}"
        )
    values: Arrays = out.astype(np.float32, copy=False)
    if values.ndim == 4:
        is_last = _is_channels_last(values.shape, layout)
        n, d = len(values), values.shape[3 if is_last else 1]
        values = values.reshape((n, -1, d) if is_last else (n, d, -1))
        values = values if is_last else values.swapaxes(1, 2)
    pooled: Arrays
    if pool == "cls":
        pooled = values[:, 0]
    elif pool == "max":
        pooled = values.max(axis=1)
    elif pool == "mean":
        pooled = values.mean(axis=1)
    else:
        powers = np.maximum(values, _GEM_LEAST) ** _GEM_POWER
        pooled = powers.mean(axis=1) ** (1 / _GEM_POWER)
    return pooled


def _is_channels_last(shape: tuple[int, ...], layout: str) -> bool:
    """Tell the axis of the features: the other two are equal for square images."""
    _, first, second, third = shape
    if (first == second) != (second == third):
        return first == second
    return layout == "nhwc"
