"""The trials that compare recipes: settings, students' starts, recipes and temperatures."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

WEAK = [
    "demo:efficientnet-lite2?size=128&fit=squash",
    "demo:mobilenetv2?size=128&fit=squash",
    "demo:open-nsfw?fit=squash",
]
STRONG = ["efficientnet-lite2", "mobilenetv2"]  # folders that finetune_teachers.py made
PRETRAINED = "demo:efficientnet-lite0?size=64&fit=squash"
SCRATCH = "timm:mobilenetv3_small_050?pretrained=0&size=64&fit=squash"
LABELLED_FRACTION = 0.1
SEEDS = (0, 1, 2)

# How a student is trained: the same budget for every recipe of a setting.
STARTS: dict[str, dict[str, Any]] = {
    # A linear head on frozen features: cheap enough to try everything.
    "head": {"student": PRETRAINED, "backbone_lr": 0.0, "epochs": 20, "batch_size": 256},
    "pretrained": {"student": PRETRAINED, "epochs": 5, "lr": 2e-3},
    # Principal axes of random features mean nothing: the projection starts at random, too.
    "scratch": {"student": SCRATCH, "epochs": 15, "lr": 2e-3, "start": "random"},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "label-free": {"pairs": "views"},
    "labelled": {"pairs": "groups"},
    "partly": {"pairs": "mixed"},
    "strong": {"pairs": "groups"},
}
# Whole networks see both views of every image in an epoch, and labels again: fewer epochs.
EPOCHS = {
    ("pretrained", "label-free"): 3,
    ("pretrained", "partly"): 2,
    ("scratch", "label-free"): 8,
    ("scratch", "partly"): 5,
}

FUSIONS = ("maxmin", "mean", "maxmean", "maxrand", "rand")
TEACHERS = ("chosen", "whitened", "centred", "raw")  # how they are treated

_NONE = {"kl": 0.0, "labels": 0.0, "relational": 0.0, "align": 0.0, "queue": 0.0}
_CHOSEN: dict[str, Any] = {"shrinkage": "auto", "whiten_dim": "auto"}
_PAPER: dict[str, Any] = {"shrinkage": 0.0, "whiten_dim": 256}
_FEW: dict[str, Any] = {"shrinkage": 1.0, "whiten_dim": 128}
_CENTRED: dict[str, Any] = {"shrinkage": float("inf"), "whiten_dim": 512}


def _terms(**weights: float) -> dict[str, Any]:
    several = weights.get("labels") and "kl" not in weights
    return {**_NONE, **weights, **_CHOSEN, "pairs_per_class": 2 if several else 1}


RECIPES: dict[str, dict[str, Any]] = {
    "paper": {"recipe": "paper", **_PAPER},
    "paper, lower lr": {"recipe": "paper", **_PAPER, "lr": 5e-4},
    "paper, higher lr": {"recipe": "paper", **_PAPER, "lr": 5e-3},
    "paper, principal start": {**_terms(kl=1.0), **_PAPER, "start": "principal"},
    **{
        f"kl {fusion}, {name} teachers": {**_terms(kl=1.0), "fusion": fusion, **whitening}
        for fusion in FUSIONS
        for name, whitening in zip(
            TEACHERS, (_CHOSEN, _PAPER, _CENTRED, {"whiten": False}), strict=True
        )
        if (fusion, name) != ("maxmin", "whitened")  # that is the one before
    },
    "kl maxmin, chosen teachers, all positives": {**_terms(kl=1.0), "pairs_per_class": 2},
    "labels + kl": {**_terms(labels=1.0, kl=1.0), "pairs_per_class": 2},
    "labels": _terms(labels=1.0),
    "regression": _terms(align=1.0),
    "relational": _terms(relational=1.0),
    "queue": _terms(queue=1.0),
    "queue, lower lr": {**_terms(queue=1.0), "lr": 5e-4},
    "queue, higher lr": {**_terms(queue=1.0), "lr": 5e-3},
    "labels + relational": _terms(labels=1.0, relational=1.0),
    "labels + 0.3 relational": _terms(labels=1.0, relational=0.3),
    "labels + regression": _terms(labels=1.0, align=1.0),
    "labels + queue": _terms(labels=1.0, queue=1.0),
    "labels + 0.3 queue": _terms(labels=1.0, queue=0.3),
    "sharp labels + 0.3 queue": {**_terms(labels=1.0, queue=0.3), "label_temperature": 0.05},
    "sharpest labels + 0.3 queue": {**_terms(labels=1.0, queue=0.3), "label_temperature": 0.03},
    "queue, 128 axes": {**_terms(queue=1.0), **_FEW},
    "labels + queue, 128 axes": {**_terms(labels=1.0, queue=1.0), **_FEW},
    "labels + 0.3 queue, 128 axes": {**_terms(labels=1.0, queue=0.3), **_FEW},
    "labels + relational, 3 views": {**_terms(labels=1.0, relational=1.0), "views": 3},
    "labels + relational + 0.3 queue": _terms(labels=1.0, relational=1.0, queue=0.3),
    "kl + regression": _terms(kl=1.0, align=1.0),
    "labels + 3 relational": _terms(labels=1.0, relational=3.0),
    "labels + kl + relational": {
        **_terms(labels=1.0, kl=1.0, relational=1.0),
        "pairs_per_class": 2,
    },
    "kl + queue": _terms(kl=1.0, queue=1.0),
    "kl + relational": _terms(kl=1.0, relational=1.0),
    "relational + queue": _terms(relational=1.0, queue=1.0),
}
# What a whole network is trained with: the candidates that the cheap heads left, and the paper.
SHORT = (
    "paper",
    "paper, lower lr",
    "paper, higher lr",
    "paper, principal start",
    "kl maxmin, chosen teachers",
    *(f"kl {fusion}, whitened teachers" for fusion in FUSIONS if fusion != "maxmin"),
    "kl maxmin, centred teachers",
    "kl maxmin, raw teachers",
    "kl maxmin, chosen teachers, all positives",
    "labels",
    "labels + kl",
    "labels + relational",
    "labels + queue",
    "labels + 0.3 queue",
    "sharp labels + 0.3 queue",
    "sharpest labels + 0.3 queue",
    "labels + relational + 0.3 queue",
    "labels + regression",
    "kl + queue",
    "kl + relational",
    "labels + 3 relational",
    "labels + kl + relational",
    "relational",
    "queue",
    "queue, lower lr",
    "queue, higher lr",
    "queue, 128 axes",
    "labels + queue, 128 axes",
    "labels + 0.3 queue, 128 axes",
    "labels + relational, 3 views",
    "regression",
)
# What `whiten distill` takes by itself, in the words of the comparison.
DEFAULTS = {
    "pretrained": {
        "label-free": "queue",
        "labelled": "labels + 0.3 queue",
        "partly": "labels + 0.3 queue",
        "strong": "labels + queue",
    },
    "scratch": {
        "label-free": "kl + relational",
        "labelled": "labels + relational",
        "partly": "kl + relational",
        "strong": "labels + kl + relational",
    },
}
PRODUCT_TEMPERATURE = 0.05  # of all its recipes
TEMPERATURES: dict[str, tuple[float, ...]] = {
    "head": (0.03, 0.05, 0.1, 0.2),
    "pretrained": (0.03, 0.05, 0.1),
    "scratch": (0.05, 0.1),
}


@dataclass(frozen=True)
class Trial:
    setting: str
    start: str
    recipe: str
    temperature: float
    seed: int

    @property
    def options(self) -> dict[str, Any]:
        options = {
            "pool": "avg",
            **STARTS[self.start],
            **SETTINGS[self.setting],
            **RECIPES[self.recipe],
            "temperature": self.temperature,
            "seed": self.seed,
        }
        options["epochs"] = EPOCHS.get((self.start, self.setting), options["epochs"])
        if is_label_only(self.recipe):
            options["label_temperature"] = options.pop("temperature")
            if self.setting == "partly":
                options["pairs"] = "groups"  # plain images have nothing to teach it
                options["epochs"] = 20 if self.start == "head" else 15
        return options

    @property
    def key(self) -> str:
        facts = json.dumps([self.setting, self.options], sort_keys=True)
        return hashlib.blake2b(facts.encode(), digest_size=8).hexdigest()


def is_label_only(recipe: str) -> bool:
    return recipe == "labels"


def recipes_of(start: str, setting: str) -> list[str]:
    return list(RECIPES) if start == "head" else list(SHORT)


def screening(starts: list[str], settings: list[str]) -> Iterator[Trial]:
    for start, setting in itertools.product(starts, settings):
        for recipe in recipes_of(start, setting):
            for temperature in TEMPERATURES[start]:
                if recipe == "regression" and temperature != TEMPERATURES[start][0]:
                    continue  # it has none
                yield Trial(setting, start, recipe, temperature, 0)
