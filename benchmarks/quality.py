"""Which recipe, and why: every recipe in four settings, from two starts, chosen on validation.

    python benchmarks/finetune_teachers.py --out runs/strong-teachers
    python benchmarks/quality.py run --out runs/quality
    python benchmarks/quality.py trials --out runs/quality
    python benchmarks/quality.py table --out runs/quality

`run` trains what is missing, one small JSON file a trial, so that it can be stopped, resumed and
shared between processes: start it twice with `--threads 1`. A recipe is tried at several
temperatures with seed 0; the best one on validation is repeated with two more seeds. `trials` lists
what there is on validation; `table` evaluates the winners on the test split, once, with 95 %
intervals over groups.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import itertools
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from emoji import average_precisions, load_split

from whiten.allocator import keep_freed_memory
from whiten.encoder import load

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

_NONE = {"kl": 0.0, "labels": 0.0, "relational": 0.0, "align": 0.0, "queue": 0.0}
_CHOSEN: dict[str, Any] = {"shrinkage": "auto", "whiten_dim": "auto"}
_PAPER: dict[str, Any] = {"shrinkage": 0.0, "whiten_dim": 256}
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
        for fusion in ("maxmin", "mean", "maxmean", "maxrand", "rand")
        for name, whitening in (
            ("chosen", _CHOSEN),
            ("whitened", _PAPER),
            ("centred", _CENTRED),
            ("raw", {"whiten": False}),
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
    "regression",
)
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


class Ledger:
    """Finished trials: `OUT/trials/KEY.json`, with the student's folder beside it."""

    def __init__(self, out: Path) -> None:
        self.out = out
        (out / "trials").mkdir(parents=True, exist_ok=True)

    def find(self, trial: Trial) -> dict[str, Any] | None:
        path = self.out / "trials" / f"{trial.key}.json"
        return json.loads(path.read_text()) if path.exists() else None

    def claim(self, trial: Trial) -> bool:
        """Whether this process shall run the trial; another one may be at it."""
        try:
            (self.out / "trials" / f"{trial.key}.claim").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def write(self, trial: Trial, facts: dict[str, Any]) -> None:
        path = self.out / "trials" / f"{trial.key}.json"
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(facts, indent=1))
        os.replace(partial, path)
        path.with_suffix(".claim").unlink(missing_ok=True)


# --- data -------------------------------------------------------------------------------


def lay_out(out: Path) -> None:
    """Write the images as files, and lists of them with all, a tenth or none of the groups."""
    if (out / "images" / "complete").exists():
        return
    for split in ("train", "val", "test"):
        data = load_split(split)
        for name, image in zip(data.ids, data.images, strict=True):
            path = out / "images" / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path, "webp", lossless=True)
        if split == "train":
            kept = np.random.default_rng(0).permutation(data.groups.max() + 1)
            kept = set(kept[: round(LABELLED_FRACTION * len(kept))].tolist())
            for name, has_group in (("all", lambda g: True), ("tenth", kept.__contains__)):
                with (out / "images" / f"{name}.csv").open("w", newline="") as file:
                    rows = csv.writer(file)
                    rows.writerow(["path", "group"])
                    for item, group in zip(data.ids, data.groups.tolist(), strict=True):
                        rows.writerow([f"train/{item}", f"g{group}" if has_group(group) else ""])
    (out / "images" / "complete").touch()


def images(out: Path, setting: str) -> Path:
    return out / "images" / ("tenth.csv" if setting == "partly" else "all.csv")


def score(model: str, out: Path, split: str) -> np.ndarray:
    """Average precision of every image of a split."""
    data = load_split(split)
    paths = [str(out / "images" / split / name) for name in data.ids]
    return average_precisions(load(model).embed(paths), data.groups)


# --- trials -----------------------------------------------------------------------------


def run_trial(trial: Trial, ledger: Ledger, strong: Path) -> dict[str, Any]:
    from whiten.distill import distill

    teachers = WEAK
    if trial.setting == "strong":
        teachers = [f"whiten:{strong / name}" for name in STRONG]
    out = ledger.out
    folder = out / "runs" / trial.key
    began = time.monotonic()
    shutil.rmtree(folder, ignore_errors=True)
    distill(
        images(out, trial.setting),
        teachers,
        out=folder,
        embeddings=out / "embeddings",
        show_progress=False,
        **trial.options,
    )
    student = out / "students" / trial.key
    student.parent.mkdir(exist_ok=True)
    shutil.rmtree(student, ignore_errors=True)
    shutil.copytree(folder / "student", student)
    shutil.rmtree(folder)
    facts = {
        "setting": trial.setting,
        "start": trial.start,
        "recipe": trial.recipe,
        "temperature": trial.temperature,
        "seed": trial.seed,
        "validation": float(score(str(student), out, "val").mean()),
        "seconds": round(time.monotonic() - began, 1),
        "student": trial.key,
    }
    ledger.write(trial, facts)
    return facts


def recipes_of(start: str, setting: str) -> list[str]:
    return list(RECIPES) if start == "head" else list(SHORT)


