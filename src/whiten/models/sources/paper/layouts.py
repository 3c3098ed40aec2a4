"""Layouts of the published files: their names for the tensors of the networks."""

from __future__ import annotations

import re
from collections.abc import Iterable

from whiten.models.sources.paper.checkpoints import Layout

# pycls' names for the parts of a bottleneck block -> torchvision's.
_PYCLS_PARTS = {
    "conv1": "f.a",
    "bn1": "f.a_bn",
    "conv2": "f.b",
    "bn2": "f.b_bn",
    "conv3": "f.c",
    "bn3": "f.c_bn",
    "downsample.0": "proj",
    "downsample.1": "bn",
}
_PYCLS_STEM = {"conv1": "stem.conv", "bn1": "stem.bn"}
_BLOCK = re.compile(r"layer(\d)\.(\d+)\.(.+)\.(\w+)")

# Positions in the sequence of torchvision's layers, with ReLU and pooling between.
_SEQUENCE = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}

_SOLAR_PARTS = {
    "conv1": "conv1.0",
    "bn1": "conv1.1",
    "layer1": "conv2_x.2",
    "layer2": "conv3_x",
    "layer3": "conv4_x",
    "layer4": "conv5_x",
}


def _gem(own: str) -> str:
    return own.removeprefix("trunk.").replace("head.", "fc.")


def _gem_original(own: str) -> str:
    if own.startswith("head."):
        return own.replace("head.", "whiten.")
    part, _, rest = own.removeprefix("trunk.").partition(".")
    return f"features.{_SEQUENCE[part]}.{rest}"


def _ap_gem(own: str) -> str:
    return "module." + _gem(own)


def _solar(own: str) -> str:
    if own.startswith("head."):
        return own.replace("head.", "whiten.")
    part, _, rest = own.removeprefix("trunk.").partition(".")
    return f"features.{_SOLAR_PARTS.get(part, part)}.{rest}"


def _pycls(own: str) -> str:
    inner = own.removeprefix("trunk.")
    if block := _BLOCK.fullmatch(inner):
        stage, number, part, tensor = block.groups()
        return f"globalmodel.s{stage}.b{int(number) + 1}.{_PYCLS_PARTS[part]}.{tensor}"
    part, _, tensor = inner.partition(".")
    return f"globalmodel.{_PYCLS_STEM[part]}.{tensor}"


def _delg(own: str) -> str:
    if own.startswith("head."):
        return own.replace("head.", "globalmodel.head.fc.")
    return _pycls(own)


def _dolg(own: str) -> str:
    if own.startswith("trunk."):
        return _pycls(own)
    return re.sub("^local", "localmodel", own)


def _mocov3(own: str) -> str:
    if own.startswith("head."):
        _, number, tensor = own.split(".")
        is_predictor = int(number) >= 5
        where = f"predictor.{int(number) - 5}" if is_predictor else f"base_encoder.fc.{number}"
        return f"module.{where}.{tensor}"
    return own.replace("trunk.", "module.base_encoder.")


def _barlowtwins(own: str) -> str:
    if own.startswith("head.7."):
        return own.replace("head.7.", "module.bn.")
    return own.replace("trunk.", "module.backbone.").replace("head.", "module.projector.")


_LAYOUTS = {
    "resnet101_gem": Layout("state_dict", _gem),
    "resnet101_ap_gem": Layout("state_dict", _ap_gem, {"module.adpool.p": (1,)}),
    "resnet101_solar": Layout("state_dict", _solar, {"pool.p": (1,)}),
    # The local branch does not affect the embedding.
    "resnet101_delg": Layout(
        "model_state", _delg, {"globalmodel.head.pool.p": (1,)}, may_have=r"(?!globalmodel\.)"
    ),
    "resnet101_dolg": Layout(
        "model_state",
        _dolg,
        {"pool_g.p": (1,), "pool1.p": (1,), "desc_cls.weight": (81313, 512), "desc_cls.t": (1,)},
    ),
    "mocov3": Layout(
        "state_dict",
        _mocov3,
        may_have=r"module\.(base_encoder\.fc|momentum_encoder|predictor)\.",
    ),
    "barlowtwins": Layout("model", _barlowtwins, may_have=r"module\.(projector|bn)\."),
}

# GeM's authors publish the same weights under the names of their own network.
_GEM_ORIGINAL = Layout("state_dict", _gem_original, {"pool.p": (1,)})


def holder_of(name: str) -> str:
    """Return the entry of a teacher's file that holds the tensors."""
    return _LAYOUTS[name].holder


def find_layout(name: str, keys: Iterable[str]) -> Layout:
    """Return the layout of a teacher's file with these keys."""
    if name == "resnet101_gem" and any(key.startswith("features.") for key in keys):
        return _GEM_ORIGINAL
    return _LAYOUTS[name]
