"""Real clips in SVD's layout, the whole way by the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from clips import write_svd
from command_line import prints
from whiten import metrics
from whiten.datasets.finding import find_items
from whiten.datasets.svd import read_svd


def chance(root: Path) -> float:
    """Mean AP of rankings drawn at random."""
    svd = read_svd(root)
    rng = np.random.default_rng(0)
    aps = []
    for own in svd.test.values():
        labels = [*own.values(), *[False] * len(svd.unlabeled)]
        aps += [metrics.average_precision(rng.permutation(labels)) for _ in range(200)]
    return float(np.mean(aps))


@pytest.mark.slow
def test_a_student_of_frames_finds_near_duplicates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    svd = write_svd(tmp_path / "svd")
    out, _ = prints(capsys, "frames", svd, "--out", svd / "frames", "--fps", 3)
    assert re.search(r"frames of 79 videos", out)
    training = find_items(svd)
    assert {item.id[: item.id.index("/")].partition("-")[0] for item in training} == {
        *("bikes1", "bigbuckbunny1", "carphone_pristine1")
    }

    run = tmp_path / "run"
    teachers = ["demo:mobilenetv2?size=96", "demo:efficientnet-lite2?size=96"]
    head = ["--student", "demo:efficientnet-lite0", "--size", 64, "--backbone-lr", 0]
    few = ["--epochs", 5, "--batch-size", 32]
    out, _ = prints(capsys, "distill", svd, "--teachers", *teachers, *head, *few, "--out", run)
    assert f"student  {run / 'student'}" in out

    evaluated = [
        *("evaluate", svd, "--model", run / "student"),
        *("--protocol", "svd", "--cache", tmp_path / "e"),
    ]
    page = tmp_path / "svd.html"
    figures = json.loads(prints(capsys, *evaluated, "--report", page, "--json")[0])
    expected = chance(svd)
    assert expected < 0.35
    for name in ("map_top_100", "map_top_inf"):
        assert figures[name]["value"] > 0.9 > 2.5 * expected
    assert (figures["queries"], figures["gallery"], figures["skipped"]) == (5, 52, [])
    assert page.read_text().count("data:image/png;base64,") >= 3

    unnormalised = json.loads(prints(capsys, *evaluated, "--omit-normalisation", "--json")[0])
    assert unnormalised["map_top_inf"]["value"] > 2 * expected
    for kind in ("sme", "smx", "fme", "fmx"):
        other = json.loads(prints(capsys, *evaluated, "--similarity", kind, "--json")[0])
        assert other["map_top_inf"]["value"] > 0.75 > 2 * expected, kind
