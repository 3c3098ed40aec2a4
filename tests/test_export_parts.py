"""The parts of an export: split, parity, verdict, folded sizes, speeds, remarks, the folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from timm.layers import create_conv2d
from torch import nn

from exporting import write_student
from whiten.datasets.collection import Item, Items
from whiten.errors import ConfigError, NoImagesError, TeacherError
from whiten.export import images, speed
from whiten.export.building import choose
from whiten.export.card import export_card
from whiten.export.graphs import to_fp16
from whiten.export.images import draw_images, sample_images, split
from whiten.export.parity import Parity, Truth, compare, find_truth, reason_to_refuse
from whiten.export.quantisation import quantise
from whiten.export.table import remarks_on
from whiten.models.exported import Variant
from whiten.models.student import build_student, load_student
from whiten.models.teacher import ArrayTeacher, Teacher
from whiten.models.tracing import BACKBONE, INPUT, Deployed, fold_sizes, trace_onnx
from whiten.utils import files as folders
from whiten.views.rendering import Preprocess

# --- which images -----------------------------------------------------------------------


def grouped(*sizes: int) -> list[Item]:
    return [
        Item(f"g{g}/{n}", f"/nowhere/g{g}/{n}", f"g{g}")
        for g, size in enumerate(sizes)
        for n in range(size)
    ]


def test_groups_are_split_whole_and_always_the_same_way() -> None:
    items = grouped(3, 1, 4, 2, 5, 2, 2)
    held_out, calibration = split(items)
    assert sorted(i.id for i in (*held_out, *calibration)) == sorted(i.id for i in items)
    assert not {i.group for i in held_out} & {i.group for i in calibration}
    again = split(items[::-1])
    assert {i.id for i in again[0]} == {i.id for i in held_out}
    alone = [dataclasses.replace(item, group=None) for item in items]
    halves = split(alone)
    assert abs(len(halves[0]) - len(halves[1])) <= 1


def test_both_halves_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "HELD_OUT", 7)
    monkeypatch.setattr(images, "CALIBRATION", 4)
    held_out, calibration = split(grouped(*[3] * 20))
    assert (len(held_out), len(calibration)) == (7, 4)


def test_nothing_to_compare_on_is_said() -> None:
    with pytest.raises(NoImagesError, match="none of the images can be read"):
        sample_images(Items.of(grouped(2, 2)), Preprocess(size=(8, 8)), 1)


def test_made_up_images_are_the_same_every_time() -> None:
    one, other = (draw_images(Preprocess(size=(12, 20))) for _ in range(2))
    assert one.pixels.shape == (64, 12, 20, 3)
    np.testing.assert_array_equal(one.pixels, other.pixels)
    assert one.pixels.std(axis=(1, 2)).min() > 5  # none is of one colour


# --- parity -----------------------------------------------------------------------------


def unit(rows: Any) -> np.ndarray:
    array = np.asarray(rows, np.float32)
    return array / np.linalg.norm(array, axis=1, keepdims=True)


def test_centred_cosines_see_what_cosines_do_not() -> None:
    rng = np.random.default_rng(0)
    own = rng.standard_normal((50, 16))
    shared = 8 * np.eye(16)[0]
    reference = unit(shared + own)
    exported = unit(shared + rng.standard_normal((50, 16)))  # nothing but the shared direction
    truth = find_truth([Item(str(n), "") for n in range(50)], reference)
    found = compare(reference, exported, truth)
    assert found.cosine > 0.6
    assert found.centred is not None and abs(found.centred) < 0.15
    assert found.map is not None and found.map < 0.3


def test_parity_by_hand() -> None:
    reference = unit([[1, 0], [0, 1]])
    exported = unit([[1, 0], [3, 4]])
    found = compare(reference, exported, Truth(None, "none", None))
    assert found.cosine == pytest.approx((1 + 0.8) / 2)
    assert found.lowest_cosine == pytest.approx(0.8)
    # Less the mean (0.5, 0.5): (0.5, -0.5) twice, and (-0.5, 0.5) against (0.1, 0.3).
    second = (-0.5 * 0.1 + 0.5 * 0.3) / (np.hypot(0.5, 0.5) * np.hypot(0.1, 0.3))
    assert found.centred == pytest.approx((1 + second) / 2, abs=1e-6)
    assert found.lowest_centred == pytest.approx(second, abs=1e-6)
    assert (found.map, found.map_lost) == (None, None)


def test_torch_has_all_of_its_own_neighbours() -> None:
    reference = unit(np.random.default_rng(1).standard_normal((30, 8)))
    truth = find_truth([Item(str(n), "") for n in range(30)], reference)
    assert (truth.by, truth.map) == ("neighbours", 1.0)
    assert compare(reference, reference, truth).map_lost == 0
    assert compare(reference, -reference, truth).map == 1.0  # similarities are the same
    assert find_truth([Item(str(n), "") for n in range(19)], reference[:19]).by == "none"


def test_groups_come_before_neighbours() -> None:
    reference = unit([[1, 0.1], [1, 0], [0, 1], [0.1, 1]])
    truth = find_truth(grouped(2, 2), reference)
    assert (truth.by, truth.map) == ("groups", 1.0)
    crossed = compare(reference, reference[[0, 2, 1, 3]], truth)
    assert crossed.map is not None and crossed.map < 0.6
    assert crossed.map_lost == pytest.approx(1 - crossed.map)


@pytest.mark.parametrize(
    ("precision", "parity", "expected"),
    [
        ("fp32", Parity(1, 0.99991), ""),
        ("fp32", Parity(1, 0.99989), "its lowest cosine to torch is 0.99989, below 0.9999"),
        ("fp16", Parity(1, 0.9991), ""),
        ("fp16", Parity(1, 0.9989), "below 0.999"),
        ("bf16", Parity(1, 0.991), ""),
        ("int8", Parity(0.99, 0.5, 0.91, 0.1, 0.5, 0.019), ""),
        ("int8", Parity(0.99, 0.5, 0.89, 0.1, 0.5, 0.0), "centred cosine to torch is 0.8900"),
        ("int8", Parity(0.99, 0.5, 0.95, 0.1, 0.5, 0.021), "loses 0.0210 of the mAP"),
        ("int8", Parity(0.89, 0.5), "is 0.8900, below the floor 0.9"),
    ],
)
def test_the_verdict(precision: str, parity: Parity, expected: str) -> None:
    reason = reason_to_refuse(precision, parity, by="groups", int8_floor=0.9, int8_loss=0.02)
    assert expected in reason if expected else reason == ""


def test_neighbours_are_no_reason_to_refuse() -> None:
    far = Parity(0.99, 0.5, 0.95, 0.1, 0.5, 0.5)
    assert reason_to_refuse("int8", far, by="neighbours", int8_floor=0.9, int8_loss=0.02) == ""


# --- graphs -----------------------------------------------------------------------------


def test_sizes_that_are_known_are_folded() -> None:
    """TensorFlow's "same" padding asks for the size of its input, layer after layer."""
    torch.manual_seed(0)
    layers = [create_conv2d(3 if n == 0 else 4, 4, 3, stride=2, padding="same") for n in range(3)]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.net(x)
            return out

    model = trace_onnx(Small().eval(), torch.zeros(2, 3, 33, 30))
    kinds = {node.op_type for node in model.graph.node}
    assert not kinds & {"Shape", "Gather", "ConstantOfShape", "Slice"}, kinds
    session = onnxruntime.InferenceSession(model.SerializeToString())
    for count in (1, 5):
        x = torch.randn(count, 3, 33, 30)
        with torch.no_grad():
            expected = net(x).numpy()
        np.testing.assert_allclose(session.run(None, {"images": x.numpy()})[0], expected, atol=1e-5)


