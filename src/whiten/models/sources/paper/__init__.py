"""`paper:` the seven teachers of Whiten-MTD (Ma et al., AAAI 2024), from their published files.

The user downloads the files. `catalogue` and the table in `docs/teachers.md` list where each is
published.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from whiten.errors import ConfigError, nearest
from whiten.models.sources.paper.catalogue import AUTHORS_FOLDER, PUBLISHED, Published
from whiten.models.teacher import Teacher, exact, positive_int, positive_number
from whiten.models.uri import TeacherURI
from whiten.models.weights import hash_state
from whiten.views.rendering import Preprocess

BRANCHES = ("global", "fused")


def list_names() -> list[str]:
    return list(PUBLISHED)


def open_uri(uri: TeacherURI) -> Teacher:
    """Open one of the paper's teachers.

    Options: `weights` (the published file; required), `size` (input side in pixels), `p` (power of
    the GeM pooling, 1 is the average; by default the paper's), `fit` (crop or squash), `head`
    (mocov3, barlowtwins: 1 keeps the head that the network was trained with) and `branch`
    (resnet101_dolg: `global`, which the paper distils, or `fused`, the whole descriptor).

    Raises:
        ConfigError: a name or option is unknown, or `weights` is missing.
        TeacherError: the file is not the published one.
    """
    if uri.target not in PUBLISHED:
        raise ConfigError(
            f"the paper has no teacher {uri.target!r}, it has {', '.join(PUBLISHED)}"
            f"{nearest(uri.target, PUBLISHED)}"
        )
    published = PUBLISHED[uri.target]
    options = uri.take(**_options(uri.target, published))
    branch = options.get("branch", "global")
    if branch not in BRANCHES:
        raise ConfigError(f"branch={branch!r} of {uri} must be global or fused")
    if not options["weights"]:
        raise ConfigError(
            f"paper:{uri.target} needs its published file: get {published.file} from "
            f"{published.source}, or from {AUTHORS_FOLDER}, and add ?weights=FILE"
        )
    preprocess = _preprocess(published, options["size"]).fitted(options["fit"])
    from whiten.models.sources.paper.building import load_network

    power, with_head, is_fused = options["p"], options.get("head", False), branch == "fused"
    module, dim = load_network(
        uri.target, options["weights"], power, with_head=with_head, is_fused=is_fused
    )
    return Teacher(
        uri=str(uri),
        name=uri.target + ("-head" if with_head else "-fused" if is_fused else ""),
        dim=dim,
        preprocess=preprocess,
        weights_hash=hash_state(module.state_dict()),
        forward=module,
        licence=published.licence,
        module=module,
        readout="" if power == published.power else f"gem {exact(power)}",
    )


def _options(name: str, published: Published) -> dict[str, Any]:
    known: dict[str, Any] = {
        "weights": (str, ""),
        "size": (positive_int, published.size),
        "p": (positive_number, published.power),
        "fit": (str, "crop"),
    }
    if published.has_head:
        known["head"] = (bool, False)
    if name == "resnet101_dolg":
        known["branch"] = (str, "global")
    return known


def _preprocess(published: Published, size: int) -> Preprocess:
    rgb = Preprocess(
        size=(size, size), interpolation="bilinear", crop_fraction=published.crop_fraction
    )
    if published.channels == "rgb":
        return rgb
    # Normalised as RGB and then reversed: the numbers are the same.
    return dataclasses.replace(rgb, channels="bgr", mean=rgb.mean[::-1], std=rgb.std[::-1])
