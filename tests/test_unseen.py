"""Held-out sources: never trained on, and measured beside the seen ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from command_line import SMALL, STUDENT, Captured, fails, prints
from helpers import TEACHER, write_groups, write_image
from whiten.datasets.finding import find_items
from whiten.distillation import prepare
from whiten.distillation.distill import distill
from whiten.errors import ConfigError, RunError
from whiten.evaluation import run_encoders
from whiten.evaluation.run import measure_run
from whiten.evaluation.run_encoders import START, START_WHITENED
from whiten.models.student import load_student
from whiten.runs.apart import Apart
from whiten.runs.folder import RunFolder
from whiten.runs.spec import DistillSpec

OPTIONS = {"student": STUDENT, "dim": 4, "whiten_dim": 3, "epochs": 1, "batch_size": 4}
ROWS = ["raw fusion", "whitened fusion", START, START_WHITENED, "student"]


def write_table(
    folder: Path, sources: list[str], column: str = "source", grouped: bool = True
) -> Path:
    """Name the sources of a folder's images in turn, in a table beside it."""
    rows = [
        f"{folder.name}/{item.id},{item.group if grouped else ''},{sources[n % len(sources)]}"
        for n, item in enumerate(find_items(folder))
    ]
    table = folder.parent / f"{folder.name}.csv"
    table.write_text("\n".join([f"path,group,{column}", *rows]) + "\n")
    return table


@pytest.fixture
def table(tmp_path: Path, colour_teachers: None) -> Path:
    """60 groups of 4, whose images are of 3 sources: the second and fourth of source b."""
    images = write_groups(tmp_path / "images", {f"g{n:02}": 4 for n in range(60)})
    return write_table(images, ["a", "b", "c", "b"])


