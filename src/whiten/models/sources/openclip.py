"""`openclip:` the image tower of an OpenCLIP model."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from whiten.errors import ConfigError, MissingExtraError, TeacherError, nearest
from whiten.models.sources.hub import hub_access, seeded
from whiten.models.teacher import UNKNOWN_LICENCE, Teacher, first_line, positive_int, probe_dim
from whiten.models.uri import TeacherURI
from whiten.models.weights import hash_state, load_into, load_state_dict, refuse_lone_state
from whiten.utils.hashing import fingerprint
from whiten.views.rendering import RESAMPLING, Preprocess

# The text tower is discarded. Where its weights are not needed to load the others, this replaces
# it: it costs nothing, and never downloads a language model.
_NO_TEXT = {"context_length": 4, "vocab_size": 8, "width": 8, "heads": 1, "layers": 1}


def list_names() -> list[str]:
    return [f"{architecture}/{tag}" for architecture, tag in _library().list_pretrained()]


def open_uri(uri: TeacherURI) -> Teacher:
    """Open `openclip:ARCHITECTURE/WEIGHTS`, or `openclip:ARCHITECTURE` with local weights.

    Options: `size` (input side in pixels), `weights` (a local safetensors or torch file of the
    whole model; WEIGHTS in the name then only selects preprocessing and activation), `state` (which
    of its weights, such as `ema`, where several fit) and `pretrained` (1 downloads the named
    weights, the default without `weights`; 0 draws random ones, always the same).

    Raises:
        ConfigError: a name or option is unknown.
        TeacherError: the weights cannot be downloaded, or do not match.
        MissingExtraError: open_clip is not installed.
    """
    open_clip = _library()
    options = uri.take(
        size=(positive_int, None), weights=(str, ""), state=(str, ""), pretrained=(bool, True)
    )
    refuse_lone_state(uri)
    is_published = options["pretrained"] and not options["weights"]
    architecture, _, tag = uri.target.partition("/")
    recipe = _find_recipe(open_clip, uri, architecture, tag, is_published)
    settings: dict[str, Any] = {
        # Weights trained with QuickGELU need it, whatever the architecture's default.
        "force_quick_gelu": bool(recipe.get("quick_gelu")),
        "force_image_size": options["size"],
    }
    if is_published:
        remedy = "give a local file with ?weights=FILE, or ?pretrained=0 for random weights"
        with hub_access(uri, remedy), _quiet(), seeded():
            model = open_clip.create_model(architecture, pretrained=tag, **settings)
    else:
        known = ("mean", "std", "interpolation", "resize_mode")
        settings["force_preprocess_cfg"] = {key: recipe[key] for key in known if key in recipe}
        try:
            with _quiet(), seeded():
                model = open_clip.create_model(
                    architecture, pretrained=None, text_cfg=_NO_TEXT, **settings
                )
        except Exception as error:  # a size that the architecture cannot have
            raise TeacherError(f"cannot build {uri} ({first_line(error)})") from error
    if options["weights"]:
        _load(model, options["weights"], options["state"])
    visual = model.visual.eval()
    config = open_clip.get_model_config(architecture)
    config.pop("text_cfg", None)
    preprocess = read_preprocess(open_clip.get_model_preprocess_cfg(model))

    def forward(images: Tensor) -> Tensor:
        out = visual(images)  # CoCa's tower also returns its tokens
        embeddings: Tensor = out[0] if isinstance(out, tuple) else out
        return embeddings

    return Teacher(
        uri=str(uri),
        name=uri.target,
        dim=probe_dim(forward, preprocess, str(uri)),
        preprocess=preprocess,
        weights_hash=hash_state(visual.state_dict()),
        forward=forward,
        licence=UNKNOWN_LICENCE,  # open_clip states no licences for its weights
        module=visual,
        # Neither the activation nor the heads of attention are seen in the weights.
        details=(
            f"tower={fingerprint(config)}",
            f"quick_gelu={settings['force_quick_gelu']}",
        ),
    )


def read_preprocess(config: dict[str, Any]) -> Preprocess:
    """Return the preprocessing of the model's own configuration."""
    size = config["size"]
    interpolation = config["interpolation"]
    return Preprocess(
        size=(size, size) if isinstance(size, int) else (size[0], size[1]),
        # `longest` pads to a square; the centre crop is the closest without padding.
        fit="squash" if config["resize_mode"] == "squash" else "crop",
        interpolation=interpolation if interpolation in RESAMPLING else "bicubic",
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )


def _library() -> Any:
    try:
        import open_clip
    except ImportError:
        raise MissingExtraError("openclip: teachers", "openclip") from None
    return open_clip


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence open_clip's warnings on missing weights.

    They go to the root logger, whose default configuration they would set permanently.
    """
    handler = logging.NullHandler()
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)


def _find_recipe(
    open_clip: Any, uri: TeacherURI, architecture: str, tag: str, is_published: bool
) -> dict[str, Any]:
    """Return open_clip's configuration of a set of weights; empty without a tag."""
    architectures = open_clip.list_models()
    if architecture not in architectures:
        hint = nearest(architecture, architectures) or ": open_clip.list_models() lists them"
        raise ConfigError(f"open_clip has no architecture {architecture!r}{hint}")
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if (tag or is_published) and tag not in tags:
        problem = f"has no weights {tag!r} for {architecture}" if tag else "needs the weights' name"
        hint = nearest(tag, tags) or (
            f": write openclip:{architecture}/WEIGHTS with one of {', '.join(tags)}"
            if tags
            else f": give your own, openclip:{architecture}?weights=FILE"
        )
        raise ConfigError(f"open_clip {problem}{hint}")
    recipe: dict[str, Any] = open_clip.get_pretrained_cfg(architecture, tag) if tag else {}
    return recipe


def _load(model: Any, file: str, choice: str) -> None:
    """Load the image tower from a file of the whole model."""
    from open_clip.convert import convert_state_dict
    from open_clip.model import resize_pos_embed

    wanted = {k: v for k, v in model.state_dict().items() if k.startswith("visual.")}
    state = load_state_dict(file, wanted, choice)
    try:
        state = convert_state_dict(model, state)
        resize_pos_embed(state, model)
    except Exception as error:
        raise TeacherError(
            f"{file} does not fit the model ({first_line(error)}): these weights belong to "
            "another architecture"
        ) from error
    tower = "visual."
    visual = {key.removeprefix(tower): v for key, v in state.items() if key.startswith(tower)}
    if not visual:
        raise TeacherError(
            f"{file} holds no image tower: save the state_dict() of the whole open_clip model"
        )
    load_into(model.visual, visual, file)