def test_what_has_nothing_to_fold_stays() -> None:
    helper = onnx.helper
    shape = helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, ["n", 3, 4, 4])
    out = helper.make_tensor_value_info("embeddings", onnx.TensorProto.FLOAT, None)
    node = helper.make_node("Flatten", ["images"], ["embeddings"])
    model = helper.make_model(helper.make_graph([node], "g", [shape], [out]))
    assert fold_sizes(model) == model


def test_pixels_are_normalised_in_the_graph(tmp_path: Path) -> None:
    net, config = load_student(write_student(tmp_path / "student"))
    odd = dataclasses.replace(
        config.preprocess,
        channels="bgr",
        white=255.0,
        mean=(127.0, 120.0, 110.0),
        std=(128.0, 60.0, 50.0),
    )
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    with torch.no_grad():
        expected = net.eval()(torch.from_numpy(odd.normalize(pixels)))
        found = Deployed(net, odd, True)(torch.from_numpy(pixels))
    torch.testing.assert_close(found, nn.functional.normalize(expected), atol=1e-5, rtol=0)


def test_only_the_backbone_is_rounded(tmp_path: Path) -> None:
    net, config = load_student(write_student(tmp_path / "student"))
    deployed = Deployed(net, config.preprocess, False)
    graph = trace_onnx(deployed, deployed.example(2, config.preprocess.size))
    outside = [n.name for n in graph.graph.node if not n.name.startswith(BACKBONE)]
    assert any("projection" in name for name in outside)
    inputs = list(np.random.default_rng(0).standard_normal((20, 3, 64, 64)).astype(np.float32))
    rounded = quantise(graph, inputs)
    sources = {output: node.op_type for node in rounded.graph.node for output in node.output}
    for node in rounded.graph.node:
        fed_by = {sources.get(name) for name in node.input}
        if node.op_type == "Conv":
            assert fed_by == {"DequantizeLinear"}, node.name
        elif node.op_type in ("Gemm", "Pow", "ReduceMean", "ReduceL2", "Div"):
            assert "DequantizeLinear" not in fed_by - {sources.get(node.input[0])}, node.name
    weights = {t.name: t for t in rounded.graph.initializer}
    scales = [
        onnx.numpy_helper.to_array(weights[node.input[1]])
        for node in rounded.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in weights
    ]
    assert max(scale.size for scale in scales) > 8  # one a channel
    halves = to_fp16(graph)
    kinds = {t.name: t.data_type for t in halves.graph.initializer}
    assert kinds["net.projection.weight"] == onnx.TensorProto.FLOAT
    assert onnx.TensorProto.FLOAT16 in kinds.values()
    assert graph.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    # What is computed in fp32 is passed on in fp32: deviations of 1e-6 would be 0, and NaN.
    made = {output: node for node in halves.graph.node for output in node.output}
    casts = [node for node in halves.graph.node if node.op_type == "Cast"]
    to_half = [node for node in casts if node.attribute[0].i == onnx.TensorProto.FLOAT16]
    assert to_half
    assert not [node for node in casts if made.get(node.input[0]) in to_half]


