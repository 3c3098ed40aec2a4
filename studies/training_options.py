"""What is an option of training worth to a student that learns from groups?

Trains the runs of `default_runs.py` on 600 images with groups again, with each value of an option,
such as `layer_decay` (1 is the default) or `ema` (0). Prints the score of held-out groups and the
mAP of the test images, in points.

    python studies/training_options.py --photos TABLE --unlabelled TABLE --work FOLDER \\
        --option ema --values 0 0.95 --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import numpy as np
from default_runs import data_sets, run_once

IMAGES = 600


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True, help="table: columns path,group")
    parser.add_argument("--unlabelled", type=Path, required=True, help="table: column path")
    parser.add_argument("--data", nargs="+", default=["drawings", "photos"])
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--option", required=True, help="as in Python, such as layer_decay")
    parser.add_argument("--values", nargs="+", type=float, required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    options = parser.parse_args()
    heads = [options.option, "seed", "held-out groups", "test images", "mAP"]
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for data in data_sets(options):
        for seed in options.seeds:
            for value in options.values:
                work = options.work / f"{options.option}-{value:g}"
                work.mkdir(parents=True, exist_ok=True)
                given = {options.option: value}
                row = run_once(data, IMAGES, "groups", "trained", seed, work, **given)
                [held_out] = re.findall(r"student ([\d.]+)", row["gain"]) or ["-"]
                for kind, scores in row["scores"]["student"].items():
                    mean = 100 * np.nanmean(np.array(scores, float))
                    print(f"| {value:g} | {seed} | {held_out} | {kind} | {mean:.1f} |", flush=True)


if __name__ == "__main__":
    main()