def screening(starts: list[str], settings: list[str]) -> Iterator[Trial]:
    for start, setting in itertools.product(starts, settings):
        for recipe in recipes_of(start, setting):
            for temperature in TEMPERATURES[start]:
                if recipe == "regression" and temperature != TEMPERATURES[start][0]:
                    continue  # it has none
                yield Trial(setting, start, recipe, temperature, 0)


def best_of(ledger: Ledger, start: str, setting: str, recipe: str) -> Trial | None:
    """The temperature that did best on validation with seed 0, of those that were tried."""
    tried = [
        (facts["validation"], trial)
        for trial in screening([start], [setting])
        if trial.recipe == recipe and (facts := ledger.find(trial))
    ]
    return max(tried, key=lambda pair: pair[0])[1] if tried else None


def repeats(ledger: Ledger, starts: list[str], settings: list[str]) -> Iterator[Trial]:
    for start, setting in itertools.product(starts, settings):
        for recipe in recipes_of(start, setting):
            best = best_of(ledger, start, setting, recipe)
            if best is not None:
                for seed in SEEDS[1:]:
                    yield Trial(setting, start, recipe, best.temperature, seed)


def run(options: argparse.Namespace) -> None:
    ledger = Ledger(options.out)
    lay_out(options.out)
    for stage in ("screen", "repeat"):
        if options.stage not in (stage, "all"):
            continue
        if stage == "screen":
            trials = list(screening(options.starts, options.settings))
        else:
            trials = list(repeats(ledger, options.starts, options.settings))
        for trial in trials:
            wanted = not options.recipes or trial.recipe in options.recipes
            wanted &= not options.temperatures or trial.temperature in options.temperatures
            if not wanted or ledger.find(trial) or not ledger.claim(trial):
                continue
            facts = run_trial(trial, ledger, options.strong)
            print(
                f"{trial.setting:<11}{trial.start:<11}{trial.recipe:<32}τ {trial.temperature:<5}"
                f"seed {trial.seed}  validation {facts['validation']:.4f}  "
                f"{facts['seconds']:.0f} s",
                file=sys.stderr,
                flush=True,
            )


# --- the table --------------------------------------------------------------------------


def interval(aps: np.ndarray, groups: np.ndarray, draws: int = 2000) -> tuple[float, float]:
    """95 % bootstrap interval of the mean, drawing whole groups."""
    sums, counts = np.bincount(groups, aps), np.bincount(groups)
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(sums), (draws, len(sums)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def trials(options: argparse.Namespace) -> None:
    """Every finished trial as it stands, on validation."""
    found = [json.loads(path.read_text()) for path in (options.out / "trials").glob("*.json")]
    found.sort(key=lambda f: (f["setting"], f["start"], -f["validation"]))
    text = json.dumps({"benchmark": "quality", "trials": found}, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


def table(options: argparse.Namespace) -> None:
    """For each setting and start: every recipe at its best temperature, mean of the seeds."""
    ledger = Ledger(options.out)
    groups = load_split("test").groups
    rows = []
    for start, setting in itertools.product(options.starts, options.settings):
        for recipe in recipes_of(start, setting):
            best = best_of(ledger, start, setting, recipe)
            if best is None:
                continue
            trials = [Trial(setting, start, recipe, best.temperature, seed) for seed in SEEDS]
            found = [facts for trial in trials if (facts := ledger.find(trial))]
            for facts in found:
                cache = options.out / "test" / f"{facts['student']}.npy"
                if not cache.exists():
                    cache.parent.mkdir(exist_ok=True)
                    student = options.out / "students" / facts["student"]
                    np.save(cache, score(str(student), options.out, "test"))
                facts["aps"] = np.load(cache)
            tests = [float(facts["aps"].mean()) for facts in found]
            validation = [facts["validation"] for facts in found]
            rows.append(
                {
                    "setting": setting,
                    "start": start,
                    "recipe": recipe,
                    "temperature": best.temperature,
                    "seeds": len(found),
                    "validation": statistics.mean(validation),
                    "test": statistics.mean(tests),
                    "test_spread": max(tests) - min(tests),
                    "test_interval": interval(np.mean([f["aps"] for f in found], 0), groups),
                }
            )
    text = json.dumps({"benchmark": "quality", "rows": rows}, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")
    for (setting, start), part in itertools.groupby(rows, key=lambda r: (r["setting"], r["start"])):
        print(f"\n{setting}, {start}", file=sys.stderr)
        for row in sorted(part, key=lambda r: -r["validation"]):
            low, high = row["test_interval"]
            print(
                f"  {row['recipe']:<34}τ {row['temperature']:<5} {row['seeds']} seeds  validation "
                f"{100 * row['validation']:.1f}  test {100 * row['test']:.1f} "
                f"({100 * low:.1f} to {100 * high:.1f})",
                file=sys.stderr,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("action", choices=["run", "trials", "table"])
    parser.add_argument("--out", type=Path, default=Path("runs/quality"))
    parser.add_argument("--strong", type=Path, default=Path("runs/strong-teachers"))
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=list(STARTS))
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, help="only these")
    parser.add_argument("--temperatures", nargs="+", type=float, help="only these")
    parser.add_argument("--stage", choices=["screen", "repeat", "all"], default="all")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="write the table here too")
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    {"run": run, "trials": trials, "table": table}[options.action](options)


if __name__ == "__main__":
    main()
