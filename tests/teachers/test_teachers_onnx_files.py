"""ONNX graphs with inputs of other types, and with outputs that are no embedding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.testing import assert_allclose
from onnx import TensorProto, helper

from onnx_graphs import (
    FLOAT,
    MEAN,
    PLAIN,
    PROJECT,
    TOKENS,
    WEIGHT,
    check,
    colours,
    embed,
    save,
)
from teacher_helpers import make_pixels
from whiten.errors import ConfigError, TeacherError
from whiten.models.registry import open_network
from whiten.utils.arrays import normalize_rows

# --- inputs -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.DOUBLE])
def test_other_floats(kind: int, tmp_path: Path) -> None:
    nodes = [("Cast", ["image"], ["float"], {"to": FLOAT}), MEAN, PROJECT]
    nodes[1] = ("ReduceMean", ["float"], *MEAN[2:])
    path = save(tmp_path / "g.onnx", nodes, outputs=["embedding"], kind=kind)
    found = embed(f"onnx:{path}?{PLAIN}")
    assert found.dtype == np.float32
    assert_allclose(found, normalize_rows(colours() @ WEIGHT), atol=2e-3)


def test_a_half_output(tmp_path: Path) -> None:
    half = ("Cast", ["embedding"], ["half"], {"to": TensorProto.FLOAT16})
    path = save(tmp_path / "g.onnx", [MEAN, PROJECT, half], outputs=["half"])
    model = onnx.load(path)
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    onnx.save(model, path)
    found = embed(f"onnx:{path}?{PLAIN}")
    assert found.dtype == np.float32
    assert_allclose(found, normalize_rows(colours() @ WEIGHT), atol=2e-3)


@pytest.mark.parametrize("kind", [TensorProto.UINT8, TensorProto.INT32, TensorProto.INT64])
@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("channels", ["rgb", "bgr"])
def test_pixels_of_any_size(kind: int, layout: str, channels: str, tmp_path: Path) -> None:
    """As the published SSCD graphs: pixels of any size, normalised inside."""
    cast = ("Cast", ["image"], ["float"], {"to": FLOAT})
    axes = [1, 2] if layout == "nhwc" else [2, 3]
    mean = ("ReduceMean", ["float"], ["colour"], {"axes": axes, "keepdims": 0})
    shape = ["n", "h", "w", 3] if layout == "nhwc" else ["n", 3, "h", "w"]
    path = save(
        tmp_path / "g.onnx", [cast, mean, PROJECT], outputs=["embedding"], shape=shape, kind=kind
    )
    teacher = open_network(f"onnx:{path}?size=48&channels={channels}")
    assert teacher.preprocess.size == (48, 48)
    order = slice(None, None, -1 if channels == "bgr" else 1)
    check(teacher.embed(make_pixels(48)), colours(48)[:, order] @ WEIGHT)
    assert teacher.count_macs() == WEIGHT.size
    for option in ("mean=0,0,0", "std=1,1,1", "white=255"):
        with pytest.raises(ConfigError, match="0 to 255 and normalises them itself: leave out "):
            open_network(f"onnx:{path}?{option}")
    assert open_network(f"onnx:{path}").preprocess.size == (224, 224)


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("shape", [["n", "a", "b", "c"], None])
def test_a_graph_that_leaves_its_layout_open(layout: str, shape: Any, tmp_path: Path) -> None:
    axes = [1, 2] if layout == "nhwc" else [2, 3]
    nodes = [("ReduceMean", ["image"], ["colour"], {"axes": axes, "keepdims": 0}), PROJECT]
    path = save(tmp_path / "g.onnx", nodes, outputs=["embedding"], shape=shape)
    teacher = open_network(f"onnx:{path}?{PLAIN}&size=32")
    assert teacher.preprocess.layout == layout
    check(teacher.embed(make_pixels(32)), colours() @ WEIGHT)


@pytest.mark.parametrize(
    ("shape", "query", "message"),
    [
        (["n", 1, 32, 32], "", "not of 3 channels"),
        (["n", 3, 32, 32], "?layout=nhwc", "takes nchw: leave out"),
        (["n", 3, 32], "", "must take a batch of images"),
    ],
)
def test_inputs_that_take_no_images(shape: Any, query: str, message: str, tmp_path: Path) -> None:
    nodes = [("ReduceMean", ["image"], ["colour"], {"axes": [-1], "keepdims": 0})]
    path = save(tmp_path / "g.onnx", nodes, outputs=["colour"], shape=shape)
    with pytest.raises((ConfigError, TeacherError), match=message):
        open_network(f"onnx:{path}{query}")


def test_a_second_input(tmp_path: Path) -> None:
    """With a default it is left out; without one it is named, with the outputs that do without."""
    scale = helper.make_tensor_value_info("scale", FLOAT, [1])
    nodes = [MEAN, PROJECT, ("Mul", ["embedding", "scale"], ["scaled"], {})]
    names = ["scaled", "embedding"]
    default = {"scale": np.full(1, 3, np.float32)}
    path = save(tmp_path / "a.onnx", nodes, outputs=names, more=[scale], constants=default)
    check(embed(f"onnx:{path}?{PLAIN}"), colours() @ WEIGHT)
    path = save(tmp_path / "b.onnx", nodes, outputs=names, more=[scale])
    with pytest.raises(TeacherError, match=r"needs 'scale' besides .* \?output=embedding$"):
        open_network(f"onnx:{path}")
    teacher = open_network(f"onnx:{path}?{PLAIN}&output=embedding")
    check(teacher.embed(make_pixels(32)), colours() @ WEIGHT)
    assert teacher.count_macs() == WEIGHT.size


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("size=-5", "must be of type whole number above 0 and up to 10000"),
        ("size=99999999999", "must be of type whole number above 0 and up to 10000"),
        ("crop=2", "must be of type number above 0 and up to 1"),
        ("crop=0", "must be of type number above 0 and up to 1"),
        ("std=1,0,1", "must be of type three numbers above 0 with commas"),
        ("mean=1,2", "must be of type three numbers with commas"),
        ("mean=nan,0,0", "must be of type three numbers with commas"),
        ("white=0", "must be of type number above 0"),
    ],
)
def test_numbers_without_meaning_are_refused(option: str, message: str, tmp_path: Path) -> None:
    path = save(tmp_path / "g.onnx", [MEAN, PROJECT], outputs=["embedding"])
    with pytest.raises(ConfigError, match=f"{message}$"):
        open_network(f"onnx:{path}?{option}")


# --- outputs ----------------------------------------------------------------------------


POOLED = {
    "cls": lambda tokens: tokens[:, 0],
    "mean": lambda tokens: tokens.mean(axis=1),
    "max": lambda tokens: tokens.max(axis=1),
    "gem": lambda tokens: (np.maximum(tokens, 1e-6) ** 3).mean(axis=1) ** (1 / 3),
}


@pytest.mark.parametrize("pool", POOLED)
def test_tokens_are_pooled_on_request(pool: str, tmp_path: Path) -> None:
    path = save(tmp_path / "g.onnx", TOKENS, outputs=["tokens"])
    with pytest.raises(TeacherError, match=r"32 tokens of 6 dim.*\?pool=cls\|mean\|gem\|max"):
        open_network(f"onnx:{path}")
    tokens = (make_pixels(32).mean(axis=2) / 255) @ WEIGHT
    check(embed(f"onnx:{path}?{PLAIN}&pool={pool}"), POOLED[pool](tokens))


@pytest.mark.parametrize("pool", ["mean", "max", "gem"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_maps_are_pooled_on_request(pool: str, layout: str, tmp_path: Path) -> None:
    maps = ("Conv", ["image", "kernel"], ["maps"], {})
    kernel = {"kernel": WEIGHT.T.reshape(6, 3, 1, 1).copy()}
    last = ("Transpose", ["maps"], ["last"], {"perm": [0, 2, 3, 1]})
    name = "maps" if layout == "nchw" else "last"
    path = save(tmp_path / "g.onnx", [maps, last], outputs=[name], constants=kernel)
    with pytest.raises(TeacherError, match=r"feature maps of .*\?pool=mean\|gem\|max"):
        open_network(f"onnx:{path}")
    with pytest.raises(ConfigError, match="must be one of mean, gem, max"):
        open_network(f"onnx:{path}?pool=cls")
    positions = (make_pixels(32).reshape(2, -1, 3) / 255) @ WEIGHT
    check(embed(f"onnx:{path}?{PLAIN}&pool={pool}"), POOLED[pool](positions))


def test_pooling_what_is_pooled_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "g.onnx", [MEAN, PROJECT], outputs=["embedding"])
    with pytest.raises(ConfigError, match=r"one embedding per image: leave out \?pool="):
        open_network(f"onnx:{path}?pool=mean")
    with pytest.raises(ConfigError, match="pool='avg' must be one of"):
        open_network(f"onnx:{path}?pool=avg")


def test_axes_of_one_are_no_tokens(tmp_path: Path) -> None:
    kept = ("ReduceMean", ["image"], ["colour"], {"axes": [2, 3], "keepdims": 1})
    path = save(tmp_path / "g.onnx", [kept], outputs=["colour"])
    found = embed(f"onnx:{path}?{PLAIN}")
    assert found.shape == (2, 3)
    assert_allclose(found, normalize_rows(colours()), atol=1e-5)


@pytest.mark.parametrize(("name", "dim"), [("output", 1000), ("y", 1001), ("logits", 5)])
def test_class_scores_are_refused(name: str, dim: int, tmp_path: Path) -> None:
    head = {"head": np.random.default_rng(1).standard_normal((6, dim)).astype(np.float32)}
    nodes = [MEAN, PROJECT, ("MatMul", ["embedding", "head"], [name], {})]
    path = save(tmp_path / "g.onnx", nodes, outputs=[name, "colour"], constants=head)
    with pytest.raises(TeacherError, match=f"{dim} class scores") as caught:
        open_network(f"onnx:{path}")
    assert "other outputs are ?output=colour; its last layer reads 'embedding'" in str(caught.value)
    assert "\n" not in str(caught.value)
    check(embed(f"onnx:{path}?{PLAIN}&output=embedding"), colours() @ WEIGHT)
    # Whoever names it says that it is one.
    assert open_network(f"onnx:{path}?output={name}").dim == dim


def test_an_embedding_of_as_many_dimensions_as_classes(tmp_path: Path) -> None:
    wide = {"weight": np.ones((3, 1000), np.float32)}
    path = save(tmp_path / "g.onnx", [MEAN, PROJECT], outputs=["embedding"], constants=wide)
    assert open_network(f"onnx:{path}").dim == 1000
