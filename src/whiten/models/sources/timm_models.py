"""`timm:` any backbone of PyTorch Image Models."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import timm
from timm.data import resolve_data_config
from torch import Tensor

from whiten.errors import ConfigError, TeacherError, nearest
from whiten.models.sources.hub import hub_access, seeded
from whiten.models.teacher import UNKNOWN_LICENCE, Teacher, first_line, positive_int, probe_dim
from whiten.models.uri import TeacherURI
from whiten.models.weights import hash_state, load_into, load_state_dict, refuse_lone_state
from whiten.views.rendering import RESAMPLING, Preprocess

POOLS = ("model", "avg", "gem")
GEM_POWER = 3.0  # Radenović et al., TPAMI 2019, eq. 2; the usual value if not learnt


def list_names() -> list[str]:
    names: list[str] = timm.list_pretrained()
    return names


def open_uri(uri: TeacherURI) -> Teacher:
    """Open a timm model without its classifier.

    Options: `size` (input side in pixels), `weights` (a local safetensors or torch file), `state`
    (which of its weights, such as `teacher`, where several fit), `pretrained` (1 downloads the
    published weights, the default without `weights`; 0 draws random ones, always the same), `fit`
    (crop or squash; by default the model's own) and `pool` (`model` is the model's own pooling and
    head up to the classifier, `avg` and `gem` pool its last features).

    Raises:
        ConfigError: a name or option is unknown.
        TeacherError: the weights cannot be downloaded, or do not match.
    """
    options = uri.take(
        size=(positive_int, None),
        weights=(str, ""),
        state=(str, ""),
        pretrained=(bool, True),
        fit=(str, ""),
        pool=(str, "model"),
    )
    refuse_lone_state(uri)
    pool = options["pool"]
    if pool not in POOLS:
        raise ConfigError(f"pool={pool!r} of {uri} must be one of {', '.join(POOLS)}")
    is_published = options["pretrained"] and not options["weights"]
    backbone = create_backbone(
        uri,
        size=options["size"],
        weights=options["weights"],
        state=options["state"],
        pretrained=is_published,
    )
    cfg = backbone.pretrained_cfg
    preprocess = read_preprocess(backbone, options["size"])
    preprocess = preprocess.fitted(options["fit"] or preprocess.fit)
    forward = backbone if pool == "model" else partial(_pool_features, backbone, pool)
    # A local file counts as the published one if the name has the tag of those weights.
    has_tag = is_published or (options["weights"] and "." in uri.target)
    return Teacher(
        uri=str(uri),
        name=uri.target,
        dim=probe_dim(forward, preprocess, str(uri)),
        preprocess=preprocess,
        weights_hash=hash_state(backbone.state_dict()),
        forward=forward,
        licence=(cfg.get("license") if has_tag else None) or UNKNOWN_LICENCE,
        module=backbone,
        readout="" if pool == "model" else pool,
        # Architectures with equal weights differ in activation or padding, as those with tf_ do.
        details=(f"architecture={cfg['architecture']}",),
    )


def create_backbone(
    uri: TeacherURI,
    *,
    size: int | None = None,
    weights: str = "",
    state: str = "",
    pretrained: bool = True,
) -> Any:
    """Build the timm module that `uri` names, without classifier, in evaluation mode.

    Args:
        size: input side in pixels, or None for the model's own.
        weights: a local file; nothing is downloaded.
        state: which of its weights to take where several fit.
        pretrained: download the published weights; otherwise they are random, always the same.
    """
    name = _check_name(uri)
    options: dict[str, Any] = {"num_classes": 0}
    # Networks with position embeddings have a fixed size; building resamples the embeddings.
    if size is not None and _cfg(name).get("fixed_input_size"):
        options["img_size"] = size
    if pretrained and not weights:
        remedy = "give a local file with ?weights=FILE, or ?pretrained=0 for random weights"
        with hub_access(uri, remedy), seeded():
            model = timm.create_model(name, pretrained=True, **options)
    else:
        try:
            with seeded():
                model = timm.create_model(name, pretrained=False, **options)
        except Exception as error:  # a size that the architecture cannot have
            raise TeacherError(f"cannot build {uri} ({first_line(error)})") from error
    classifiers = _classifier_names(model)
    if any(key.startswith(classifiers) for key in model.state_dict()):
        raise TeacherError(
            f"{uri} cannot be separated from its classifier, whose scores are no embedding: "
            "choose another model"
        )
    if weights:
        chosen = load_state_dict(weights, model.state_dict(), state)
        converted = _convert(chosen, model, weights)
        # Keys that only the model with classifier has, and their siblings, belong to its head.
        heads = tuple(classifier.split(".")[0] + "." for classifier in classifiers)
        load_into(model, converted, weights, ignore=heads)
    return model.eval()


def read_preprocess(model: Any, size: int | None) -> Preprocess:
    """Return the preprocessing of the model's own configuration."""
    config = resolve_data_config({}, model=model)
    interpolation = config["interpolation"]
    preprocess = Preprocess(
        size=tuple(config["input_size"][1:]),
        fit="squash" if config["crop_mode"] == "squash" else "crop",
        crop_fraction=config["crop_pct"],
        # `random` is an augmentation for training.
        interpolation=interpolation if interpolation in RESAMPLING else "bicubic",
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )
    return preprocess if size is None else preprocess.resized(size)


def _check_name(uri: TeacherURI) -> str:
    name = uri.target
    architecture, _, tag = name.partition(".")
    if timm.is_model(architecture):
        tagged = timm.list_pretrained(f"{architecture}.*")
        if not tag or name in tagged:
            return name
        choices = tagged
    else:
        choices = timm.list_pretrained() if tag else timm.list_models()
    hint = nearest(name, choices) or ": timm.list_models() lists them"
    raise ConfigError(f"timm has no model {name!r}{hint}")


def _cfg(name: str) -> dict[str, Any]:
    cfg = timm.get_pretrained_cfg(name)
    return cfg.to_dict() if cfg else {}


def _classifier_names(model: Any) -> tuple[str, ...]:
    """Return the names of the classifier layers, each with a trailing dot."""
    names = model.pretrained_cfg.get("classifier") or ()
    return tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))


def _convert(state: dict[str, Tensor], model: Any, source: str) -> dict[str, Tensor]:
    """Apply timm's conversion of older and foreign checkpoints, and of other input sizes."""
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return state
    try:
        converted: dict[str, Tensor] = convert(state, model)
    except Exception as error:  # it expects keys that other architectures lack
        raise TeacherError(
            f"{source} does not fit {type(model).__name__} ({first_line(error)}): these weights "
            "belong to another architecture"
        ) from error
    return converted


def _pool_features(backbone: Any, kind: str, images: Tensor) -> Tensor:
    """Pool a backbone's last features over positions, by average or GeM: (n, d)."""
    features: Tensor = backbone.forward_features(images)
    if features.ndim == 4:
        is_last = str(getattr(backbone, "output_fmt", "NCHW")) == "NHWC"
        features = features.flatten(1, 2) if is_last else features.flatten(2).mT
    elif kind == "gem":  # GeM clips negative values, which tokens may have
        raise ConfigError("pool=gem needs feature maps; a transformer takes pool=avg")
    else:
        features = features[:, getattr(backbone, "num_prefix_tokens", 0) :]
    if kind == "gem":
        return features.clamp(min=1e-6).pow(GEM_POWER).mean(1).pow(1 / GEM_POWER)
    return features.mean(1)
