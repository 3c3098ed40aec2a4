"""Named recipes for the objective, and the choice between them by the data.

The choice is based on `studies/quality.py`; docs/comparison.md shows its tables. A recipe fills in
open options and overrides none that were given.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from whiten.errors import ConfigError
from whiten.models.uri import parse_uri
from whiten.runs.spec import EPOCHS, TERMS, DistillSpec

_COMMON: dict[str, Any] = {
    **dict.fromkeys(TERMS, 0.0),
    "fusion": "maxmin",
    "temperature": 0.05,
    "label_temperature": 0.1,
    "start": "ridge",
    "epochs": EPOCHS,
    "keep_start": 0.0,
    "held_out": 0.1,
    "batch_statistics": "frozen",
    "whiten_images": 0,
    "shrinkage": "auto",
    "teacher_weights": "auto",
    "pairs_per_class": 1,
    "pairs_per_epoch": 0,
    "augment": "light",
}

# Options that a recipe sets unless the user does.
DECIDED = tuple(_COMMON)

RECIPES: dict[str, dict[str, Any]] = {
    # Whiten-MTD as published: exact PCA-whitening fitted on 10,000 images, one pair per group and
    # epoch, random initialisation.
    "paper": {
        "kl": 1.0,
        "whiten_images": 10_000,
        "shrinkage": 0.0,
        "teacher_weights": "equal",
        "start": "random",
        "held_out": 0.0,
        "batch_statistics": "moving",
        "pairs_per_epoch": 1,
    },
    "similarity": {"kl": 1.0},
    "similarity-relational": {"kl": 1.0, "relational": 1.0},
    "queue": {"queue": 1.0},
    "labels": {"labels": 1.0, "pairs_per_class": 2},
    "labels-relational": {"labels": 1.0, "relational": 1.0, "pairs_per_class": 2},
    "labels-similarity-relational": {
        "labels": 1.0,
        "kl": 1.0,
        "relational": 1.0,
        "pairs_per_class": 2,
    },
    "labels-queue": {"labels": 1.0, "queue": 1.0, "pairs_per_class": 2},
    "labels-light-queue": {"labels": 1.0, "queue": 0.3, "pairs_per_class": 2},
}

# Views of `paper`: landmarks are only cropped and flipped; two views of a frame also change in
# colour and sharpness.
_PUBLISHED_VIEWS = {"groups": "paper-images", "mixed": "paper-images", "views": "paper-frames"}

# Weight of the regression onto the fused teachers that `--compatible` adds to a recipe: a higher
# one costs the student more than its queries gain (studies/compatible.py).
COMPATIBLE = 1.0

# Teachers whose whitened embeddings retrieve held-out groups with at least this mAP know the
# domain. Those of the study have 0.4 to 0.5 unadapted and 0.96 after fine-tuning.
KNOWN = 0.7

# Share of the start's weights where a whole network learns without groups.
KEEP_START = 0.5


def _choose(
    spec: DistillSpec, source: str, is_untrained: bool, map_on_groups: float | None
) -> tuple[str, str]:
    """Return the recipe for pairs, student and teachers, and why; see docs/comparison.md."""
    if source == "views" and spec.backbone_lr == 0:
        return "similarity", "a head on frozen features learns most from the pairs' similarities"
    if source == "groups" and spec.backbone_lr == 0:
        return "labels", "a head on frozen features has too little freedom for more than the groups"
    group_map = map_on_groups or 0.0
    knows_groups = group_map >= KNOWN
    they_know = f"the teachers know the groups (mAP {group_map:.2f})"
    # An untrained network cannot reproduce the teachers' space, but can learn their similarities.
    # With online teachers there is no queue in that space.
    if is_untrained or spec.teachers_online:
        if source != "groups":
            return "similarity-relational", "pairs say what is the same, teachers how others relate"
        if is_untrained and knows_groups:
            return "labels-similarity-relational", they_know
        return "labels-relational", "groups say what is the same, teachers how others relate"
    if source == "views":
        return "queue", "without groups the teachers' own space is the only source of knowledge"
    if knows_groups:
        return "labels-queue", they_know
    return (
        "labels-light-queue",
        "groups say what is the same, the teachers' space how all things lie",
    )


def complete(
    spec: DistillSpec, source: str, map_on_groups: float | None = None
) -> tuple[DistillSpec, str]:
    """Fill the open options of a run.

    Args:
        spec: the user's options.
        source: source of the pairs: `groups`, `views` or `mixed`; `frames` counts as views.
        map_on_groups: mAP of the whitened teachers on held-out groups, if known; no option that
            affects the whitening depends on it.

    Returns:
        The options, all resolved, and one sentence on what was chosen and why.

    Raises:
        ConfigError: the objective has no terms, or terms that these options do not support.
    """
    source = "views" if source == "frames" else source
    is_untrained = parse_uri(spec.student).is_untrained
    if spec.recipe == "auto":
        name, reason = _choose(spec, source, is_untrained, map_on_groups)
    else:
        name, reason = spec.recipe, "as asked"
    chosen = {**_COMMON, **RECIPES[name]}
    if name == "paper":
        chosen["augment"] = _PUBLISHED_VIEWS[source]
    if is_untrained:  # neither its features nor its statistics mean anything yet
        chosen.update(start="random", batch_statistics="moving")
    if spec.teachers_online:  # the fused teachers are not cached
        chosen["held_out"] = 0.0
        if chosen["start"] == "ridge":
            chosen["start"] = "principal"
    if spec.compatible:
        chosen["align"] = COMPATIBLE
    elif source == "views" and chosen["start"] == "ridge" and spec.backbone_lr > 0:
        # Without groups nothing that is measured tells when it forgets too much.
        chosen["keep_start"] = KEEP_START
    given = {key: getattr(spec, key) for key in chosen if getattr(spec, key) is not None}
    full = dataclasses.replace(spec, **{**chosen, **given})
    weights = {term: getattr(full, term) for term in TERMS if getattr(full, term) > 0}
    if not weights:
        raise ConfigError(f"all weights are 0: give one of {', '.join(TERMS)} a weight")
    if spec.compatible and "align" not in weights:
        raise ConfigError("--compatible learns by align: leave out --align 0, or --compatible")
    cached_only: list[str] = [term for term in ("align", "queue") if term in weights]
    if spec.compatible:
        cached_only = ["compatible"]
    if cached_only and spec.teachers_online:
        raise ConfigError(f"--{cached_only[0]} needs cached teachers: leave out --teachers-online")
    terms = " + ".join(
        term if weight == 1 else f"{weight:g}·{term}" for term, weight in weights.items()
    )
    return full, f"recipe {name} ({terms}): {reason}"
