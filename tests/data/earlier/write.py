"""Write the files of this folder again, with whiten 0.1.0 before the packages were rearranged.

Usage: python tests/data/earlier/write.py, with the old version installed.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from whiten.run_folder import RunFolder

import whiten
from whiten import cli
from whiten.compact import open_compact

HERE = Path(__file__).parent
WORK = Path(tempfile.gettempdir()) / "whiten-earlier"
TEACHER = "python:colour_teachers:make"
TEACHERS = [TEACHER, f"{TEACHER}?seed=1"]
STUDENT = "timm:test_efficientnet?pretrained=0&size=64"
DISTIL = ["--dim", "4", "--whiten-dim", "3", "--epochs", "2", "--batch-size", "4", "--compatible"]
FROZEN = ["--backbone-lr", "0", "--precision", "32"]
FACTORY = '''"""Teachers that cost nothing: the mean colour of each quarter, mixed at random."""

import torch
from torch import nn


def make(dim="12", seed="0"):
    layers = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, int(dim)))
    generator = torch.Generator().manual_seed(int(seed))
    for weights in layers.parameters():
        weights.data.normal_(generator=generator)
    return layers
'''


def write_images(folder: str, first: int, groups: int, size: int) -> None:
    for group in range(first, first + groups):
        colours = np.random.default_rng(group).integers(30, 226, (4, 4, 3))
        for n in range(size):
            noise = np.random.default_rng([group, n]).normal(0, 55, (4, 4, 3))
            pixels = (colours + noise).clip(0, 255).astype(np.uint8).repeat(8, 0).repeat(8, 1)
            path = Path(folder) / f"group{group}" / f"{n}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)


def write_files() -> None:
    Path("colour_teachers.py").write_text(FACTORY)
    write_images("images", 0, 6, 4)
    write_images("more", 6, 2, 3)
    paths = sorted(Path("images").rglob("*.png"))
    rows = [f"{path},{path.parent.name},{n}" for n, path in enumerate(paths)]
    Path("prices.csv").write_text("path,group,price\n" + "\n".join(rows) + "\n")

    cli.main(["embed", "images", "--teacher", TEACHER, "--out", "store", "--precision", "32"])
    views = ["--views", "2", "--precision", "bf16", "--dtype", "float16"]
    cli.main(["embed", "images", "--teacher", TEACHER, "--out", "store-views", *views])
    options = ["--student", STUDENT, *DISTIL, *FROZEN, "--out", "run"]
    cli.main(["distill", "images", "--teachers", *TEACHERS, *options])
    with interrupted(step=3):
        cli.main(["distill", "images", "--teachers", *TEACHERS, *options[:-1], "run-half"])
    noise = np.random.default_rng(0).normal(size=(64, 6)) * [5, 4, 3, 2, 1, 0.5]
    whiten.Whitener(4).fit(noise).save("whitener.safetensors")
    cli.main(["export", "run/student", "--out", "export"])
    cli.main(["index", "prices.csv", "--student", "run/student", "--out", "index"])
    cli.main(["index", "more", "--add", "--out", "index"])
    cli.main(["index", "--remove", *removed(), "--out", "index"])
    for kind in ("int8", "hnsw"):
        place = ["--out", f"index-{kind}", "--kind", kind]
        cli.main(["index", "images", "--student", TEACHER, *place])
    for kind in ("int8", "pca:4", "binary"):
        out = f"compact-{kind.replace(':', '')}"
        cli.main(["compact", "images", "--student", TEACHER, "--write", kind, "--out", out])


@contextmanager
def interrupted(step: int) -> Iterator[None]:
    """Interrupt a training once its checkpoint of a step is written."""
    save = RunFolder.save_checkpoint

    def save_and_stop(run: RunFolder, state: dict) -> None:
        save(run, state)
        if state["step"] == step:
            raise KeyboardInterrupt

    RunFolder.save_checkpoint = save_and_stop
    try:
        yield
    except SystemExit as stop:
        assert stop.code == 130
    finally:
        RunFolder.save_checkpoint = save


def removed() -> list[str]:
    index = whiten.Index.open("index", whiten.load("run/student"))
    ids = sorted(index.ids())
    return [ids[1], ids[-1]]  # one of each collection


def queries() -> list[str]:
    return [str(path) for path in sorted(Path("images").rglob("*.png"))[::5]]


def hits(found: list) -> list:
    return [[[hit.id, hit.score, hit.metadata] for hit in row] for row in found]


def answers() -> dict:
    """What this version answers."""
    asked, teacher = queries(), whiten.load(TEACHER)
    student = whiten.load("run/student")
    models = [TEACHER, "run", "store:store", "onnx:export"]
    models += [f"fuse:{kind}:run" for kind in ("raw", "whitened", "compatible")]
    index = whiten.Index.open("index", student)
    noise = np.random.default_rng(1).normal(size=(5, 6))
    compact = ("compact-int8", "compact-pca4", "compact-binary")
    return {
        "queries": asked,
        "embeddings": {name: whiten.load(name).embed(asked).tolist() for name in models},
        "fingerprints": {name: whiten.load(name).fingerprint() for name in models},
        "exported": whiten.Exported("export").embed(asked).tolist(),
        "evaluation": {
            name: whiten.evaluate(whiten.load(name), "images").to_json()["map"]["value"]
            for name in models
        },
        "whitened": whiten.Whitener.load("whitener.safetensors").transform(noise).tolist(),
        "index": {
            "ids": sorted(index.ids()),
            "hits": hits(index.search(asked, 5)),
            "cheap": hits(index.search(asked, 5, where="price < 10")),
        },
        "tuned": {
            kind: hits(whiten.Index.open(f"index-{kind}").search(asked, 5))
            for kind in ("int8", "hnsw")
        },
        "compact": {
            name: [
                [[hit.id, hit.score] for hit in row]
                for row in open_compact(name).search(teacher.embed(asked), 5)
            ]
            for name in compact
        },
        "steps": len(Path("run/metrics.jsonl").read_text().splitlines()),
    }


def main() -> None:
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir()
    os.chdir(WORK)
    sys.path.insert(0, str(WORK))
    write_files()
    Path("answers.json").write_text(json.dumps(answers(), indent=1) + "\n")
    for name in ("report.html", "figures"):  # drawn again by `whiten report`
        path = WORK / "run" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for path in WORK.iterdir():
        shutil.rmtree(HERE / path.name, ignore_errors=True)
        if path.is_dir():
            shutil.copytree(path, HERE / path.name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, HERE / path.name)
    shutil.rmtree(WORK)


if __name__ == "__main__":
    main()