def test_fp16_of_stages_without_deviation(tmp_path: Path) -> None:
    """Maps of one pixel: all their deviations are equal and tiny."""
    net, config = build_student("timm:resnet10t", dim=8, pool="stages", size=32, pretrained=False)
    deployed = Deployed(net.eval(), config.preprocess, False)
    graph = trace_onnx(deployed, deployed.example(2, config.preprocess.size))
    images = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    single, half = (
        onnxruntime.InferenceSession(made.SerializeToString()).run(None, {INPUT: images})[0]
        for made in (graph, to_fp16(graph))
    )
    np.testing.assert_allclose(half, single, atol=5e-3)


def test_what_cannot_be_traced_is_one_line(tmp_path: Path) -> None:
    net, config = load_student(write_student(tmp_path / "student"))
    deployed = Deployed(net, config.preprocess, False)
    deployed.forward = lambda images: images.unknown()  # type: ignore[method-assign]
    with pytest.raises(TeacherError, match=r"cannot be traced .*: choose a convolutional backbone"):
        trace_onnx(deployed, deployed.example(2, config.preprocess.size))


# --- what was asked, speed, table, folder ---------------------------------------------------


def test_choosing() -> None:
    wanted, left_out = choose(["openvino", "onnx", "onnx"], ["int8", "bf16"])
    assert wanted == [("openvino", "bf16"), ("openvino", "int8"), ("onnx", "int8")]
    assert left_out == ["onnx has no bf16: left out"]
    with pytest.raises(ConfigError, match="name at least one precision"):
        choose(["onnx"], [])