def fitted_on(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """The ids of the images that each whitening and the training are fitted on."""
    seen: list[set[str]] = []
    fit, start = prepare.fit_whiteners, prepare.write_start

    def fitting(stores, items, **options):  # type: ignore[no-untyped-def]
        seen.append(set(items.ids.to_pylist()))
        return fit(stores, items, **options)

    def starting(run, spec, net, items, held, source):  # type: ignore[no-untyped-def]
        seen.append(set(items.ids.to_pylist()))
        return start(run, spec, net, items, held, source)

    monkeypatch.setattr(prepare, "fit_whiteners", fitting)
    monkeypatch.setattr(prepare, "write_start", starting)
    fit_on = run_encoders.fit_on

    def fitting_start(teacher, items, **options):  # type: ignore[no-untyped-def]
        seen.append(set(items.ids.to_pylist()))
        return fit_on(teacher, items, **options)

    monkeypatch.setattr(run_encoders, "fit_on", fitting_start)
    return seen


@pytest.mark.slow
def test_seen_and_unseen_beside_each_other(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = fitted_on(monkeypatch)
    out = table.parent / "run"
    result = distill(table, [TEACHER], out, holdout_source=["b"], show_progress=False, **OPTIONS)
    found = measure_run(out).seen_unseen
    assert found is not None
    unseen = {row.split(",")[0] for row in table.read_text().splitlines() if row.endswith(",b")}
    assert len(unseen) == 120
    assert len(seen) == 3 and all(ids and not ids & unseen for ids in seen)
    apart = Apart.read(RunFolder(out))
    assert set(apart.unseen.ids.to_pylist()) == unseen
    assert found.criterion == "mAP of groups"
    assert [row.name for row in found.rows][1:] == ROWS
    assert found.unseen == "120 images of b"
    assert found.seen == f"{len(apart.held_out)} held-out images, which chose the student"
    for row in found.rows:
        for score in (row.seen, row.unseen):
            assert score is not None and 0 <= score.low <= score.value <= score.high <= 1
    training = load_student(result.student)[1].training
    assert training["unseen sources"] == "b (column source, 120 images)"
    assert (
        "unseen sources: b (column source, 120 images)"
        in (result.student / "README.md").read_text()
    )
    assert RunFolder(out).read_config()[1].holdout_source == ["b"]


@pytest.mark.slow
def test_unseen_map_is_that_of_their_groups(table: Path) -> None:
    from whiten.datasets.task import folder_task
    from whiten.embedding.opening import load
    from whiten.evaluation.evaluate import evaluate_task

    out = table.parent / "run"
    distill(table, [TEACHER], out, holdout_source=["b"], show_progress=False, **OPTIONS)
    found = measure_run(out).seen_unseen
    assert found is not None
    items = Apart.read(RunFolder(out)).unseen
    vectors = load(out / "student").embed([item.path for item in items])
    expected = evaluate_task(folder_task(items), vectors, vectors).figures["map"].value
    assert found.rows[-1].unseen is not None
    assert found.rows[-1].unseen.value == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow
def test_without_groups_the_teachers_judge(table: Path) -> None:
    plain = write_table(table.parent / "images", ["a", "b", "c", "b"], "shop", grouped=False)
    out = table.parent / "run"
    held = {"holdout_source": ["b"], "source_column": "shop"}
    distill(plain, [TEACHER], out, show_progress=False, **held, **OPTIONS)
    found = measure_run(out).seen_unseen
    assert found is not None
    assert found.criterion == "Agreement with the fused teachers' neighbours"
    assert "whitened fusion" not in [row.name for row in found.rows]  # the measure itself
    assert all(row.unseen is not None and 0 < row.unseen.value <= 1 for row in found.rows)


def test_copies_and_unlabelled_images_of_unseen_sources_never_train(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = fitted_on(monkeypatch)
    images = tmp_path / "images"
    shutil.copy(images / "g00" / "1.png", images / "g05" / "0.png")  # of b, and of a
    more = tmp_path / "more"
    write_image(more / "x" / "0.png", seed=900)
    shutil.copy(images / "g00" / "3.png", more / "copy.png")  # a folder that names no source
    other = write_groups(tmp_path / "other", {f"o{n}": 1 for n in range(4)})
    for n in range(4):
        write_image(other / f"o{n}" / "0.png", seed=500 + n)
    listed = write_table(other, ["a", "b"])
    options = {**OPTIONS, "unlabelled": [str(more), str(listed)], "holdout_source": ["b"]}
    result = distill(table, [TEACHER], tmp_path / "run", show_progress=False, **options)
    for ids in seen:
        short = {name.split("/", 1)[1] for name in ids}
        assert "g05/0.png" not in short and "copy.png" not in short
        assert {"g05/2.png", "x/0.png"} <= short
        assert {"other/o0/0.png", "other/o2/0.png"} <= short
        assert not {"other/o1/0.png", "other/o3/0.png"} & short
    training = load_student(result.student)[1].training
    assert training["unseen sources"].endswith("120 images); 2 copies of these in other sources")


@pytest.mark.slow
def test_test_images_are_the_seen_ones(capsys: Captured, table: Path, tmp_path: Path) -> None:
    tests = write_groups(tmp_path / "tests", {f"t{n}": 4 for n in range(5)})
    listed = write_table(tests, ["a", "b", "a", "a"])
    run = tmp_path / "run"
    asked = ["distill", table, "--teachers", TEACHER, "--student", STUDENT, *SMALL, "--out", run]
    out, _ = prints(capsys, *asked, "--holdout-source", "b", "--test", listed)
    assert f"Seen: 15 test images in {listed}. Unseen: 120 images of b." in out
    [head] = [line for line in out.splitlines() if line.startswith("name") and "unseen" in line]
    assert head.split("  ")[0] == "name"
    assert "on unseen sources the student has" in out
    page = (run / "report.html").read_text()
    assert "Seen and unseen sources" in page and page.count("unseen sources</th>") == 1
    facts = json.loads(prints(capsys, "report", run, "--json")[0])["seen_unseen"]
    assert facts["criterion"] == "mAP of groups"
    assert [row["name"] for row in facts["rows"]][1:] == ROWS
    assert set(facts["rows"][0]["unseen"]) == {"value", "low", "high"}


@pytest.mark.slow
def test_resume(capsys: Captured, table: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    asked = ["distill", table, "--teachers", TEACHER, "--student", STUDENT, *SMALL, "--out", run]
    prints(capsys, *asked, "--holdout-source", "b")
    out, _ = prints(capsys, "distill", "--out", run, "--resume")
    assert "unseen sources" in out
    message = fails(capsys, *asked, "--holdout-source", "c", "--resume")
    assert "begun with another holdout_source" in message
    RunFolder(run).apart.unlink()
    with pytest.raises(RunError, match="unseen images are not known"):
        measure_run(run)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--holdout-source", "B"], "did you mean 'b'? It has 'a', 'b', 'c'"),
        (["--holdout-source", "north"], "has no 'north' in column 'source'. It has 'a', 'b', 'c'"),
        (["--holdout-source", "a", "b", "c"], "names every source"),
        (["--holdout-source", "b", "--source-column", "sauce"], "did you mean 'source'?"),
        (["--source-column", "group"], "name the sources to hold out with --holdout-source"),
    ],
)
def test_mistakes(capsys: Captured, table: Path, options: list[str], message: str) -> None:
    asked = ["distill", table, "--teachers", TEACHER, "--student", STUDENT, *SMALL]
    assert message in fails(capsys, *asked, "--out", table.parent / "run", *options)


def test_a_source_that_is_too_small_to_test_on(table: Path) -> None:
    few = table.read_text().replace("g00/1.png,g00,b", "g00/1.png,g00,tiny")
    table.write_text(few)
    with pytest.raises(ConfigError, match="1 image of tiny: too few to test on"):
        distill(table, [TEACHER], table.parent / "run", holdout_source=["tiny"], **OPTIONS)


def test_images_without_a_source_can_be_held_out(table: Path) -> None:
    table.write_text(table.read_text().replace(",b\n", ",\n"))
    spec = DistillSpec(teachers=[TEACHER], holdout_source=["(no source)"])
    seen, unseen = prepare.split_sources(str(table), find_items(table), spec)
    assert (len(seen), len(unseen)) == (120, 120)
    assert not np.isin(unseen.ids.to_pylist(), seen.ids.to_pylist()).any()


def test_sources_are_texts() -> None:
    with pytest.raises(ConfigError, match=r"holdout_source must be a list of texts, not \[2019\]"):
        DistillSpec(teachers=[TEACHER], holdout_source=[2019])  # type: ignore[list-item]
