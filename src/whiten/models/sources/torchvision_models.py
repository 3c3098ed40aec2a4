"""`torchvision:` any classification backbone of torchvision."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.vision_transformer import interpolate_embeddings

from whiten.errors import ConfigError, TeacherError, nearest
from whiten.models.sources.hub import hub_access, seeded
from whiten.models.teacher import UNKNOWN_LICENCE, Teacher, first_line, positive_int, probe_dim
from whiten.models.uri import TeacherURI
from whiten.models.weights import hash_state, load_into, load_state_dict, refuse_lone_state
from whiten.views.rendering import Preprocess

UNSTATED_LICENCE = "unstated; torchvision's code is BSD-3-Clause"

# In these files, the input is ImageNet-normalised and the network converts it. Auxiliary
# classifiers are for training only.
_INCEPTION = {"transform_input": True, "aux_logits": False, "init_weights": True}
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
# Files of old DenseNets have norm.1 where the network has norm1.
_OLD_DENSE_KEY = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(\d\.)")


def list_names() -> list[str]:
    names: list[str] = torchvision.models.list_models(module=torchvision.models)
    return names


def open_uri(uri: TeacherURI) -> Teacher:
    """Open a torchvision classifier up to its last layer.

    The layer that outputs class scores is replaced by the identity; preceding layers, such as the
    hidden layers of VGG, stay.

    Options: `size` (input side in pixels), `weights` (a local safetensors or torch file), `state`
    (which of its weights, such as `teacher`, where several fit) and `pretrained` (1 downloads
    torchvision's best weights, the default without `weights`; the name of a set, such as
    IMAGENET1K_V1, downloads that; 0 draws random weights, always the same). With `weights`,
    `pretrained` only selects the preprocessing.

    Raises:
        ConfigError: a name or option is unknown.
        TeacherError: the weights cannot be downloaded, or do not match.
    """
    options = uri.take(
        size=(positive_int, None), weights=(str, ""), state=(str, ""), pretrained=(str, "1")
    )
    refuse_lone_state(uri)
    name, file = uri.target, options["weights"]
    if name not in list_names():
        hint = nearest(name, list_names()) or ": torchvision.models.list_models() lists them"
        raise ConfigError(f"torchvision has no model {name!r}{hint}")
    recipe = _find_recipe(uri, options["pretrained"])
    published = recipe or torchvision.models.get_model_weights(name).DEFAULT
    preprocess = read_preprocess(published, options["size"])
    module = _build(uri, preprocess.size[0])
    classifier = _cut_classifier(module, len(published.meta["categories"]), uri)
    state = None
    if file:
        state = load_state_dict(file, module.state_dict(), options["state"])
    elif recipe:
        state = _download(uri, recipe)
    if state is not None:
        state = {_OLD_DENSE_KEY.sub(r"\1\2", key): value for key, value in state.items()}
        if "encoder.pos_embedding" in state and hasattr(module, "patch_size"):
            state = _resample(state, module)
        source = file or str(published)
        load_into(module, state, source, ignore=(classifier + ".", *_AUXILIARY))
    licence = published.meta.get("license", UNSTATED_LICENCE)
    return Teacher(
        uri=str(uri),
        name=name,
        dim=probe_dim(module, preprocess, str(uri)),
        preprocess=preprocess,
        weights_hash=hash_state(module.state_dict()),
        forward=module,
        licence=licence if recipe and not file else UNKNOWN_LICENCE,
        module=module,
    )


def read_preprocess(recipe: Any, size: int | None) -> Preprocess:
    """Return the preprocessing that torchvision evaluated a set of weights with."""
    preset = recipe.transforms()
    crop = preset.crop_size[0]
    return Preprocess(
        size=(size or crop, size or crop),
        crop_fraction=crop / preset.resize_size[0],
        interpolation=preset.interpolation.value,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )


def _find_recipe(uri: TeacherURI, text: str) -> Any:
    """Return a set of weights of the model by name, or None."""
    if text.lower() in ("0", "false", "no", "off"):
        return None
    sets = torchvision.models.get_model_weights(uri.target)
    if text.lower() in ("1", "true", "yes", "on"):
        return sets.DEFAULT
    names = list(sets.__members__)
    if text not in names:
        hint = nearest(text, names) or f": it has {', '.join(names)}"
        raise ConfigError(f"torchvision has no weights {text!r} for {uri.target}{hint}")
    return sets[text]


def _build(uri: TeacherURI, size: int) -> nn.Module:
    options: dict[str, Any] = {}
    if uri.target.startswith("vit_"):
        options["image_size"] = size
    elif uri.target in ("googlenet", "inception_v3"):
        options = _INCEPTION
    try:
        with seeded():
            module: nn.Module = torchvision.models.get_model(uri.target, weights=None, **options)
    except Exception as error:  # a size that is no multiple of the patch size
        raise TeacherError(f"cannot build {uri} ({first_line(error)})") from error
    return module.eval()


def _cut_classifier(module: nn.Module, classes: int, uri: TeacherURI) -> str:
    """Replace the last layer with one output per class by the identity; return its name."""
    layers: list[str] = [
        name
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and len(layer.weight) == classes
    ]
    if not layers:
        raise TeacherError(f"{uri} has no classifier to cut off: choose another model")
    module.set_submodule(layers[-1], nn.Identity())
    return layers[-1]


def _download(uri: TeacherURI, recipe: Any) -> dict[str, Tensor]:
    cached = Path(torch.hub.get_dir(), "checkpoints", Path(recipe.url).name)
    remedy = (
        f"give a local file with ?weights=FILE (from {recipe.url}), or ?pretrained=0 for random "
        "weights"
    )
    with hub_access(uri, remedy, server=recipe.url, is_local=cached.is_file()) as is_online:
        if not is_online and not cached.is_file():
            raise ConnectionError
        state: dict[str, Tensor] = recipe.get_state_dict(
            progress=True, check_hash=True, weights_only=True
        )
    return state


def _resample(state: dict[str, Tensor], module: Any) -> dict[str, Tensor]:
    """Resample position embeddings to the module's input size."""
    try:
        return dict(interpolate_embeddings(module.image_size, module.patch_size, dict(state)))
    except Exception as error:  # no square grid of patches
        raise TeacherError(
            f"these weights do not fit {module.image_size} px ({first_line(error)}): "
            "try another ?size="
        ) from error
