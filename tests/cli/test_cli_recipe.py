"""`distill --recipe FILE` on the command line, the whole way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from command_line import STUDENT, Captured, fails, prints
from helpers import TEACHER

RECIPE: dict[str, Any] = {
    "images": "images",
    "recipe": "paper",
    "teachers": [TEACHER],
    "student": STUDENT,
    "dim": 4,
    "whiten_dim": 3,
    "epochs": 2,
    "batch_size": 4,
}


def write(**options: Any) -> None:
    Path("r.yaml").write_text(yaml.safe_dump({**RECIPE, **options}))


@pytest.mark.usefixtures("images")
def test_a_recipe_is_all_that_a_run_needs(capsys: Captured) -> None:
    write()
    facts = json.loads(prints(capsys, "distill", "--recipe", "r.yaml", "--out", "run", "--json")[0])
    assert facts["recipe"].startswith("recipe paper (kl)")
    assert facts["steps"] == 2  # four groups make one batch an epoch
    training = json.loads(Path("run/student/config.json").read_text())["training"]
    assert training["augment"] == "paper-images"
    [folder] = Path("run/embeddings").glob("*-paper-images")
    assert list(folder.glob("*.parquet"))


@pytest.mark.slow
@pytest.mark.usefixtures("images")
def test_frames_are_trained_as_published(capsys: Captured) -> None:
    write(pairs="frames", teachers_online=True, views=400)
    out, _ = prints(capsys, "distill", "--recipe=r.yaml", "--out", "run", "--epochs", "3")
    assert "student  run/student" in out
    training = json.loads(Path("run/student/config.json").read_text())["training"]
    assert training["augment"] == "paper-frames"
    assert training["pairs"] == "two views of a frame of each video"
    assert (training["steps"], training["classes"]) == (3, 4)
    [folder] = Path("run/embeddings").glob("*-paper-frames")
    # One random view of each frame fits the whitening, and the others are never stored.
    views = [
        v for path in folder.glob("*.parquet") for v in pq.read_table(path)["view"].to_pylist()
    ]
    assert views == [0] * 16


@pytest.mark.slow
def test_the_images_of_the_command_go_before_the_recipes(capsys: Captured, images: Path) -> None:
    write(images="nowhere")
    out, _ = prints(capsys, "distill", images, "--recipe", "r.yaml", "--out", "run")
    assert "student  run/student" in out
    line = fails(capsys, "distill", "--recipe", "r.yaml", "--out", "other")
    assert "nowhere" in line


@pytest.mark.usefixtures("images")
def test_a_wrong_recipe_is_one_line(capsys: Captured) -> None:
    write(fusion="maxmim")
    line = fails(capsys, "distill", "--recipe", "r.yaml", "--out", "run")
    assert 'Invalid value "maxmim" for [fusion] from r.yaml' in line and '"maxmin"?' in line
    assert "cannot read none.yaml" in fails(
        capsys, "distill", "--recipe", "none.yaml", "--out", "run"
    )
    assert "papr" in fails(capsys, "distill", "images", "--recipe", "papr", "--out", "run")
    assert not Path("run").exists()
