"""`hf:` a vision model in the format of Hugging Face transformers, from the hub or a folder."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from whiten.errors import ConfigError, MissingExtraError, TeacherError
from whiten.models.sources.hub import hub_access, seeded
from whiten.models.teacher import UNKNOWN_LICENCE, Teacher, positive_int, probe_dim
from whiten.models.uri import TeacherURI
from whiten.models.weights import hash_state
from whiten.utils.hashing import fingerprint
from whiten.views.rendering import Preprocess

POOLS = ("cls", "avg", "pooler")
_PIL_NAMES = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}


def open_uri(uri: TeacherURI) -> Teacher:
    """Open a folder that `save_pretrained` wrote, or a repository of the hub.

    Image-text models (CLIP, SigLIP) embed by their image features. Others use their own pooled
    output if it was trained, else the class token; a classifier is dropped. Code from a repository
    is never run.

    Options: `size` (input side in pixels) and `pool` (`cls` is the class token, `avg` the average
    of the patches, `pooler` the model's pooled output).

    Raises:
        ConfigError: an option is unknown, or the model lacks this pooling.
        TeacherError: the model cannot be downloaded or loaded.
        MissingExtraError: transformers is not installed.
    """
    transformers = _library()
    options = uri.take(size=(positive_int, None), pool=(str, ""))
    pool = options["pool"]
    if pool and pool not in POOLS:
        raise ConfigError(f"pool={pool!r} of {uri} must be one of {', '.join(POOLS)}")
    folder = Path(uri.target)
    is_local = folder.is_dir()
    if not is_local and (folder.is_absolute() or uri.target[0] in ".~" or len(folder.parts) > 2):
        raise TeacherError(f"folder {folder} does not exist: write hf:FOLDER or hf:OWNER/MODEL")
    remedy = (
        "the folder must hold config.json, preprocessor_config.json and model.safetensors, as "
        "save_pretrained writes them"
        if is_local
        else "give a local folder, hf:FOLDER; a gated model first needs `hf auth login`"
    )
    with hub_access(uri, remedy, is_local=is_local), _quiet(transformers), seeded():
        processor = transformers.AutoImageProcessor.from_pretrained(
            uri.target, trust_remote_code=False
        )
        model, info = transformers.AutoModel.from_pretrained(
            uri.target, trust_remote_code=False, output_loading_info=True
        )
        licence = _licence(folder / "README.md" if is_local else uri.target)
    _check_weights(model, info, uri)
    preprocess = read_preprocess(processor, options["size"], uri)
    forward, readout = _choose_readout(model.float().eval(), pool, uri)
    return Teacher(
        uri=str(uri),
        name=folder.name,
        dim=probe_dim(forward, preprocess, str(uri)),
        preprocess=preprocess,
        weights_hash=hash_state(model.state_dict()),
        forward=forward,
        licence=licence,
        module=model,
        readout=readout,
        details=(f"config={_hash_config(model.config)}",),
    )


# Entries of a configuration that no embedding depends on.
_IDLE = {"_name_or_path", "transformers_version", "torch_dtype", "dtype", "architectures"}
_IDLE |= {"id2label", "label2id", "problem_type", "name_or_path"}


def _hash_config(config: Any) -> str:
    """Hash what differs from the defaults: activations, heads and epsilons are no weights."""
    facts = {k: v for k, v in config.to_diff_dict().items() if k not in _IDLE}
    return fingerprint(json.loads(json.dumps(facts, default=str)))


def read_preprocess(processor: Any, side: int | None, uri: TeacherURI) -> Preprocess:
    """Return the preprocessing of the model's image processor.

    Raises:
        TeacherError: the processor states no input size.
    """
    size = dict(getattr(processor, "size", None) or {})
    crop = dict(getattr(processor, "crop_size", None) or {})
    edge = size.get("shortest_edge")
    # Some processors stretch the image before cropping; here the aspect ratio is kept.
    is_cropped = bool(getattr(processor, "do_center_crop", False) and crop)
    kept = getattr(processor, "crop_pct", None) if edge and not is_cropped else None
    fraction = 1.0
    fit: Literal["crop", "squash"] = "crop"
    if is_cropped:
        height, width = crop["height"], crop["width"]
        fraction = min(1.0, height / (edge or size.get("height") or height))
    elif "height" in size and "width" in size:
        height, width, fit = size["height"], size["width"], "squash"
    elif edge:
        height = width = edge
        if kept and edge < 384:  # the rule of ConvNeXt's processor
            fraction = kept
        elif kept:
            fit = "squash"
    else:
        raise TeacherError(
            f"the image processor of {uri} has no fixed size ({size or 'none'}): set size in its "
            "preprocessor_config.json to a height and a width"
        )
    # Some processors only rescale, and have no mean.
    is_normalized = getattr(processor, "do_normalize", hasattr(processor, "image_mean"))
    mean = tuple(processor.image_mean) if is_normalized else (0.0,) * 3
    std = tuple(processor.image_std) if is_normalized else (1.0,) * 3
    is_rescaled = getattr(processor, "do_rescale", True)
    resample = 3 if (code := getattr(processor, "resample", None)) is None else int(code)
    preprocess = Preprocess(
        size=(height, width),
        fit=fit,
        crop_fraction=fraction,
        interpolation=_PIL_NAMES.get(resample, "bilinear"),
        mean=mean,
        std=std,
        white=255.0 * processor.rescale_factor if is_rescaled else 255.0,
        channels="bgr" if getattr(processor, "do_flip_channel_order", False) else "rgb",
    )
    return preprocess if side is None else preprocess.resized(side)


def _library() -> Any:
    try:
        import transformers
    except ImportError:
        raise MissingExtraError("hf: teachers", "hf") from None
    return transformers


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Silence the library's report of missing weights: `_check_weights` judges them."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)


def _licence(card: str | Path) -> str:
    from huggingface_hub import ModelCard

    try:
        facts = ModelCard.load(card).data.to_dict()
    except Exception:  # no card, or invalid YAML; nothing depends on it
        return UNKNOWN_LICENCE
    name = facts.get("license") or UNKNOWN_LICENCE
    return str(facts.get("license_name") or name) if name == "other" else str(name)


def _check_weights(model: Any, info: dict[str, Any], uri: TeacherURI) -> None:
    """Remove an untrained pooler, as classifiers have; refuse other missing weights."""
    missing = sorted(info["missing_keys"])
    others = [key for key in missing if not key.startswith("pooler.")]
    if others:
        raise TeacherError(
            f"{uri} lacks {', '.join(others[:3])}{' …' if len(others) > 3 else ''}: "
            "its weights are not those of its config.json"
        )
    if missing:
        model.pooler = None


def _choose_readout(
    model: Any, pool: str, uri: TeacherURI
) -> tuple[Callable[[Tensor], Tensor], str]:
    """Return the function from images to embeddings, and the name of its readout if it varies."""
    is_two_towers = hasattr(model, "get_image_features")
    run = model.get_image_features if is_two_towers else model.forward
    # Other image sizes than in training need resampled position embeddings.
    settings = (
        {"interpolate_pos_encoding": True}
        if "interpolate_pos_encoding" in inspect.signature(run).parameters
        else {}
    )
    if is_two_towers:
        if pool:
            raise ConfigError(f"{uri} pools its image features itself: leave out ?pool=")
        model.text_model = None  # unused, and the larger half of the memory

        def image_features(images: Tensor) -> Tensor:
            out = run(images, **settings)
            embeddings: Tensor = out if isinstance(out, Tensor) else out.pooler_output
            return embeddings

        return image_features, ""
    if hasattr(model.config, "mask_ratio"):
        model.config.mask_ratio = 0.0  # masked autoencoders would hide random patches
    patch = getattr(model.config, "patch_size", None)

    def embed(images: Tensor) -> Tensor:
        out = run(images, **settings)
        pooled = getattr(out, "pooler_output", None)
        if pool == "pooler" or (not pool and pooled is not None):
            if pooled is None:
                raise ConfigError(f"{uri} has no trained pooler: take pool=cls or pool=avg")
            flat: Tensor = pooled.flatten(1)
            return flat
        states: Tensor = out.last_hidden_state
        if states.ndim == 4:  # a feature map
            if pool == "cls":
                raise ConfigError(f"{uri} has no class token: take pool=avg")
            return states.mean(dim=(2, 3))
        grid = (images.shape[-2] // patch) * (images.shape[-1] // patch) if patch else 0
        extra = states.shape[1] - grid if grid and states.shape[1] > grid else 0
        if pool == "avg":
            return states[:, extra:].mean(dim=1)
        if patch and not extra:  # the first of them is a corner of the image
            raise ConfigError(f"{uri} has no class token: take pool=avg")
        return states[:, 0]

    return embed, pool
