"""Checkpoints as trainers write them: the weights are found by what the network wants."""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from teacher_helpers import random_state
from whiten.errors import ConfigError, TeacherError
from whiten.models.registry import open_network
from whiten.models.weights import load_state_dict

State = dict[str, Tensor]
ARCHITECTURE = "test_resnet"


def network(seed: int = 0) -> State:
    import timm

    module: nn.Module = timm.create_model(ARCHITECTURE, pretrained=False, num_classes=0)
    return {name: value.contiguous() for name, value in random_state(module, seed).items()}


def under(prefix: str, state: State) -> State:
    return {f"{prefix}{name}": value for name, value in state.items()}


X = torch.ones(3, 4)
HEAD = {"head.0.weight": torch.ones(8, 4), "head.0.bias": torch.ones(8)}
LAYOUTS: dict[str, Callable[[State], Any]] = {
    "plain": lambda s: s,
    "ordered": OrderedDict,
    "state_dict": lambda s: {"state_dict": s, "epoch": 3},
    "model_state_dict": lambda s: {"model_state_dict": s, "optimizer_state_dict": momenta(s)},
    "model_state": lambda s: {"model_state": s},
    "model": lambda s: {"model": s, "scaler": {"scale": 1.0}},
    "net": lambda s: {"net": s, "acc": 0.9},
    "network": lambda s: {"network": s},
    "weights": lambda s: {"weights": s},
    "params": lambda s: {"params": s},
    "ema alone": lambda s: {"ema": s},
    "module": lambda s: {"module": s},
    "nested": lambda s: {"checkpoint": {"trainer": {"model": s}}},
    "DataParallel": lambda s: {"state_dict": under("module.", s)},
    "compiled": lambda s: under("_orig_mod.", s),
    "compiled parts": lambda s: {
        k.replace("layer1.", "layer1._orig_mod."): v for k, v in s.items()
    },
    "compiled and parallel": lambda s: under("module._orig_mod.", s),
    "Lightning": lambda s: {"state_dict": under("model.", s) | under("criterion.", HEAD)},
    "backbone": lambda s: {"state_dict": under("backbone.", s) | under("decode.", HEAD)},
    "encoder": lambda s: under("encoder.", s) | under("projector.", HEAD),
    "Lightning of a wrapper": lambda s: {"state_dict": under("net.module.backbone.", s)},
    "student alone": lambda s: {"student": under("module.backbone.", s) | HEAD},
    "SwAV": lambda s: under("module.", s | under("projection_", HEAD) | {"prototypes.weight": X}),
    "with a projector": lambda s: s | {"projector.0.weight": X, "predictor.0.weight": X},
    "a list": lambda s: [s, {"epoch": 3}],
    "a tuple": lambda s: ("test_resnet", {"model": s}),
    "averaged": lambda s: under("module.", s) | {"n_averaged": torch.tensor(3)},
    "equal twice": lambda s: {"state_dict": s, "state_dict_ema": dict(s)},
    "of a hub": lambda s: {"state_dict": under("base_encoder.", s), "queue": torch.ones(4, 9)},
}


def momenta(state: State) -> dict[str, Any]:
    return {"state": {n: {"exp_avg": v} for n, v in enumerate(state.values())}, "param_groups": []}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_trainers_load(layout: str, tmp_path: Path) -> None:
    state = network()
    torch.save(state, tmp_path / "plain.pth")
    torch.save(LAYOUTS[layout](state), tmp_path / "w.pth")
    expected = open_network(f"timm:{ARCHITECTURE}?weights={tmp_path / 'plain.pth'}")
    found = open_network(f"timm:{ARCHITECTURE}?weights={tmp_path / 'w.pth'}")
    assert found.module is not None
    for name, value in found.module.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=0, atol=0)
    assert found.fingerprint() == expected.fingerprint()


TWO: dict[str, tuple[Callable[[State, State], Any], str, str]] = {
    "DINO": (
        lambda s, t: {
            "student": under("module.backbone.", s) | under("module.head.", HEAD),
            "teacher": under("backbone.", t) | under("head.", HEAD),
        },
        "student.module.backbone",
        "teacher",
    ),
    "one dict": (
        lambda s, t: {"state_dict": under("student.backbone.", s) | under("teacher.backbone.", t)},
        "student",
        "state_dict.teacher.backbone",
    ),
    "MoCo": (
        lambda s, t: {"state_dict": under("module.encoder_q.", s) | under("module.encoder_k.", t)},
        "encoder_q",
        "encoder_k",
    ),
    "MoCo v3": (
        lambda s, t: under("module.base_encoder.", s) | under("module.momentum_encoder.", t),
        "base_encoder",
        "momentum_encoder",
    ),
    "average": (lambda s, t: {"model": s, "model_ema": t}, "model", "model_ema"),
    "timm": (lambda s, t: {"state_dict": s, "state_dict_ema": t}, "state_dict", "state_dict_ema"),
    "at the top": (lambda s, t: {**s, "ema": t}, "root", "ema"),
}


