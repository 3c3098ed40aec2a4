"""Files that whiten 0.1.0 wrote before its packages were rearranged open and answer as before."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import whiten
from command_line import Captured, fails, prints

EARLIER = Path(__file__).parent / "data" / "earlier"
ANSWERS: dict[str, Any] = json.loads((EARLIER / "answers.json").read_text())
QUERIES: list[str] = ANSWERS["queries"]
TEACHER = "python:colour_teachers:make"
CLOSE = 1e-4  # between CPUs


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the files to work in; their paths are relative to it."""
    shutil.copytree(EARLIER, tmp_path / "earlier")
    monkeypatch.chdir(tmp_path / "earlier")
    monkeypatch.syspath_prepend(tmp_path / "earlier")
    # Other tests have another module of this name.
    sys.modules.pop("colour_teachers", None)
    yield tmp_path / "earlier"
    sys.modules.pop("colour_teachers", None)


def assert_same_hits(found: Sequence[Any], expected: list[Any]) -> None:
    for row, wanted in zip(found, expected, strict=True):
        assert [hit.id for hit in row] == [name for name, *_ in wanted]
        np.testing.assert_allclose(
            [hit.score for hit in row], [score for _, score, *_ in wanted], atol=CLOSE
        )


@pytest.mark.parametrize("model", ANSWERS["embeddings"])
def test_models_embed_and_retrieve_as_before(model: str) -> None:
    encoder = whiten.load(model)
    earlier = ANSWERS["fingerprints"][model]
    # A factory's source and options were not looked at then: its files are known by its URI, too.
    assert encoder.made(model, earlier)
    assert (encoder.fingerprint() == earlier) == (not model.startswith("python:"))
    expected = ANSWERS["embeddings"][model]
    np.testing.assert_allclose(encoder.embed(QUERIES), expected, atol=CLOSE)
    found = whiten.evaluate(encoder, "images").to_json()["map"]["value"]
    assert found == pytest.approx(ANSWERS["evaluation"][model], abs=CLOSE)


def test_a_student_folder_is_the_student_of_its_run() -> None:
    vectors = whiten.load("run/student").embed(QUERIES)
    np.testing.assert_allclose(vectors, ANSWERS["embeddings"]["run"], atol=CLOSE)


def test_an_export_embeds_as_before() -> None:
    vectors = whiten.Exported("export").embed(QUERIES)
    np.testing.assert_allclose(vectors, ANSWERS["exported"], atol=CLOSE)


def test_a_whitener_whitens_as_before() -> None:
    samples = np.random.default_rng(1).normal(size=(5, 6))
    whitened = whiten.Whitener.load("whitener.safetensors").transform(samples)
    np.testing.assert_allclose(whitened, ANSWERS["whitened"], atol=1e-9)


@pytest.mark.parametrize(
    ("store", "options"),
    [
        ("store", ["--precision", "32"]),
        ("store-views", ["--views", "2", "--precision", "bf16", "--dtype", "float16"]),
    ],
)
def test_a_store_takes_more_images(capsys: Captured, store: str, options: list[str]) -> None:
    """Its embeddings stay as they are: another model or view plan would be refused."""
    before = {path.name: path.stat().st_size for path in Path(store).iterdir()}
    command = ("--teacher", TEACHER, "--out", store, *options, "--json")
    facts = json.loads(prints(capsys, "embed", "images", *command)[0])
    views = 2 if "--views" in options else 1
    assert facts["embeddings"] == 24 * views
    assert {path.name for path in Path(store).iterdir()} == before.keys()
    shutil.copytree("more", "images", dirs_exist_ok=True)
    facts = json.loads(prints(capsys, "embed", "images", *command)[0])
    assert facts["embeddings"] == 30 * views


def test_a_finished_run_is_finished(capsys: Captured) -> None:
    student = Path("run/student/model.safetensors").read_bytes()
    facts = json.loads(prints(capsys, "distill", "--out", "run", "--resume", "--json")[0])
    assert facts["steps"] == ANSWERS["steps"]
    assert Path("run/student/model.safetensors").read_bytes() == student
    assert Path("run/report.html").is_file()


