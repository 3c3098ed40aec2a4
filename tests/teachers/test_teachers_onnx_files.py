"""ONNX graphs as people have them: inputs of other types, outputs that are no embedding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.testing import assert_allclose
from onnx import TensorProto, helper, numpy_helper

from teacher_helpers import make_pixels
from whiten.errors import ConfigError, TeacherError
from whiten.models.registry import open_network
from whiten.models.sources import onnx_graph
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


# --- weights in other files -------------------------------------------------------------


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


def prints(path: Path) -> str:
    return open_network(f"onnx:{path}").fingerprint()


@pytest.mark.parametrize("is_large", [False, True])
@pytest.mark.parametrize("one", [True, False])
def test_weights_beside_the_graph(
    one: bool, is_large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_large:  # they then stay in their files
        monkeypatch.setattr(onnx_graph, "_AT_ONCE", 0)
    path = beside(tmp_path / "a" / "g.onnx", one=one)
    assert len(list(path.parent.iterdir())) == (2 if one else 3)
    expected = colours() @ WEIGHT + np.arange(6)
    check(embed(f"onnx:{path}?{PLAIN}"), expected)
    assert open_network(f"onnx:{path}").params == WEIGHT.size + 6
    assert open_network(f"onnx:{path}").count_macs() == WEIGHT.size
    graph = path.read_bytes()
    first = prints(path)
    beside(path, one=one, scale=-1.0)  # exported again in place
    assert path.read_bytes() == graph
    assert prints(path) != first
    beside(path, one=one)
    for file in sorted(path.parent.iterdir()):
        if file != path:
            content = bytearray(file.read_bytes())
            content[-1] ^= 1
            file.write_bytes(content)
            assert prints(path) != first
            content[-1] ^= 1
            file.write_bytes(content)
    assert prints(path) == first


def test_the_same_network_elsewhere(tmp_path: Path) -> None:
    first = prints(beside(tmp_path / "a" / "g.onnx"))
    assert prints(beside(tmp_path / "b" / "other.onnx", location="weights.bin")) == first
    (tmp_path / "c" / "inner").mkdir(parents=True)
    inner = beside(tmp_path / "c" / "g.onnx", location="inner/w.bin")
    assert prints(inner) == first
    (tmp_path / "d").mkdir()
    linked = link(tmp_path / "a" / "g.onnx", tmp_path / "d")
    assert prints(linked) == first


def link(path: Path, folder: Path) -> Path:
    """Link a graph and its weights into a folder, as the cache of a hub does."""
    for file in (path, path.with_name("g.onnx.data")):
        (folder / file.name).symlink_to(file)
    return folder / path.name


def test_large_weights_behind_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The runtime opens them itself, and follows no link out of the folder."""
    monkeypatch.setattr(onnx_graph, "_AT_ONCE", 0)
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    snapshot.mkdir()
    path = link(beside(blobs / "g.onnx"), snapshot)
    expected = normalize_rows(colours() @ WEIGHT + np.arange(6))
    assert_allclose(embed(f"onnx:{path}?{PLAIN}"), expected, atol=1e-5)
    assert open_network(f"onnx:{path}").count_macs() == WEIGHT.size
    assert prints(path) == prints(blobs / "g.onnx")


def test_every_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = beside(tmp_path / "g.onnx", one=False)
    opened: list[str] = []
    genuine = Path.open

    def counting(self: Path, *args: Any, **options: Any) -> Any:
        opened.append(self.name)
        return genuine(self, *args, **options)

    monkeypatch.setattr(Path, "open", counting)
    onnx_graph.read_graph(path)
    assert sorted(opened) == sorted(file.name for file in tmp_path.iterdir())


def test_missing_and_cut_weights_are_named(tmp_path: Path) -> None:
    path = beside(tmp_path / "g.onnx")
    data = tmp_path / "g.onnx.data"
    content = data.read_bytes()
    data.write_bytes(content[:-1])
    with pytest.raises(TeacherError, match=r"g\.onnx\.data is cut short, .*: copy it again"):
        prints(path)
    data.unlink()
    with pytest.raises(TeacherError, match=r"has weights in g\.onnx\.data, which is not there"):
        prints(path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("location", "../g.onnx.data", "outside of its folder"),
        ("offset", "first", r"does not say where in g\.onnx\.data its weights are"),
        ("length", "1e3", r"does not say where in g\.onnx\.data its weights are"),
        ("offset", "-1", "is cut short"),
    ],
)
def test_weights_that_are_misnamed(key: str, value: str, message: str, tmp_path: Path) -> None:
    path = beside(tmp_path / "g.onnx")
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = value if entry.key == key else entry.value
    onnx.save(model, path)
    with pytest.raises(TeacherError, match=message) as caught:
        prints(path)
    assert "\n" not in str(caught.value)


def test_weights_of_a_subgraph_and_of_constants(tmp_path: Path) -> None:
    """Tensors are found wherever a graph can hold them."""
    value = numpy_helper.from_array(np.arange(6, dtype=np.float32), "inner")
    constant = helper.make_node("Constant", [], ["bias"], value=value)
    body = helper.make_graph(
        [constant, helper.make_node("Add", ["embedding", "bias"], ["moved"])],
        "body",
        [],
        [helper.make_tensor_value_info("moved", FLOAT, None)],
    )
    always = {"yes": np.ones((), bool)}
    branch = ("If", ["yes"], ["chosen"], {"then_branch": body, "else_branch": body})
    path = save(tmp_path / "g.onnx", [MEAN, PROJECT, branch], outputs=["chosen"], constants=always)
    expected = colours() @ WEIGHT + np.arange(6)
    check(embed(f"onnx:{path}?{PLAIN}"), expected)
    model = onnx.load(path)
    onnx.external_data_helper.convert_model_to_external_data(
        model, location="w", size_threshold=0, convert_attribute=True
    )
    onnx.save(model, path)
    check(embed(f"onnx:{path}?{PLAIN}"), expected)
    first = prints(path)
    data = bytearray((tmp_path / "w").read_bytes())
    at = data.index(np.arange(6, dtype=np.float32).tobytes())
    data[at + 7] ^= 1
    (tmp_path / "w").write_bytes(data)
    assert prints(path) != first