class Clock:
    """Time that passes where a model computes, and when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.hiccup = 0.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def model(self, seconds: float) -> Teacher:
        """One that takes as long for each image."""

        def forward(inputs: np.ndarray) -> np.ndarray:
            self.now += seconds * len(inputs) + self.hiccup
            self.hiccup = 0.0
            return np.ones((len(inputs), 2), np.float32)

        return ArrayTeacher("", "", 2, Preprocess(size=(4, 4)), "", forward)


def test_speeds_are_images_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(speed, "time", clock)
    models = {"slow": clock.model(0.02), "fast": clock.model(0.004)}
    clock.hiccup = 5.0  # while it warms up
    assert speed.measure_speeds(models) == {
        "slow": {"1": 50.0, "16": 50.0},
        "fast": {"1": 250.0, "16": 250.0},
    }


def test_what_is_slower_is_said() -> None:
    speeds = {
        "torch fp32": {"1": 100.0, "16": 200.0},
        "onnx fp32": {"1": 200.0, "16": 300.0},
        "onnx fp16": {"1": 150.0, "16": 100.0},
        "onnx int8": {"1": 400.0, "16": 290.0},
    }
    assert remarks_on(Variant("onnx", "fp32", {}, 1), speeds) == []
    assert remarks_on(Variant("onnx", "int8", {}, 1), speeds) == []  # 0.97 is noise
    assert remarks_on(Variant("onnx", "fp16", {}, 1), speeds) == [
        "slower here than onnx fp32: 0.75x at batch 1, 0.33x at batch 16",
        "slower here than torch fp32: 0.50x at batch 16",
    ]


def test_embeddings_that_lie_close_together_are_noticed() -> None:
    speeds = {"torch fp32": {"1": 1.0}, "onnx fp32": {"1": 1.0}, "onnx fp16": {"1": 1.0}}
    near = dataclasses.asdict(Parity(0.9999, 0.9999, 0.05))
    [remark] = remarks_on(Variant("onnx", "fp16", {}, 1, near), speeds)
    assert remark.startswith("mean-centred cosine 0.0500: embeddings of this student are so close")
    assert remarks_on(Variant("onnx", "fp16", {}, 1, near | {"centred": 0.995}), speeds) == []


def test_an_error_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"

    def fill(text: str, fail: bool = False) -> None:
        with folders.replacing(out, "export.json", "an export") as new:
            (new / "export.json").write_text(text)
            if fail:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill("one", fail=True)
    assert list((tmp_path / "deep").iterdir()) == []
    fill("two")
    with pytest.raises(KeyboardInterrupt):
        fill("three", fail=True)
    assert (out / "export.json").read_text() == "two"
    (tmp_path / "deep" / ".out.partial").mkdir()  # what a kill leaves
    (tmp_path / "deep" / ".out.partial" / "half.onnx").write_text("")
    fill("four")
    (out).rename(tmp_path / "deep" / ".out.old")  # a kill between the renames
    with pytest.raises(KeyboardInterrupt):
        fill("five", fail=True)
    assert (out / "export.json").read_text() == "four"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]
    assert [path.name for path in out.iterdir()] == ["export.json"]


def test_the_students_card_is_carried_over_a_level_lower() -> None:
    from whiten.models.exported import Manifest

    variant = Variant("onnx", "fp32", {"a.onnx": ""}, 1, dataclasses.asdict(Parity(1, 1)), {})
    measured = {
        "torch": {"speed": {}, "map": None},
        "map_by": "none",
        "held_out": 1,
        "drawn": 0,
        "calibration": 0,
        "threads": 1,
        "cpu": "a CPU",
    }
    manifest = Manifest(
        "s", 8, Preprocess(), "pixels", "MIT", 1, "abc", [variant], measured=measured
    )
    card = export_card(manifest, "# Title\n\n```sh\n# no heading\n```\n\n## Part\n")
    assert card.endswith("### Title\n\n```sh\n# no heading\n```\n\n#### Part\n")
    assert "(n, 224, 224, 3) uint8 RGB" in card
