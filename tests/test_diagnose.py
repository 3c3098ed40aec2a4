"""What teachers are worth: their measures, the scores of fusions, and the verb."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import whiten
from helpers import TEACHER, write_groups
from whiten.cli import main
from whiten.datasets.finding import find_items
from whiten.diagnosis.copies import exact_copies
from whiten.diagnosis.page import page
from whiten.diagnosis.result import Difference, StudentFacts, TeacherFacts, per_dim
from whiten.diagnosis.verdict import verdict
from whiten.embedding.opening import fit_on
from whiten.errors import ConfigError, ConstantInputError, NoImagesError, WhitenError
from whiten.models.registry import open_teacher
from whiten.utils.arrays import normalize_rows
from whiten.utils.names import distinct
from whiten.whitening.profile import agreement, effective_rank, spectrum
from whiten.whitening.weighting import GROUPS, VIEWS, fused, has_groups, judge_of

RNG = np.random.default_rng(0)
TEACHERS = [TEACHER, f"{TEACHER}?seed=1&dim=8"]


def test_the_effective_rank_counts_equal_axes() -> None:
    assert effective_rank(np.ones(7)) == pytest.approx(7)
    assert effective_rank(np.array([3.0, 0.0])) == pytest.approx(1)
    assert effective_rank(np.zeros(3)) == 0
    # Entropy of (3/4, 1/4) in nats, by hand.
    assert effective_rank(np.array([3.0, 1.0])) == pytest.approx(np.exp(0.56233514))


def test_the_spectrum_is_that_of_the_covariance() -> None:
    points = RNG.normal(size=(50, 4)) * [4, 3, 2, 1]
    expected = np.linalg.eigvalsh(np.cov(points.T))[::-1]
    np.testing.assert_allclose(spectrum(points), expected)


def test_agreement_is_the_share_of_common_neighbours() -> None:
    # On a line; the second teacher sees image 0 next to image 3.
    angles = np.deg2rad([[0, 10, 40, 80], [85, 10, 40, 80]])
    teachers = [np.stack([np.cos(a), np.sin(a)], axis=1) for a in angles]
    # Nearest in the first: 1, 0, 1, 2; in the second: 3, 2, 1, 0. Only image 2 agrees.
    np.testing.assert_allclose(agreement(teachers, 1), [[1, 0.25], [0.25, 1]])
    np.testing.assert_allclose(agreement([teachers[0]] * 2, 10), 1)


def test_few_images_are_no_common_neighbours_by_necessity() -> None:
    # Of 9 images, any two teachers have all 8 others in common.
    teachers = [normalize_rows(RNG.normal(size=(9, 8))) for _ in range(2)]
    assert agreement(teachers)[0, 1] < 0.9


def test_the_fusion_is_the_weighted_mean_of_cosines() -> None:
    parts = [normalize_rows(RNG.normal(size=(6, d))) for d in (3, 5)]
    joined = fused(parts, [1.0, 0.25])
    expected = (parts[0] @ parts[0].T + 0.25 * parts[1] @ parts[1].T) / 1.25
    np.testing.assert_allclose(joined @ joined.T, expected)
    np.testing.assert_allclose(fused(parts, [2.0, 0.0]), parts[0])


def group_teachers(noise: float) -> tuple[list[np.ndarray], list[str]]:
    """A teacher that knows 24 groups of 4, up to noise, and one that knows nothing."""
    centres = RNG.normal(size=(24, 16)).repeat(4, axis=0)
    good = centres + noise * RNG.normal(size=centres.shape)
    names = [f"g{i}" for i in range(24) for _ in range(4)]
    return [normalize_rows(good), normalize_rows(RNG.normal(size=(96, 16)))], names


def test_groups_judge_a_fusion() -> None:
    teachers, names = group_teachers(0.1)
    judge = judge_of(teachers, [None, None], groups=names)
    assert judge is not None and judge.criterion == GROUPS
    assert judge.scores([1.0, 0.0]).tolist() == [1.0] * 96
    assert judge.scores([0.0, 1.0]).mean() < 0.5
    assert [fold.classes.size for fold in judge.folds] == [24] * 4


def test_second_views_judge_a_fusion() -> None:
    teachers, _ = group_teachers(1.0)
    views = [teachers[0] + 0.01 * RNG.normal(size=(96, 16)), RNG.normal(size=(96, 16))]
    judge = judge_of(teachers, [None, None], second_views=views)
    assert judge is not None and judge.criterion == VIEWS
    assert judge.scores([1.0, 0.0]).tolist() == [1.0] * 96
    assert judge.scores([0.0, 1.0]).mean() < 0.5


def test_without_evidence_nothing_is_judged() -> None:
    teachers, _ = group_teachers(1.0)
    assert judge_of(teachers, [None, None]) is None
    assert judge_of(teachers, [None, None], groups=["a", "a", *([None] * 94)]) is None
    assert judge_of([t[:95] for t in teachers], [None] * 2, second_views=teachers) is None
    pairs = [f"g{i // 2}" for i in range(32)]
    assert not has_groups([None, *pairs[:31]])
    assert has_groups([None, *pairs])


def facts(
    name: str, adds: Difference | None, agreed: dict[str, float], **more: float
) -> TeacherFacts:
    given = {"samples_per_dim": 10.0, "ms_per_image": 1.0} | more
    return TeacherFacts(
        name=name, uri=name, dim=8, spectrum=[1.0], effective_rank=1.0, agreement=agreed,
        whitening="", score=0.5, adds=adds, params=1, macs=1,
        samples_per_dim=given["samples_per_dim"], ms_per_image=given["ms_per_image"],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("value", "text"), [(12.53, "12.5"), (1.0, "1.0"), (0.0312, "0.031"), (0.004, "0.004")]
)
def test_images_per_dimension_have_useful_digits(value: float, text: str) -> None:
    assert per_dim(facts("a", None, {}, samples_per_dim=value)) == text


def test_the_verdict_says_only_what_the_numbers_say() -> None:
    good = Difference(0.1, 0.01)
    quiet = verdict(
        copied=0.0,
        teachers=[facts("a", good, {"b": 0.4}), facts("b", good, {"a": 0.4})],
        whitening_adds=Difference(0.01, 0.01),
        student=None,
    )
    assert quiet == []
    said = verdict(
        copied=0.1,
        teachers=[
            facts("a", Difference(-0.1, 0.01), {"b": 0.95}),
            facts("b", Difference(0.0, 0.01), {"a": 0.95}, ms_per_image=9.0, samples_per_dim=1.0),
        ],
        whitening_adds=Difference(-0.05, 0.01),
        student=StudentFacts("s", "mAP", 0.3, 0.35, 0.4, "ridge"),
    )
    starts = ["Leave out a", "b adds nothing", "a and b find", "Do not whiten", "More images"]
    starts += ["10 % of the images", "The student gains 5.0"]
    assert [one.startswith(start) for one, start in zip(said, starts, strict=True)] == [True] * 7


def test_a_teacher_that_adds_nothing_is_advised_against_only_where_it_costs() -> None:
    def said(*times: float) -> list[str]:
        none = Difference(0.0, 0.01)
        teachers = [facts(str(n), none, {}, ms_per_image=ms) for n, ms in enumerate(times)]
        return verdict(copied=0.0, teachers=teachers, whitening_adds=None, student=None)

    assert said(0.012, 0.010) == said(0.05, 0.01) == said(5.0, 4.0, 4.5) == said(0.0, 0.0) == []
    [one] = said(1.0, 9.0)
    assert one.startswith("1 adds nothing") and "takes 90 % of the teachers' time" in one


def test_exact_copies_are_counted(tmp_path: Path) -> None:
    folder = write_groups(tmp_path / "images", {"a": 3, "b": 3})
    assert exact_copies(find_items(folder)) == 0
    for name in ("x.png", "y.png"):
        shutil.copy(folder / "a" / "0.png", folder / "b" / name)
    for name in ("p.png", "q.png", "r.jpg"):  # no images
        (folder / "b" / name).write_bytes(b"no image")
    assert exact_copies(find_items(folder)) == 2


def test_equal_names_are_told_apart() -> None:
    assert distinct(["a", "b", "a", "a"]) == ["a", "b", "a (2)", "a (3)"]


@pytest.mark.usefixtures("colour_teachers")
def test_a_diagnosis_of_grouped_images(tmp_path: Path) -> None:
    images = write_groups(tmp_path / "images", {f"g{i}": 4 for i in range(24)})
    (images / "g0" / "broken.png").write_bytes(b"no image")
    shutil.copy(images / "g1" / "0.png", images / "g1" / "copy.png")
    found = whiten.diagnose(images, TEACHERS)
    assert (found.images, found.sampled, found.exact_copies) == (98, 97, 1)
    assert found.criterion == GROUPS
    assert [skip.id for skip in found.skipped] == ["g0/broken.png"]
    assert [teacher.dim for teacher in found.teachers] == [12, 8]
    first, second = found.teachers
    assert first.name != second.name
    assert first.agreement == {second.name: pytest.approx(second.agreement[first.name])}
    assert first.samples_per_dim == 98 / 12
    assert 1 < first.effective_rank <= 12
    assert found.whitened is not None and found.raw is not None
    assert found.whitening_adds is not None
    assert found.whitening_adds.value == pytest.approx(found.whitened - found.raw)
    again = whiten.diagnose(images, TEACHERS)
    assert (again.raw, again.whitened) == (found.raw, found.whitened)


@pytest.mark.slow
@pytest.mark.usefixtures("colour_teachers")
def test_without_groups_second_views_count_and_distill_finds_the_embeddings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_groups(tmp_path / "images", {f"g{i}": 4 for i in range(30)})
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in folder.rglob("*.png"):
        shutil.copy(path, flat / f"{path.parent.name}-{path.name}")
    student = "timm:test_vit?pretrained=0&size=32"
    out = tmp_path / "page" / "index.html"
    cache = str(tmp_path / "cache")
    options = ["--student", student, "--cache", cache, "--out", str(out), "--json"]
    main(["diagnose", str(flat), "--teachers", *TEACHERS, *options])
    told = json.loads(capsys.readouterr().out)
    assert told["criterion"] == VIEWS
    assert told["sampled"] == 120
    assert told["student"]["closed"] >= 0.9 * told["student"]["start"]
    html = out.read_text()
    assert html.count("<img") == 3 and "http" not in html.replace("http-equiv", "")
    whiten.distill(
        flat, TEACHERS, tmp_path / "run", student=student, epochs=0, dim=8,
        views=2, cache=cache,
    )  # fmt: skip
    assert "embed" not in capsys.readouterr().err.replace("embedded", "")


@pytest.mark.usefixtures("colour_teachers")
def test_a_sample_keeps_groups_whole(tmp_path: Path) -> None:
    images = write_groups(tmp_path / "images", {f"g{i}": 4 for i in range(30)})
    found = whiten.diagnose(images, TEACHERS[:1], sample=100)
    assert (found.images, found.sampled) == (120, 100)
    assert found.criterion == GROUPS
    assert found.teachers[0].adds is None and found.teachers[0].agreement == {}
    assert found.lines()[0].startswith("120 images, 100 of them looked at")


@pytest.mark.usefixtures("colour_teachers")
def test_few_images_have_no_scores_and_are_told_why(tmp_path: Path) -> None:
    images = write_groups(tmp_path / "images", {f"g{i}": 4 for i in range(20)})
    found = whiten.diagnose(images, TEACHERS)
    assert found.criterion is None
    why = "scores: none, they take 96 images or more"
    assert why in found.lines()
    assert why.capitalize() in page(found)


CONSTANT = """
from colour_teachers import make as make_colourful


