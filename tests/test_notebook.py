"""Notebooks: calls leave the process as they found it, and name what they cannot take."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import whiten
from helpers import TEACHER, draw, write_groups
from small_runs import STUDENT, TEACHERS, run
from whiten.distillation.distill import distill
from whiten.errors import ConfigError, RunError
from whiten.export import export
from whiten.models.tracing import trace_onnx


def states() -> list[Any]:
    """The random state of all that a notebook draws with."""
    legacy = np.random.get_state(legacy=True)
    return [torch.get_rng_state().tolist(), random.getstate(), legacy[1].tolist(), legacy[2]]


def test_the_caller_s_random_numbers_are_not_seeded(
    shared_images: Path, cache: Path, tmp_path: Path, colour_teachers: None
) -> None:
    student = run(shared_images, tmp_path / "run", cache, epochs=1).student
    calls: dict[str, Callable[[], object]] = {
        "distill": lambda: run(shared_images, tmp_path / "other", cache, epochs=1, overwrite=True),
        "diagnose": lambda: whiten.diagnose(shared_images, [TEACHER], STUDENT),
        "load": lambda: [whiten.load(uri) for uri in (TEACHER, *TEACHERS)],
        "load a student": lambda: whiten.load(student, runtime="torch").embed(draw(0)),
        "load_module": lambda: whiten.load_module(student),
        "export": lambda: export(student, tmp_path / "exported"),
    }
    for name, call in calls.items():
        torch.manual_seed(7)
        before = states()
        call()
        assert states() == before, name


@pytest.mark.parametrize("images", [pd.DataFrame({"path": ["a.jpg"]}), ["a.jpg"], None, ""])
def test_images_that_are_no_folder_or_table(images: Any, tmp_path: Path, encoder: Any) -> None:
    calls: list[Callable[[], object]] = [
        lambda: distill(images, [TEACHER], tmp_path / "run", show_progress=False),
        lambda: whiten.diagnose(images, [TEACHER]),
        lambda: whiten.evaluate(encoder, images),
    ]
    for call in calls:
        with pytest.raises(ConfigError, match=r"name a folder or a table|such a table") as caught:
            call()
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_run_resumes_on_its_own_images_only(
    shared_images: Path, cache: Path, tmp_path: Path
) -> None:
    run(shared_images, tmp_path / "run", cache, epochs=0)
    others = write_groups(tmp_path / "others", {"a": 4, "b": 4})
    with pytest.raises(RunError, match="another images"):
        distill(others, out=tmp_path / "run", resume=True, show_progress=False)
    with pytest.raises(RunError, match="another teachers"):
        distill("", TEACHERS[:1], tmp_path / "run", resume=True, show_progress=False)
    for images in ("", shared_images):
        distill(images, out=tmp_path / "run", resume=True, show_progress=False)


def test_threads_distil_and_trace_as_one_does(
    shared_images: Path, cache: Path, tmp_path: Path
) -> None:
    module = torch.nn.Linear(4, 2)  # its weights are drawn at random

    def student(name: str) -> bytes:
        out = tmp_path / name
        trace_onnx(module, torch.zeros(2, 4))
        made = run(shared_images, out, cache, epochs=1, start="random").student
        return (made / "model.safetensors").read_bytes()

    with ThreadPoolExecutor(1) as pool:  # the number of torch's threads differs in the main one
        alone = list(pool.map(student, ["alone"]))
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(student, "abc")) == alone * 3


def test_what_a_notebook_shows(
    encoder: whiten.Encoder, tmp_path: Path, shared_images: Path
) -> None:
    index = whiten.Index.build(encoder, shared_images, tmp_path / "index")
    assert repr(index) == f"Index({str(tmp_path / 'index')!r})"
    assert repr(encoder) == f"Encoder({TEACHER!r}, dim={encoder.dim}, runtime='torch')"
    assert repr(whiten.Whitener(dim=4)) == "Whitener(dim=4, shrinkage=0.1)"


def test_a_whitener_makes_its_folder(tmp_path: Path) -> None:
    whitener = whiten.Whitener(dim=2).fit(np.random.default_rng(0).standard_normal((9, 4)))
    whitener.save(tmp_path / "new" / "a.safetensors")
    np.testing.assert_array_equal(
        whiten.Whitener.load(tmp_path / "new" / "a.safetensors").projection_, whitener.projection_
    )
