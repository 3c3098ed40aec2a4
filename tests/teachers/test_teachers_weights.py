"""Weight files: nothing in them is run, and they fit or are refused."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from teacher_helpers import Explosive
from whiten.errors import TeacherError
from whiten.models.registry import open_teacher
from whiten.models.weights import load_into, load_state_dict


@pytest.mark.parametrize("scheme", ["timm:test_resnet", "torchvision:resnet18"])
def test_weights_that_run_code_are_refused(scheme: str, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    for name, save in (("w.pth", torch.save), ("w.pt", pickle_plainly)):
        save({"weight": Explosive(mark)}, tmp_path / name)
        with pytest.raises(TeacherError, match="holds tensors only") as caught:
            open_teacher(f"{scheme}?weights={tmp_path / name}")
        assert "\n" not in str(caught.value)
    assert not mark.exists()


def pickle_plainly(value: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(value))


@pytest.mark.parametrize("scheme", ["timm:test_resnet", "timm:test_vit", "torchvision:resnet18"])
def test_weights_of_another_model_are_refused(scheme: str, tmp_path: Path) -> None:
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "w.pth")
    with pytest.raises(TeacherError, match="another architecture"):
        open_teacher(f"{scheme}?weights={tmp_path / 'w.pth'}")
    with pytest.raises(TeacherError, match=r"missing\.pth does not exist"):
        open_teacher(f"{scheme}?weights={tmp_path / 'missing.pth'}")
    (tmp_path / "empty.pth").write_bytes(b"")
    with pytest.raises(TeacherError, match="cannot read weights"):
        open_teacher(f"{scheme}?weights={tmp_path / 'empty.pth'}")


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"conv.weight": torch.full((100,), 1.5)}, path)
    assert load_state_dict(path)["conv.weight"].sum() == 150
    content = bytearray(path.read_bytes())
    content[content.index(torch.full((100,), 1.5).numpy().tobytes()) + 40] ^= 1
    path.write_bytes(content)
    with pytest.raises(TeacherError, match=r"data/0 does not have the checksum .*: it must be"):
        load_state_dict(path)


def test_load_into_wants_all_but_step_counters() -> None:
    module = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    state = {name: torch.full_like(value, 2) for name, value in module.state_dict().items()}
    del state["1.num_batches_tracked"]  # as in files from before PyTorch 0.4.1
    load_into(module, state | {"fc.weight": torch.zeros(1)}, "file", ignore=("fc.",))
    assert module[0].bias.tolist() == [2, 2]
    with pytest.raises(TeacherError, match=r"has unknown fc_norm\.weight"):
        load_into(module, state | {"fc_norm.weight": torch.zeros(1)}, "file", ignore=("fc.",))
    with pytest.raises(TeacherError, match=r"has unknown fc\.weight"):
        load_into(module, state | {"fc.weight": torch.zeros(1)}, "file")
    del state["1.running_mean"]
    with pytest.raises(TeacherError, match=r"lacks 1\.running_mean"):
        load_into(module, state, "file")