def test_an_interrupted_run_goes_on(capsys: Captured) -> None:
    """It was stopped after half of its steps, and ends like the run that was not."""
    facts = json.loads(prints(capsys, "distill", "--out", "run-half", "--resume", "--json")[0])
    assert facts["steps"] == ANSWERS["steps"]
    assert len(Path("run-half/metrics.jsonl").read_text().splitlines()) == ANSWERS["steps"]
    vectors = whiten.load("run-half").embed(QUERIES)
    np.testing.assert_allclose(vectors, ANSWERS["embeddings"]["run"], atol=10 * CLOSE)


@pytest.mark.slow
def test_a_run_is_reported(capsys: Captured) -> None:
    command = ("report", "run", "--test", "images", "--json")
    rows = {row["name"]: row for row in json.loads(prints(capsys, *command)[0])["rows"]}
    expected = ANSWERS["evaluation"]["run"]
    assert rows["student"]["map"] == pytest.approx(expected, abs=CLOSE)


def test_an_index_answers_as_before() -> None:
    expected = ANSWERS["index"]
    index = whiten.Index.open("index", whiten.load("run/student"))
    assert sorted(index.ids()) == expected["ids"]
    found = index.search(QUERIES, 5)
    assert_same_hits(found, expected["hits"])
    assert [[hit.metadata for hit in row] for row in found] == [
        [metadata for *_, metadata in row] for row in expected["hits"]
    ]
    assert_same_hits(index.search(QUERIES, 5, where="price < 10"), expected["cheap"])


def test_an_open_index_that_becomes_an_earlier_one_keeps_its_model() -> None:
    whiten.Index.build(TEACHER, "images", "now")
    index = whiten.Index.open("now")
    encoder, model = index.encoder, index.facts.model
    shutil.rmtree("now")
    shutil.copytree("index-int8", "now")
    index.refresh()
    assert index.facts.model == ANSWERS["fingerprints"][TEACHER] != model
    assert index.encoder is encoder  # not opened again: it is known by its URI, too


def test_an_index_is_brought_up_to_date(capsys: Captured) -> None:
    """Its images were moved since; those whose content it knows are not embedded again."""
    command = ("index", "more", "--student", "run/student", "--out", "index", "--add", "--json")
    facts = json.loads(prints(capsys, *command)[0])
    assert (facts["images"], facts["added"], facts["embedded"]) == (29, 1, 1)
    index = whiten.Index.open("index", whiten.load("run/student"))
    changes = index.add("prices.csv")
    assert (changes.added, changes.embedded, len(index)) == (1, 1, 30)


@pytest.mark.parametrize("kind", ANSWERS["tuned"])
def test_a_tuned_index_answers_as_before(capsys: Captured, kind: str) -> None:
    """It opens its own model, and finds moved images by their content."""
    place = f"index-{kind}"
    assert_same_hits(whiten.Index.open(place).search(QUERIES, 5), ANSWERS["tuned"][kind])
    hits = json.loads(prints(capsys, "search", QUERIES[0], "--index", place, "--json")[0])
    assert [hit["id"] for hit in hits[:5]] == [name for name, *_ in ANSWERS["tuned"][kind][0]]
    command = ("index", "images", "--student", TEACHER, "--out", place, "--json")
    facts = json.loads(prints(capsys, *command)[0])
    assert (facts["updated"], facts["embedded"], facts["removed"]) == (24, 0, 0)


@pytest.mark.parametrize("name", ANSWERS["compact"])
def test_compact_embeddings_say_how_to_make_them_again(capsys: Captured, name: str) -> None:
    """Their codes are a storage of the index now."""
    kind = {"compact-pca4": "pca:4"}.get(name, name.removeprefix("compact-"))
    line = fails(capsys, "search", QUERIES[0], "--index", name)
    command = f"`whiten index IMAGES --model MODEL --storage {kind} --out PLACE`"
    assert f"{name} holds codes of an earlier version" in line and command in line
