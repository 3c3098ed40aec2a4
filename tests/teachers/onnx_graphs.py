"""ONNX graphs that the tests write, and what they compute."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.testing import assert_allclose
from onnx import TensorProto, helper, numpy_helper

from teacher_helpers import make_pixels
from whiten.models.registry import open_network
from whiten.utils.arrays import normalize_rows

FLOAT = TensorProto.FLOAT
WEIGHT = np.random.default_rng(0).standard_normal((3, 6)).astype(np.float32)


def save(
    path: Path,
    nodes: Sequence[tuple[str, list[str], list[str], dict[str, Any]]],
    *,
    outputs: Sequence[str],
    shape: Sequence[int | str | None] | None = ("n", 3, 32, 32),
    kind: int = FLOAT,
    more: Sequence[Any] = (),
    constants: dict[str, np.ndarray] | None = None,
    **options: Any,
) -> Path:
    made = [helper.make_node(op, given, out, **facts) for op, given, out, facts in nodes]
    weights = {"weight": WEIGHT} | (constants or {})
    graph = helper.make_graph(
        made,
        "graph",
        [helper.make_tensor_value_info("image", kind, shape), *more],
        [helper.make_tensor_value_info(name, FLOAT, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path, **options)
    return path


# Mean colour of an NCHW float image, projected to 6 dimensions.
MEAN = ("ReduceMean", ["image"], ["colour"], {"axes": [2, 3], "keepdims": 0})
PROJECT = ("MatMul", ["colour", "weight"], ["embedding"], {})
# The tokens are the image's rows: (n, 3, 32, 32) -> (n, 32, 3) -> (n, 32, 6).
TOKENS = [
    ("ReduceMean", ["image"], ["lines"], {"axes": [3], "keepdims": 0}),
    ("Transpose", ["lines"], ["rows"], {"perm": [0, 2, 1]}),
    ("MatMul", ["rows", "weight"], ["tokens"], {}),
]
PLAIN = "mean=0,0,0&std=1,1,1"


def embed(uri: str, side: int = 32) -> np.ndarray:
    return open_network(uri).embed(make_pixels(side))


def colours(side: int = 32) -> np.ndarray:
    """The means of R, G and B of the test's images, in 0 to 1."""
    return make_pixels(side).reshape(2, -1, 3).mean(axis=1) / 255


def check(found: np.ndarray, expected: np.ndarray, atol: float = 1e-5) -> None:
    assert found.dtype == np.float32
    assert_allclose(found, normalize_rows(expected), atol=atol)


def beside(
    path: Path, *, location: str = "g.onnx.data", scale: float = 1.0, one: bool = True
) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    options = {
        "save_as_external_data": True,
        "all_tensors_to_one_file": one,
        "location": location,
        "size_threshold": 0,
    }
    for file in path.parent.iterdir():  # data files would be appended to
        if file.is_file():
            file.unlink()
    nodes = [MEAN, PROJECT, ("Add", ["embedding", "bias"], ["moved"], {})]
    values = {"weight": WEIGHT * scale, "bias": np.arange(6, dtype=np.float32)}
    return save(path, nodes, outputs=["moved"], constants=values, **options)