@pytest.mark.parametrize("layout", TWO)
def test_where_two_would_do_it_asks(layout: str, tmp_path: Path) -> None:
    one, other = network(1), network(2)
    make, first, second = TWO[layout]
    path = tmp_path / "w.pth"
    torch.save(make(one, other), path)
    with pytest.raises(
        TeacherError, match=r"holds 2 sets of weights that fit: .*\?state="
    ) as asked:
        open_network(f"timm:{ARCHITECTURE}?weights={path}")
    offered = str(asked.value).rpartition("choose with ")[2].split(" or ")
    for choice, state in ((first, one), (second, other)):
        uris = [f"?state={choice}", next(way for way in offered if f".{choice}." in dotted(way))]
        for uri in uris:
            module = open_network(f"timm:{ARCHITECTURE}{uri}&weights={path}").module
            assert module is not None
            torch.testing.assert_close(
                module.state_dict()["conv1.0.weight"], state["conv1.0.weight"]
            )
    with pytest.raises(TeacherError, match="has no weights 'momentum'"):
        open_network(f"timm:{ARCHITECTURE}?state=momentum&weights={path}")


def dotted(way: str) -> str:
    return f".{way.removeprefix('?state=')}."


def test_a_missing_or_foreign_part_is_refused_as_ever(tmp_path: Path) -> None:
    state = network()
    del state["conv1.0.weight"]
    torch.save({"model_state_dict": under("backbone.", state)}, tmp_path / "w.pth")
    with pytest.raises(TeacherError, match=r"lacks conv1\.0\.weight: .* another architecture"):
        open_network(f"timm:{ARCHITECTURE}?weights={tmp_path / 'w.pth'}")
    torch.save({"epoch": 3, "lr": 0.1}, tmp_path / "w.pth")
    with pytest.raises(TeacherError, match="holds no state dict"):
        open_network(f"timm:{ARCHITECTURE}?weights={tmp_path / 'w.pth'}")


@pytest.mark.parametrize("scheme", [f"timm:{ARCHITECTURE}", "torchvision:resnet18"])
def test_a_choice_without_a_file_is_refused(scheme: str) -> None:
    """Also of open_clip, see its own tests."""
    with pytest.raises(ConfigError, match=r"state=.ema. of .*: add &weights=FILE, or leave it out"):
        open_network(f"{scheme}?pretrained=0&state=ema")


def test_torchvision_takes_them_too(tmp_path: Path) -> None:
    import torchvision

    state = random_state(torchvision.models.resnet18(), 0)
    torch.save({"net": under("module.", state)}, tmp_path / "w.pth")
    found = open_network(f"torchvision:resnet18?weights={tmp_path / 'w.pth'}")
    assert found.module is not None
    torch.testing.assert_close(found.module.state_dict()["bn1.bias"], state["bn1.bias"])


def test_shards_are_read_by_their_index(tmp_path: Path) -> None:
    state = network()
    names = sorted(state)
    half = len(names) // 2
    shards = {"a.safetensors": names[:half], "b.safetensors": names[half:]}
    for file, part in shards.items():
        save_file({name: state[name] for name in part}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {n: f for f, part in shards.items() for n in part}}))
    found = open_network(f"timm:{ARCHITECTURE}?weights={index}")
    save_file(state, tmp_path / "whole.safetensors")
    whole = open_network(f"timm:{ARCHITECTURE}?weights={tmp_path / 'whole.safetensors'}")
    assert found.fingerprint() == whole.fingerprint()
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(TeacherError, match=r"b\.safetensors does not exist"):
        load_state_dict(index)


@pytest.mark.slow
@pytest.mark.parametrize("beside", ["namespace", "module"])
def test_what_else_is_pickled_is_refused_with_the_command_that_helps(
    beside: str, tmp_path: Path
) -> None:
    """The command keeps the weights alone, and is run as it stands."""
    state = network()
    folder = tmp_path / "it's a folder"
    folder.mkdir()
    path = folder / "w.pth"
    linear = nn.Linear(2, 2)
    more = {"args": argparse.Namespace(lr=0.1)} if beside == "namespace" else {"head": linear}
    torch.save({"model": under("module.", state), **more, "epoch": 1}, path)
    with pytest.raises(TeacherError, match="if you trust it, keep its weights with `") as refused:
        open_network(f"timm:{ARCHITECTURE}?weights={path}")
    assert "\n" not in str(refused.value)
    command = str(refused.value).partition("`")[2].rpartition("`")[0]
    python, *rest = shlex.split(command)
    assert python == "python"
    subprocess.run([sys.executable, *rest], check=True, timeout=120)
    kept = open_network(f"timm:{ARCHITECTURE}?weights={folder / 'w.weights.pth'}")
    assert kept.module is not None
    torch.testing.assert_close(kept.module.state_dict()["conv1.0.weight"], state["conv1.0.weight"])
