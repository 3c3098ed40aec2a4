"""`distill --compatible`: the student's queries search a gallery of its teachers, on the CLI."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from command_line import STUDENT, Captured, fails, prints
from helpers import TEACHER, write_factory, write_groups
from whiten import cli

pytestmark = pytest.mark.slow

TEACHERS = [TEACHER, f"{TEACHER}?seed=1&dim=5"]
HEAD = ["--whiten-dim", "4", "--backbone-lr", "0", "--epochs", "10", "--batch-size", "16"]
WIDE = {f"g{number}": 4 for number in range(12)}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, a run whose student is compatible, and one whose student is not."""
    root = tmp_path_factory.mktemp("compatible")
    write_factory(root / "code")
    images = str(write_groups(root / "images", WIDE))
    command = ["distill", images, "--teachers", *TEACHERS, "--student", STUDENT, *HEAD]
    command += ["--dim", "6", "--pairs", "views", "--embeddings", str(root / "cache")]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root / "code")
        cli.main([*command, "--compatible", "--out", str(root / "run")])
        cli.main([*command, "--out", str(root / "plain")])
    return root


def test_a_compatible_student_asks_its_teachers(capsys: Captured, made: Path) -> None:
    gallery = f"fuse:compatible:{made / 'run'}"
    command = ("evaluate", made / "images", "--model", made / "run", "--gallery-model", gallery)
    facts = json.loads(prints(capsys, *command, "--json")[0])
    assert facts["name"] == ("run against colour_teachers:make + colour_teachers:make, compatible")
    assert (facts["dim"], facts["queries"], facts["gallery"]) == (6, 48, 48)
    # By chance 3 of 47 would be right; the student was told no group.
    assert facts["recall@1"]["low"] > 2 * 3 / 47
    asked = prints(capsys, *command, "--queries", made / "images", "--json")[0]
    assert json.loads(asked)["map"]["low"] > 3 * 4 / 48


def test_the_report_has_a_row_for_it(capsys: Captured, made: Path) -> None:
    out, _ = prints(capsys, "report", made / "run", "--test", made / "images", "--json")
    rows = {row["name"]: row for row in json.loads(out)["rows"]}
    asked, gallery = rows["student, in fused gallery"], rows["fused gallery"]
    assert (asked["kind"], gallery["kind"]) == ("asymmetric", "fusion-whitened")
    assert asked["params"] == rows["student"]["params"] != gallery["params"]
    page = (made / "run" / "report.html").read_text()
    assert "In the gallery of the teachers (6 dimensions) the queries of student have" in page
    command = ("evaluate", made / "images", "--model", made / "run", "--json", "--gallery-model")
    facts = json.loads(prints(capsys, *command, f"fuse:compatible:{made / 'run'}")[0])
    assert facts["map"]["value"] == pytest.approx(asked["map"], abs=0.02)
    assert (
        "asymmetric" not in prints(capsys, "report", made / "plain", "--test", made / "images")[0]
    )


def test_another_student_is_refused(capsys: Captured, made: Path) -> None:
    gallery = f"fuse:compatible:{made / 'run'}"
    for model in (made / "plain", TEACHER, f"fuse:whitened:{made / 'run'}"):
        line = fails(
            capsys, "evaluate", made / "images", "--model", model, "--gallery-model", gallery
        )
        assert "their spaces are not the same: distil it with --compatible" in line
    other = f"fuse:compatible:{made / 'plain'}"
    line = fails(
        capsys, "evaluate", made / "images", "--model", made / "run", "--gallery-model", other
    )
    assert "cannot search its teachers' gallery: distil with --compatible" in line
    line = fails(capsys, "evaluate", "x", "--model", made / "run", "--protocol", "rparis6k",
                 "--gallery-model", gallery)  # fmt: skip
    assert "leave out --gallery-model" in line


def test_an_index_of_the_teachers_answers_its_student(capsys: Captured, made: Path) -> None:
    query, images = made / "images" / "g3" / "1.png", made / "images"
    command = ("search", query, "--in", images, "--index", "index", "--json", "--student")
    prints(capsys, *command, f"fuse:compatible:{made / 'run'}")
    ask = ("search", query, "--index", "index", "--json", "--student")
    hits = json.loads(prints(capsys, *ask, made / "run")[0])
    assert len(hits) == 10 and hits[0]["score"] < 0.9999  # no embedding of its own
    assert "was made with another model" in fails(capsys, *ask, made / "plain")
    assert "was made with another model" in fails(capsys, *command, made / "run")  # only asks


def test_it_is_an_option_as_others_are(capsys: Captured, made: Path, tmp_path: Path) -> None:
    options = yaml.safe_load((made / "run" / "config.yaml").read_text())
    assert options["compatible"] is True
    assert yaml.safe_load((made / "plain" / "config.yaml").read_text())["compatible"] is False
    again = tmp_path / "again"
    prints(capsys, "distill", made / "images", "--config", made / "run" / "config.yaml",
           "--embeddings", made / "cache", "--out", again)  # fmt: skip
    (made_with, made_anew) = (
        json.loads((run / "student" / "config.json").read_text())["compatible_with"]
        for run in (made / "run", again)
    )
    assert made_with == made_anew
    assert made_with[:12] in (made / "run" / "student" / "README.md").read_text()
    prints(capsys, "distill", "--out", again, "--resume")
    line = fails(capsys, "distill", made / "images", "--config", made / "run" / "config.yaml",
                 "--no-compatible", "--out", again, "--resume")  # fmt: skip
    assert "was begun with another compatible" in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--teachers-online"], "--compatible needs cached teachers: leave out --teachers-online"),
        (["--align", "0"], "--compatible learns by align: leave out --align 0"),
        (["--dim", "9"], "fused in 8 dimensions give a gallery of at most 8, dim=9 does not fit"),
        (["--dim", "16", "--no-whiten"], "in 17 dimensions give a gallery of at most 15, dim=16"),
    ],
)
def test_what_cannot_be(capsys: Captured, images: Path, options: list[str], message: str) -> None:
    command = ["distill", images, "--teachers", *TEACHERS, "--student", STUDENT, "--compatible"]
    assert message in fails(capsys, *command, *HEAD, *options, "--out", "run")
    assert not list(Path().glob("run/embeddings/*/part*"))  # before a teacher has worked for it
