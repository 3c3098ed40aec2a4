"""The quick demo, whole: every row, every file, and a second call that finds it done.

Fixtures name the folder of a part: of the photographs, or of the drawings.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import whiten
from whiten.cli import main
from whiten.demo.images import extract_drawings

NAMES = [
    "mobilenetv2",
    "efficientnet-lite2",
    "raw fusion",
    "whitened fusion",
    "student's start",
    "student's start, whitened",
    "student, label-free, raw teachers",
    "student, label-free",
    "student, groups",
    "fused gallery",
    "student, groups, in fused gallery",
]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "quick"
    main(["demo", "--quick", "--out", str(out)])
    return out


@pytest.fixture
def drawings(demo: Path) -> Path:
    return demo / "drawings"


@pytest.fixture
def photos(demo: Path) -> Path:
    return demo / "photos"


@pytest.mark.slow
def test_photographs_show_the_closed_form_seen_and_unseen(photos: Path) -> None:
    found = json.loads((photos / "results.json").read_text())
    names = [*NAMES[:6], "student, closed form", "student"]
    assert [row["name"] for row in found["rows"]] == names
    assert [row["name"] for row in found["seen_unseen"]["rows"]] == names
    for row in found["seen_unseen"]["rows"]:
        assert 0 < row["seen"]["low"] < row["seen"]["value"] < 1
        assert 0 < row["unseen"]["low"] < row["unseen"]["value"] < 1
    assert "35 images of produce" in found["seen_unseen"]["unseen"]
    page = (photos / "report.html").read_text()
    assert "Seen and unseen sources" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


@pytest.mark.slow
def test_the_student_never_saw_produce_or_the_test_products(photos: Path) -> None:
    [store] = (photos / "run" / "embeddings").glob("mobilenetv2-*")
    stored = pq.ParquetDataset([*store.glob("*.parquet")]).read(["id"])
    kinds = {name.split("/")[0] for name in stored["id"].to_pylist()}
    with (photos / "images" / "train.csv").open() as file:
        sources = {row["group"]: row["source"] for row in csv.DictReader(file)}
    assert kinds == {group for group, source in sources.items() if source == "packages"}


@pytest.mark.slow
def test_results_hold_every_row_with_every_figure(drawings: Path) -> None:
    rows = json.loads((drawings / "results.json").read_text())
    assert [row["name"] for row in rows] == NAMES
    kinds = ["teacher"] * 2 + ["fusion-raw", "fusion-whitened"] + ["student"] * 5
    kinds += ["fusion-whitened", "asymmetric"]
    assert [row["kind"] for row in rows] == kinds
    for row in rows:
        low, high = row["map_ci"]
        assert 0 < low < row["map"] < high < 1
        assert 0 < row["recall_at_1"] < 1
        assert row["params"] > 1e6
        assert row["macs"] > 1e6
        assert row["ms_per_image"] > 0
    assert [row["dim"] for row in rows[-4:]] == [256, 32, 32, 32]
    # A query of the asymmetric search costs what the student costs.
    assert rows[-1]["ms_per_image"] == rows[-3]["ms_per_image"] < rows[-2]["ms_per_image"]
    assert rows[2]["dim"] == rows[0]["dim"] + rows[1]["dim"]
    assert rows[2]["macs"] == rows[0]["macs"] + rows[1]["macs"]


@pytest.mark.slow
def test_the_report_stands_alone(drawings: Path) -> None:
    page = (drawings / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert 'src="data:image/png;base64,' in page
    figures = {path.name for path in (drawings / "figures").iterdir()}
    assert {"results.png", "similarities.png", "spectra.png", "wins.png", "loss.png"} <= figures
    assert {"accuracy_latency.png"} <= figures
    assert sum(name.startswith("retrievals_") for name in figures) == 3


@pytest.mark.slow
def test_the_asymmetric_row_is_what_evaluate_finds(drawings: Path) -> None:
    row = json.loads((drawings / "results.json").read_text())[-1]
    student, gallery = drawings / "groups", f"fuse:compatible:{drawings / 'groups'}"
    found = whiten.evaluate(
        student,
        drawings / "images" / "test",
        gallery_encoder=gallery,
        cache=drawings / "embeddings",
    )
    assert found.figures["map"].value == pytest.approx(row["map"], abs=1e-3)


def test_train_and_test_groups_are_disjoint(tmp_path: Path) -> None:
    extract_drawings(tmp_path)
    groups = {
        split: {path.name for path in (tmp_path / split).iterdir()} for split in ("train", "test")
    }
    assert len(groups["train"]) == 1178
    assert len(groups["test"]) == 478
    assert not groups["train"] & groups["test"]
    assert len(list(tmp_path.rglob("*.webp"))) == 4 * (1178 + 478)


@pytest.mark.slow
def test_a_second_call_computes_nothing_again(
    demo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    students = [
        demo / name / "student" / "model.safetensors" for name in ("photos/run", "drawings/groups")
    ]
    stamps = [path.stat().st_mtime_ns for path in students]
    main(["demo", "--quick", "--out", str(demo)])
    out = capsys.readouterr().out
    assert [path.stat().st_mtime_ns for path in students] == stamps
    assert "student, closed form" in out
    assert "student, groups" in out
    assert "whiten search" in out


@pytest.mark.slow
def test_the_demo_s_student_searches(drawings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    query = next((drawings / "images" / "test").rglob("*.webp"))
    student = str(drawings / "groups" / "student")
    main(
        [
            "search",
            str(query),
            "--student",
            student,
            "--in",
            str(drawings / "images" / "test"),
            "--json",
        ]
    )
    hits = json.loads(capsys.readouterr().out)
    assert hits[0]["path"] == str(query)
    assert hits[0]["score"] == pytest.approx(1, abs=1e-4)
    assert whiten.load(student).dim == 32


@pytest.mark.parametrize("content", ["photo.jpg", "demo.json"])
def test_other_folders_are_refused(
    tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / content).write_text('{"quick": false}')
    with pytest.raises(SystemExit) as stop:
        main(["demo", "--quick", "--out", str(tmp_path)])
    assert stop.value.code == 2
    assert "another --out" in capsys.readouterr().err