def make():
    layers, preprocess = make_colourful()
    layers[2].weight.data.zero_()
    return layers, preprocess
"""


@pytest.mark.usefixtures("colour_teachers")
def test_a_teacher_that_tells_no_images_apart_is_named(tmp_path: Path) -> None:
    (tmp_path / "code" / "constant_teacher.py").write_text(CONSTANT)
    images = write_groups(tmp_path / "images", {f"g{i}": 2 for i in range(6)})
    uri = "python:constant_teacher:make"
    with pytest.raises(ConstantInputError, match=f"^{uri} embeds all 12 images as the same vector"):
        whiten.diagnose(images, [TEACHER, uri])
    with pytest.raises(ConstantInputError, match=f"^{uri}: all 12 fitting samples are the same"):
        fit_on(open_teacher(uri), images)


@pytest.mark.usefixtures("colour_teachers")
def test_mistakes_are_told_in_one_line(tmp_path: Path) -> None:
    images = write_groups(tmp_path / "images", {"a": 1})
    wrong: list[tuple[dict[str, object], type[WhitenError]]] = [
        ({"teachers": TEACHER}, ConfigError),
        ({"teachers": []}, ConfigError),
        ({"teachers": [TEACHER], "sample": -1}, ConfigError),
        ({"teachers": [TEACHER], "sample": 1}, ConfigError),
        ({"teachers": [TEACHER]}, NoImagesError),
    ]
    for options, error in wrong:
        with pytest.raises(error) as raised:
            whiten.diagnose(images, **options)  # type: ignore[arg-type]
        assert "\n" not in str(raised.value)
    with pytest.raises(ConfigError, match="teachers is a list of URIs: write"):
        whiten.diagnose(images, TEACHER)
