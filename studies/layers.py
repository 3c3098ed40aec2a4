"""Should early layers of a student that learns from groups learn at lower rates?

Trains the runs of `default_runs.py` on 600 images with groups again, with `--layer-decay`; 1 is the
default. Prints the mAP of held-out groups and that of the test images, in points.

    python studies/layers.py --photos TABLE --unlabelled TABLE --work FOLDER --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import numpy as np
from default_runs import data_sets, run_once

DECAYS = (1.0, 0.85, 0.7, 0.5)
IMAGES = 600


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True, help="table: columns path,group")
    parser.add_argument("--unlabelled", type=Path, required=True, help="table: column path")
    parser.add_argument("--data", nargs="+", default=["drawings", "photos"])
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--decays", nargs="+", type=float, default=DECAYS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    options = parser.parse_args()
    print("| decay | seed | held-out groups | test images | mAP |\n|---|---|---|---|---|")
    for data in data_sets(options):
        for seed in options.seeds:
            for decay in options.decays:
                work = options.work / f"decay-{decay:g}"
                work.mkdir(parents=True, exist_ok=True)
                row = run_once(data, IMAGES, "groups", "trained", seed, work, layer_decay=decay)
                [held_out] = re.findall(r"student ([\d.]+)", row["gain"]) or ["-"]
                for kind, scores in row["scores"]["student"].items():
                    mean = 100 * np.nanmean(np.array(scores, float))
                    print(f"| {decay:g} | {seed} | {held_out} | {kind} | {mean:.1f} |", flush=True)


if __name__ == "__main__":
    main()
