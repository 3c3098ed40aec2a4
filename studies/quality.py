"""Which recipe, and why: every recipe in four settings, from two starts, chosen on validation.

    python studies/finetune_teachers.py --out runs/strong-teachers
    python studies/quality.py run --out runs/quality
    python studies/quality.py trials --out runs/quality
    python studies/quality.py table --out runs/quality

`run` trains what is missing, one small JSON file a trial, so that it can be stopped, resumed and
shared between processes: start it twice with `--threads 1`. A recipe is tried at several
temperatures with seed 0; the best one on validation is repeated with two more seeds. `trials` lists
what there is on validation; `table` evaluates the winners on the test split, once, with 95 %
intervals over groups.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from emoji import average_precisions, load_split
from trials import (
    DEFAULTS,
    LABELLED_FRACTION,
    PRETRAINED,
    PRODUCT_TEMPERATURE,
    RECIPES,
    SEEDS,
    SETTINGS,
    STARTS,
    STRONG,
    WEAK,
    Trial,
    recipes_of,
    screening,
)

from whiten.embedding.opening import load
from whiten.utils.arrays import normalize_rows
from whiten.utils.memory import keep_freed_memory
from whiten.whitening.whitener import Whitener


class Ledger:
    """Finished trials: `OUT/trials/KEY.json`, and the student's folder next to it."""

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
    from whiten.distillation.distill import distill

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
        cache=out / "embeddings",
        show_progress=False,
        # Every recipe on the same views and on all pairs, the paper's too.
        augment="light",
        pairs_per_epoch=0,
        **trial.options,
    )
    student = out / "students" / trial.key
    student.parent.mkdir(exist_ok=True)
    shutil.rmtree(student, ignore_errors=True)
    _test_scores(out, trial.key).unlink(missing_ok=True)  # of a student that was there before
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


def best_of(ledger: Ledger, start: str, setting: str, recipe: str) -> Trial | None:
    """The temperature that did best on validation with seed 0, of those that were tried.

    What is the product's default runs as the product would run it.
    """
    if recipe == DEFAULTS.get(start, {}).get(setting):
        trial = Trial(setting, start, recipe, PRODUCT_TEMPERATURE, 0)
        return trial if ledger.find(trial) else None
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


def list_trials(options: argparse.Namespace) -> None:
    """Every finished trial as it stands, on validation."""
    found = [json.loads(path.read_text()) for path in (options.out / "trials").glob("*.json")]
    found.sort(key=lambda f: (f["setting"], f["start"], -f["validation"]))
    write({"benchmark": "quality", "trials": found}, options.json)


def table(options: argparse.Namespace) -> None:
    """For each setting and start: every recipe at its best temperature, mean of the seeds."""
    ledger = Ledger(options.out)
    groups = load_split("test").groups
    rows = []
    for start, setting in itertools.product(options.starts, options.settings):
        paper = None
        for recipe in recipes_of(start, setting):  # the paper's comes first
            best = best_of(ledger, start, setting, recipe)
            if best is None:
                continue
            seeds = [Trial(setting, start, recipe, best.temperature, seed) for seed in SEEDS]
            found = [facts for trial in seeds if (facts := ledger.find(trial))]
            aps = [on_test(facts["student"], options.out) for facts in found]
            mean = np.mean(aps, axis=0)
            paper = mean if recipe == "paper" else paper
            scores = [float(one.mean()) for one in aps]
            row = {
                "setting": setting,
                "start": start,
                "recipe": recipe,
                "temperature": best.temperature,
                "seeds": len(found),
                "validation": statistics.mean(facts["validation"] for facts in found),
                "test": statistics.mean(scores),
                "test_spread": max(scores) - min(scores),
                "test_interval": interval(mean, groups),
            }
            if paper is not None:
                row["over_paper"] = float((mean - paper).mean())
                row["over_paper_interval"] = interval(mean - paper, groups)
            rows.append(row)
            low, high = row["test_interval"]
            print(
                f"{setting:<11}{start:<11}{recipe:<43}τ {best.temperature:<5}{len(found)} seeds  "
                f"validation {100 * row['validation']:.1f}  test {100 * row['test']:.1f} "
                f"({100 * low:.1f} to {100 * high:.1f})",
                file=sys.stderr,
            )
    write({"benchmark": "quality", "rows": rows, "starts": untrained(options.out)}, options.json)


def untrained(out: Path) -> list[dict[str, Any]]:
    """The pretrained start before any training: its features as they are, and whitened."""
    splits = {}
    for split in ("train", "val", "test"):
        paths = [str(out / "images" / split / name) for name in load_split(split).ids]
        splits[split] = load(PRETRAINED).embed(paths)
    whitener = Whitener(256, shrinkage=1.0).fit(splits["train"])
    rows = []
    for name, change in (("start", lambda x: x), ("start, whitened", whitener.transform)):
        row: dict[str, Any] = {"recipe": name}
        for key, split in (("validation", "val"), ("test", "test")):
            groups = load_split(split).groups
            aps = average_precisions(normalize_rows(change(splits[split])), groups)
            row |= {key: float(aps.mean()), f"{key}_interval": interval(aps, groups)}
        rows.append(row)
    return rows


def on_test(key: str, out: Path) -> np.ndarray:
    """Average precision of every test image; a student is embedded once."""
    cache = _test_scores(out, key)
    if not cache.exists():
        cache.parent.mkdir(exist_ok=True)
        np.save(cache, score(str(out / "students" / key), out, "test"))
    return np.load(cache)


def _test_scores(out: Path, key: str) -> Path:
    return out / "test" / f"{key}.npy"


def interval(values: np.ndarray, groups: np.ndarray, draws: int = 2000) -> tuple[float, float]:
    """95 % bootstrap interval of the mean, drawing whole groups."""
    sums, counts = np.bincount(groups, values), np.bincount(groups)
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(sums), (draws, len(sums)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def write(facts: dict[str, Any], place: Path | None) -> None:
    text = json.dumps(facts, indent=1)
    print(text)
    if place:
        place.write_text(text + "\n")


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
    {"run": run, "trials": list_trials, "table": table}[options.action](options)


if __name__ == "__main__":
    main()
