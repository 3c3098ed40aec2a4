"""How much of its start should a student keep that learns from groups?

Takes runs of `default_runs.py` that trained a whole network, mixes the weights of the student with
those of its start, and measures the mixtures on the same test images. Prints mAP in points.

    python studies/keep_start.py --photos TABLE --unlabelled TABLE --work FOLDER
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from default_runs import data_sets
from safetensors.torch import load_file
from unseen import measure

from whiten.distillation.averages import blended
from whiten.embedding.encoder import Encoder, Part
from whiten.models.student import as_teacher, build_student
from whiten.runs.folder import RunFolder

SHARES = (0.0, 0.1, 0.15, 0.2, 0.25, 0.5, 0.75, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True, help="table: columns path,group")
    parser.add_argument("--unlabelled", type=Path, required=True, help="table: column path")
    parser.add_argument("--data", nargs="+", default=["drawings", "photos"])
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--images", default="600", help="of the runs: 600 or all")
    parser.add_argument("--shares", nargs="+", type=float, default=SHARES)
    options = parser.parse_args()
    print("| test images | start kept | mAP |\n|---|---|---|")
    for data in data_sets(options):
        run = RunFolder(options.work / f"{data.name}-groups-{options.images}-trained-0")
        _, spec = run.read_config()
        net, config = build_student(spec.student, dim=spec.dim, pool=spec.pooling, size=spec.size)
        net.projection.load_state_dict(load_file(run.start))
        start = {name: value.clone() for name, value in net.state_dict().items()}
        student = load_file(run.student / "model.safetensors")
        for share in options.shares:
            net.load_state_dict(blended(student, start, share))
            model = Encoder("mixture", [Part(as_teacher(net.eval(), config, f"whiten:{share}"))])
            for kind, items in data.tests.items():
                with tempfile.TemporaryDirectory() as cache:
                    found = measure(model, items, np.ones(len(items), bool), Path(cache))["mAP"]
                print(f"| {kind} | {share:g} | {100 * np.nanmean(found):.1f} |", flush=True)


if __name__ == "__main__":
    main()
