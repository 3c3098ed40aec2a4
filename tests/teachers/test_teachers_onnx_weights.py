"""ONNX graphs with weights in other files: each is found and counts, damage is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.testing import assert_allclose
from onnx import helper, numpy_helper

from onnx_graphs import (
    FLOAT,
    MEAN,
    PLAIN,
    PROJECT,
    WEIGHT,
    beside,
    check,
    colours,
    embed,
    save,
)
from whiten.errors import TeacherError
from whiten.models.registry import open_network
from whiten.models.sources import onnx_graph
from whiten.utils.arrays import normalize_rows


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
