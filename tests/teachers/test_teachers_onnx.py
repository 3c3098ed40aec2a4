"""ONNX files as teachers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from helpers import write_groups
from small_runs import TEACHERS
from teacher_helpers import check_same, make_pixels, mean_colours
from whiten.datasets.finding import find_items
from whiten.distillation.cache import Cache
from whiten.embedding.embed import embed
from whiten.errors import ConfigError, TeacherError
from whiten.models.registry import open_teacher
from whiten.runs.spec import DistillSpec

PROJECTION = np.random.default_rng(3).standard_normal((3, 5)).astype(np.float32)


def make_graph(path: Path, *, nhwc: bool = False, scores: bool = False, side: int = 32) -> Path:
    """Mean colour, projected: `pooled` (n, 3) -> `embedding` (n, 5) -> perhaps `scores`."""
    helper = onnx.helper
    shape = ["n", side, side, 3] if nhwc else ["n", 3, side, side]
    nodes = [
        helper.make_node("Transpose", ["image"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("GlobalAveragePool", ["planes" if nhwc else "image"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["pooled"]),
        helper.make_node("MatMul", ["pooled", "projection"], ["embedding"]),
        helper.make_node("Softmax", ["embedding"], ["probabilities"]),
        helper.make_node("Identity", ["probabilities"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes[0 if nhwc else 1 : 6 if scores else 4],
        "graph",
        [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, shape)],
        [
            helper.make_tensor_value_info(
                "scores" if scores else "embedding", onnx.TensorProto.FLOAT, ["n", 5]
            )
        ],
        [onnx.numpy_helper.from_array(PROJECTION, "projection")],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    return path


def test_onnx_embeds(tmp_path: Path) -> None:
    teacher = open_teacher(f"onnx:{make_graph(tmp_path / 'mean.onnx')}")
    pixels = make_pixels(32, n=3)
    check_same(teacher.embed(pixels), mean_colours(pixels) @ torch.from_numpy(PROJECTION))
    assert (teacher.name, teacher.dim, teacher.preprocess.size) == ("mean", 5, (32, 32))
    assert teacher.params == PROJECTION.size
    assert teacher.count_macs() == PROJECTION.size
    same = open_teacher(f"onnx:{make_graph(tmp_path / 'again.onnx')}")
    changed = make_graph(tmp_path / "other.onnx", scores=True)
    other = open_teacher(f"onnx:{changed}?output=embedding")
    assert same.fingerprint() == teacher.fingerprint()
    assert other.weights_hash != teacher.weights_hash


def test_onnx_output_names_an_inner_tensor(tmp_path: Path) -> None:
    path = make_graph(tmp_path / "g.onnx", scores=True)
    pixels = make_pixels(32)
    teacher = open_teacher(f"onnx:{path}?output=pooled")
    check_same(teacher.embed(pixels), mean_colours(pixels))
    with pytest.raises(TeacherError, match=r"class probabilities \(Softmax\).*\?output=TENSOR"):
        open_teacher(f"onnx:{path}")
    with pytest.raises(TeacherError, match="no tensor 'pool'"):
        open_teacher(f"onnx:{path}?output=pool")


def test_onnx_layout_and_channels(tmp_path: Path) -> None:
    pixels = make_pixels(32)
    expected = mean_colours(pixels) @ torch.from_numpy(PROJECTION)
    nhwc = open_teacher(f"onnx:{make_graph(tmp_path / 'nhwc.onnx', nhwc=True)}")
    assert nhwc.preprocess.layout == "nhwc"
    check_same(nhwc.embed(pixels), expected)
    plain = make_graph(tmp_path / "g.onnx")
    statistics = "mean=123.675,116.28,103.53&std=58.395,57.12,57.375&white=255"
    check_same(open_teacher(f"onnx:{plain}?{statistics}").embed(pixels), expected)
    bgr = open_teacher(f"onnx:{plain}?channels=bgr&mean=0,0,0&std=1,1,1")
    reversed_means = torch.from_numpy(pixels[..., ::-1].reshape(2, -1, 3).mean(1) / 255).float()
    check_same(bgr.embed(pixels), reversed_means @ torch.from_numpy(PROJECTION))


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("size=64", "32x32 px only"),
        ("channels=gbr", "must be one of rgb, bgr"),
        ("mean=1,2", "mean='1,2'"),
        ("outputs=x", "did you mean 'output'"),
    ],
)
def test_onnx_refuses_options(query: str, message: str, tmp_path: Path) -> None:
    path = make_graph(tmp_path / "g.onnx")
    with pytest.raises(ConfigError, match=message):
        open_teacher(f"onnx:{path}?{query}")


def test_onnx_refuses_other_files(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no graph")
    with pytest.raises(TeacherError, match="not an ONNX model"):
        open_teacher(f"onnx:{tmp_path / 'text.onnx'}")
    (tmp_path / "empty.onnx").touch()  # which is a valid message, without fields
    with pytest.raises(TeacherError, match="not an ONNX model"):
        open_teacher(f"onnx:{tmp_path / 'empty.onnx'}")
    with pytest.raises(TeacherError, match="does not exist"):
        open_teacher(f"onnx:{tmp_path / 'missing.onnx'}")


def test_only_what_torch_computes_is_cached_as_bf16(tmp_path: Path) -> None:
    graph = make_graph(tmp_path / "mean.onnx")
    items = find_items(write_groups(tmp_path / "images", {"a": 2, "b": 2}))
    embed(items, open_teacher(TEACHERS[0]), tmp_path / "store")
    spec = DistillSpec(teachers=[f"onnx:{graph}"], precision="bf16")
    cache = Cache(tmp_path / "cache", spec, show_progress=False)
    uris = [f"onnx:{graph}", f"store:{tmp_path / 'store'}", TEACHERS[1]]
    stores = [cache.embed(open_teacher(uri), items, (0,), uri) for uri in uris]
    assert [store.origin.precision for store in stores] == ["32", "32", "bf16"]
    assert [store.folder.name.endswith("-bf16") for store in stores] == [False, False, True]
