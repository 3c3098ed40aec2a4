"""By what should held-out groups measure whether training gained anything?

Reads the runs of `default_runs.py` on images with groups, and measures their starts and their
students again on the images that each run held out: by a search among them, by a search among all
training images, by small crops, and by whole images and crops alike, as `distill` does. Prints what
the student gained, in points, with the number of standard errors in brackets, beside what it gained
on the test images.

    python studies/held_out.py --photos TABLE --unlabelled TABLE --work FOLDER --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
from default_runs import BACKBONES, data_sets
from safetensors.torch import load_file

from whiten.datasets.finding import find_items
from whiten.distillation.held_out import CROP_VIEWS, CROPS, HeldOut, hold_out, without_trained
from whiten.embedding.embed import embed
from whiten.evaluation.run_encoders import CLOSED_FORM
from whiten.models.student import StudentNet, as_teacher, build_student
from whiten.models.student_folder import StudentConfig
from whiten.runs.folder import RunFolder

HELD_OUT = 0.1  # share of the images, as in default runs
Floats = npt.NDArray[np.float64]


def measured(net: StudentNet, config: StudentConfig, table: Path, seed: int) -> dict[str, Floats]:
    """What each held-out image finds, by criterion."""
    model = as_teacher(net.eval(), config, "whiten:student")
    items = find_items(table)
    with tempfile.TemporaryDirectory() as place:
        store = embed(items, model, Path(place, "whole"))
        contents = store.content_hashes(items.by_id)
        kept, held = without_trained(hold_out(items.groups, contents, HELD_OUT, seed), contents)
        items = items.take(kept)
        apart = items.take(held)
        every = store.gather(items.ids.to_pylist())
        views = embed(apart, model, Path(place, "crops"), views=CROP_VIEWS, plan=CROPS)
        crops = np.stack([views.gather(apart.ids.to_pylist(), k) for k in CROP_VIEWS], axis=1)
    whole = every[held]
    among = HeldOut.of(every, items.groups)
    judge = HeldOut.of(whole, apart.groups, has_crops=True)
    by_wholes, both = judge.precisions(whole), judge.precisions(whole, crops)
    return {
        "whole images": by_wholes,
        "among all": among.precisions(every)[held[among.relevant[0].any(axis=1)]],
        "crops": 2 * both - by_wholes,
        "both": both,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True, help="table: columns path,group")
    parser.add_argument("--unlabelled", type=Path, required=True, help="table: column path")
    parser.add_argument("--data", nargs="+", default=["drawings", "photos"])
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--images", default="600", help="of the runs: 600 or all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    options = parser.parse_args()
    heads = ["images", "backbone", "seed", "whole images", "among all", "crops", "both", "test"]
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for data in data_sets(options):
        for backbone in BACKBONES:
            for seed in options.seeds:
                name = f"{data.name}-groups-{options.images}-{backbone}-{seed}"
                run = RunFolder(options.work / name)
                table = options.work / f"{name}.csv"
                _, spec = run.read_config()
                net, config = build_student(
                    spec.student, dim=spec.dim, pool=spec.pooling, size=spec.size
                )
                net.projection.load_state_dict(load_file(run.start))
                start = measured(net, config, table, spec.seed)
                net.load_state_dict(load_file(run.student / "model.safetensors"))
                student = measured(net, config, table, spec.seed)
                cells = [data.name, backbone, str(seed)]
                for criterion, precisions in student.items():
                    gains = precisions - start[criterion]
                    error = gains.std() / len(gains) ** 0.5
                    cells.append(f"{100 * gains.mean():+.1f} ({gains.mean() / error:.1f})")
                scores = json.loads((options.work / f"{name}.json").read_text())["scores"]
                means = [
                    np.nanmean(np.concatenate([*scores[row].values()]).astype(float))
                    for row in (CLOSED_FORM, "student")
                ]
                cells.append(f"{100 * (means[1] - means[0]):+.1f}")
                print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
