"""Revisited Oxford and Paris: the whole way on miniatures, distractors, ties, what is refused."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from command_line import STUDENT, Captured, fails, prints
from helpers import TEACHER
from miniature import write_distractors, write_revisited
from whiten.datasets.ground_truth import GroundTruth, read_truth
from whiten.datasets.revisited import RevisitedSet, distractor_list, read_distractors, read_set
from whiten.embedding.opening import load
from whiten.errors import ConfigError, NoImagesError, StoreError
from whiten.evaluation.revisited import (
    blocks_of,
    evaluate_revisited_set,
    require_set,
    score_settings,
)
from whiten.evaluation.revisited_report import RevisitedReport, Setting
from whiten.metrics import Figure, bootstrap_interval, revisited
from whiten.store.shards import Origin, Row
from whiten.store.store import Store
from whiten.utils.arrays import normalize_rows
from whiten.views.own_size import render_own_size
from whiten.whitening.whitener import Whitener

pytestmark = pytest.mark.usefixtures("colour_teachers")

LANDMARKS = 6
COUNT = 9


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_revisited(tmp_path / "data", "roxford5k", LANDMARKS)
    write_distractors(tmp_path / "data", COUNT)
    return tmp_path / "data"


def unit(rng: np.random.Generator, n: int, dim: int = 16) -> np.ndarray:
    return normalize_rows(rng.standard_normal((n, dim)).astype(np.float32))


def truth_of(rng: np.random.Generator, queries: int, n: int) -> GroundTruth:
    """Random lists; the first query has nothing easy, the second nothing hard."""
    lists = []
    for query in range(queries):
        places = rng.permutation(n)[:9].tolist()
        easy, hard = places[: 0 if query == 0 else 3], places[3 : 3 if query == 1 else 6]
        lists.append({"easy": easy, "hard": hard, "junk": places[6:]})
    names = [str(number) for number in range(n)]
    return GroundTruth(names, names[:queries], lists, [(0.0, 0.0, 9.0, 9.0)] * queries)


# --- scoring ----------------------------------------------------------------------------


def check(setting: Setting, similarity: np.ndarray, truth: GroundTruth) -> None:
    """Against the metric on the whole matrix, which is checked against the golden files."""
    expected = revisited(similarity, truth.lists)
    for name, scores in expected.items():
        figure = setting.figures[name]
        assert figure is not None
        aps = np.array([ap for ap in scores["aps"] if ap is not None])
        assert figure.value == pytest.approx(scores["map"], abs=1e-12)
        assert (figure.low, figure.high) == pytest.approx(bootstrap_interval(aps))
        assert setting.precisions[name] == pytest.approx(scores["mp_at"], abs=1e-12)
        assert setting.counted[name] == len(aps)


def test_scores_in_blocks_are_those_of_the_whole_matrix() -> None:
    rng = np.random.default_rng(0)
    truth = truth_of(rng, 8, 40)
    queries = {"cropped": unit(rng, 8), "uncropped": unit(rng, 8)}
    gallery, distractors = unit(rng, 40), unit(rng, 333)
    blocks = np.split(distractors, [1, 100, 100, 290])
    settings = list(score_settings(queries, gallery, truth, blocks))
    labels = [(s.queries, s.distractors) for s in settings]
    assert labels == [(kind, count) for count in (0, 333) for kind in queries]
    for setting in settings:
        searched = np.concatenate([gallery, distractors]) if setting.distractors else gallery
        check(setting, searched @ queries[setting.queries].T, truth)
    assert settings[0].counted == {"easy": 7, "medium": 8, "hard": 7}
    assert settings[2].figures["medium"] != settings[0].figures["medium"]


def test_ties_rank_by_index_and_the_database_before_distractors() -> None:
    gallery = np.array([[0, 1], [1, 0], [1, 0], [1, 0], [0, 1]], np.float32)
    queries = {"cropped": np.array([[1, 0]], np.float32)}
    lists = [{"easy": [2], "hard": [3], "junk": [1]}]
    truth = GroundTruth(list("abcde"), ["q"], lists, [(0, 0, 1, 1)])
    equal = np.array([[1, 0]] * 5, np.float32)
    for setting in score_settings(queries, gallery, truth, [equal]):
        # 1 is junk, 2 stands first and 3 second; of the distractors none is before them.
        assert [f and f.value for f in setting.figures.values()] == [1.0, 1.0, 1.0]
    lists = [{"easy": [3], "hard": [], "junk": []}]
    truth = GroundTruth(list("abcde"), ["q"], lists, [(0, 0, 1, 1)])
    for setting in score_settings(queries, gallery, truth, [equal]):
        figure = setting.figures["easy"]
        # Third of three equals: the mean of 0/2 and 1/3.
        assert figure is not None and figure.value == pytest.approx((0 + 1 / 3) / 2)
        assert setting.figures["hard"] is None and setting.precisions["hard"] == {}


def test_blocks_join_shards_and_leave_out_what_is_not_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = unit(np.random.default_rng(0), 20, 4)
    store = Store.create_or_resume(tmp_path / "store", Origin("u", "f", 4, "", 0))
    names = [f"{number:02d}.jpg" for number in range(20)]
    for start in range(0, 20, 3):
        rows = zip(names[start : start + 3], vectors[start : start + 3], strict=True)
        store.append([Row(name, name, None, 0, name, vector) for name, vector in rows])
    monkeypatch.setattr("whiten.evaluation.revisited.BLOCK_BYTES", 8 * 4 * 4)  # 8 rows
    blocks = list(blocks_of(store))
    assert [len(block) for block in blocks] == [6, 6, 8]
    np.testing.assert_array_equal(np.concatenate(blocks), vectors)
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "revisitop1m.txt").write_text("\n".join(names[5:15]))
    items = read_distractors(tmp_path / "list" / "revisitop1m.txt")
    np.testing.assert_array_equal(np.concatenate(list(blocks_of(store, items))), vectors[5:15])


def test_lines_say_how_many_queries_have_something_to_find() -> None:
    rng = np.random.default_rng(0)
    truth = truth_of(rng, 8, 40)
    settings = list(score_settings({"cropped": unit(rng, 8)}, unit(rng, 40), truth))
    report = RevisitedReport("roxford5k", "net", 16, (1.0,), True, 8, 40, settings, [])
    lines = list(report.lines())
    assert lines[:3] == [
        "roxford5k: net, 16 dimensions",
        "8 queries, 40 images, longest side 1024, 1 scale",
        "queries cropped",
    ]
    assert [line.endswith("  (7 queries)") for line in lines[3:6]] == [True, False, True]
    assert f"mAP {settings[0].figures['hard'].value:.4f}  [" in lines[5]  # type: ignore[union-attr]


# --- the whole way ----------------------------------------------------------------------


def by_hand(root: Path, *, cropped: bool, distractors: bool) -> np.ndarray:
    """(gallery, queries) similarities, image by image."""
    truth = read_truth(root / "roxford5k" / "gnd_roxford5k.pkl")
    teacher = load(TEACHER).parts[0].teacher
    jpg = root / "roxford5k" / "jpg"
    boxes = truth.boxes if cropped else [None] * len(truth.queries)

    def embed(file: Path, box: Any = None) -> np.ndarray:
        row: np.ndarray = teacher.embed(render_own_size(file.read_bytes(), box=box)[None])[0]
        return row

    queries = [embed(jpg / f"{q}.jpg", box) for q, box in zip(truth.queries, boxes, strict=True)]
    files = [jpg / f"{name}.jpg" for name in truth.images]
    if distractors:
        files += [Path(item.path) for item in read_distractors(distractor_list(root) or root)]
    return np.stack([embed(file) for file in files]) @ np.stack(queries).T


def oxford(root: Path) -> RevisitedSet:
    return require_set(root, "roxford5k")


def test_figures_are_those_by_hand(root: Path) -> None:
    report = evaluate_revisited_set(load(TEACHER), oxford(root), distractors=root)
    truth = read_truth(root / "roxford5k" / "gnd_roxford5k.pkl")
    assert [(s.queries, s.distractors) for s in report.settings] == [
        ("cropped", 0),
        ("uncropped", 0),
        ("cropped", COUNT),
        ("uncropped", COUNT),
    ]
    for setting in report.settings:
        cropped = setting.queries == "cropped"
        similarity = by_hand(root, cropped=cropped, distractors=bool(setting.distractors))
        check(setting, similarity, truth)
    found = [setting.figures["medium"] for setting in report.settings]
    assert len(set(found)) == 4  # crop and distractors change them
    assert (report.queries, report.database, report.dim) == (LANDMARKS, 3 * LANDMARKS, 12)


def medium(report: RevisitedReport) -> list[Figure | None]:
    return [setting.figures["medium"] for setting in report.settings]


def test_scales_and_whitening_change_figures(root: Path) -> None:
    model = load(STUDENT)
    dim = model.dim
    rows = np.random.default_rng(0).standard_normal((4 * dim, dim))
    Whitener(6).fit(rows * np.linspace(1, 4, dim)).save(root / "w.safetensors")
    plain = evaluate_revisited_set(model, oxford(root))
    with_whitening = load(STUDENT, whitener=root / "w.safetensors")
    whitened = evaluate_revisited_set(with_whitening, oxford(root))
    scaled = evaluate_revisited_set(model, oxford(root), multi_scale=True)
    assert whitened.dim == 6 and whitened.whitened and medium(whitened) != medium(plain)
    assert len(scaled.scales) == 3 and medium(scaled) != medium(plain)


def test_what_is_embedded_is_kept_and_a_store_of_distractors_serves(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, cache = load(TEACHER), root / "cache"
    first = evaluate_revisited_set(model, oxford(root), distractors=root, cache=cache)
    [store] = (cache / "revisitop1m").iterdir()

    def nothing_new(*_: object, **__: object) -> None:
        raise AssertionError("embedded again")

    monkeypatch.setattr("whiten.evaluation.revisited.render_own_size", nothing_new)
    again = evaluate_revisited_set(model, oxford(root), distractors=store, cache=cache)
    assert again.to_json() == first.to_json()
    with pytest.raises(AssertionError, match="embedded again"):
        evaluate_revisited_set(model, oxford(root), multi_scale=True, cache=cache)


def test_an_interrupted_evaluation_goes_on(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, cache = load(TEACHER), root / "cache"
    whole = evaluate_revisited_set(model, oxford(root), distractors=root)
    monkeypatch.setattr("whiten.embedding.embed.SHARD_ROWS", 4)
    monkeypatch.setattr("whiten.utils.threads.cores", lambda: 1)  # renders in order
    rendered: list[int] = []

    def render(data: bytes, **options: Any) -> Any:
        rendered.append(len(data))
        if len(rendered) == 37:  # of 6 + 6 + 18 + 9
            while not list((cache / "revisitop1m").rglob("*.parquet")):  # of those before
                time.sleep(0.01)
            raise KeyboardInterrupt
        return render_own_size(data, **options)

    monkeypatch.setattr("whiten.evaluation.revisited.render_own_size", render)
    with pytest.raises(KeyboardInterrupt):
        evaluate_revisited_set(model, oxford(root), distractors=root, cache=cache)
    rendered.clear()
    again = evaluate_revisited_set(model, oxford(root), distractors=root, cache=cache)
    assert len(rendered) == COUNT - 4  # nothing but distractors, of which a shard was there
    assert again.to_json() == whole.to_json()


def test_anothers_store_of_distractors_is_refused(root: Path) -> None:
    model, cache = load(TEACHER), root / "cache"
    evaluate_revisited_set(model, oxford(root), distractors=root, cache=cache)
    [store] = (cache / "revisitop1m").iterdir()
    for other, options in ((load(f"{TEACHER}?seed=1"), {}), (model, {"multi_scale": True})):
        with pytest.raises(StoreError, match="of another model, or of other scales"):
            evaluate_revisited_set(other, oxford(root), distractors=store, **options)
    queries = next((cache / "roxford5k-queries-cropped").iterdir())
    with pytest.raises(StoreError, match="of another model, or of other"):
        evaluate_revisited_set(model, oxford(root), distractors=queries)


def test_bad_distractors_are_left_out_and_counted(root: Path) -> None:
    items = read_distractors(distractor_list(root) or root)
    Path(items[0].path).write_bytes(b"no image")
    Path(items[1].path).unlink()
    report = evaluate_revisited_set(load(TEACHER), oxford(root), distractors=root)
    assert [skip.id for skip in report.skipped] == [items[0].id, items[1].id]
    assert report.settings[-1].distractors == COUNT - 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("landmark_000001_fluent", None, "1 of 18 images of roxford5k are missing, first .*fluent"),
        ("query_000002", None, "1 of 6 images of roxford5k are missing, first .*query_000002"),
        ("landmark_000001_fluent", b"no image", "1 of 18 images .* cannot be used, first 'landm"),
        ("query_000002", b"", "1 of 6 images of roxford5k-queries-cropped cannot be used"),
    ],
)
def test_the_truth_counts_on_every_image(
    root: Path, name: str, content: bytes | None, message: str
) -> None:
    file = root / "roxford5k" / "jpg" / f"{name}.jpg"
    file.unlink() if content is None else file.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        evaluate_revisited_set(load(TEACHER), oxford(root))


def test_lists_of_distractors_that_are_no_such(tmp_path: Path) -> None:
    file = tmp_path / "revisitop1m.txt"
    for text, message in (
        ("a.jpg\n../b.jpg\n", "outside of its folder"),
        ("/etc/a.jpg\n", "outside of its folder"),
        ("a.jpg\nb.jpg\na.jpg\n", "'a.jpg' twice"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_distractors(file)
    file.write_text("\n\n")
    with pytest.raises(NoImagesError):
        read_distractors(file)
    file.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ConfigError, match="cannot read"):
        read_distractors(file)


# --- the command line -------------------------------------------------------------------


def test_the_command_prints_all_settings(capsys: Captured, root: Path) -> None:
    out, _ = prints(
        capsys, "evaluate", root, "--model", TEACHER, "--distractors", root
    )  # recognised
    lines = out.splitlines()
    assert lines[0] == "roxford5k: colour_teachers:make, 12 dimensions"
    assert lines[1] == "6 queries, 18 images, longest side 1024, 1 scale"
    heads = [line for line in lines if line.startswith("queries ")]
    assert heads == [
        "queries cropped",
        "queries uncropped",
        "queries cropped + 9 distractors",
        "queries uncropped + 9 distractors",
    ]
    assert sum(line.startswith("  hard    mAP 0.") for line in lines) == 4
    assert "36 also occur in GLDv2-clean" in lines[-2]
    assert lines[-1].endswith("rank by gallery index, the database before the distractors")


def test_the_command_as_json(capsys: Captured, root: Path) -> None:
    folder = write_revisited(root, "rparis6k", 3, json_form=True)
    command = ("evaluate", folder, "--model", TEACHER, "--multi-scale", "--json")
    found = json.loads(prints(capsys, *command)[0])
    report = evaluate_revisited_set(load(TEACHER), require_set(root, "rparis6k"), multi_scale=True)
    assert found == {**report.to_json(), "runtime": "torch"}
    assert (found["protocol"], found["longest_side"], len(found["scales"])) == ("rparis6k", 1024, 3)
    setting = found["settings"][0]
    assert set(setting) == {"queries", "distractors", "easy", "medium", "hard"}
    assert set(setting["hard"]) == {"map", "mp@1", "mp@5", "mp@10", "queries"}
    assert "38 also occur" in found["overlap"]


def test_a_whitening_from_a_file(capsys: Captured, root: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((99, 12))
    Whitener(6).fit(rows).save(root / "w.safetensors")
    command = (
        "evaluate",
        root / "roxford5k",
        "--model",
        TEACHER,
        "--whitener",
        root / "w.safetensors",
    )
    assert prints(capsys, *command)[0].startswith(
        "roxford5k: colour_teachers:make, whitened, 6 dimensions\n"
    )


def test_mistakes_are_one_line(capsys: Captured, root: Path) -> None:
    cases: list[tuple[str, tuple[object, ...]]] = [
        ("svd, videos; did you mean 'roxford5k'?", (root, "--protocol", "oxford5k")),
        ("holds neither rparis6k/gnd_rparis6k.pkl", (root, "--protocol", "rparis6k")),
        ("queries of its own", (root, "--queries", root)),
        ("only with --protocol", (root / "code", "--multi-scale")),
        ("nor a store of embeddings (", (root, "--distractors", root / "no")),
        ("): name one of them", (root, "--distractors", root / "roxford5k")),
        ("is not a readable whitener", (root, "--whitener", root / "no")),
    ]
    for message, arguments in cases:
        assert message in fails(capsys, "evaluate", *arguments, "--model", TEACHER)
    write_revisited(root, "rparis6k", 2)
    assert "add --protocol" in fails(capsys, "evaluate", root, "--model", TEACHER)
    fused = f"fuse:raw:{TEACHER},{TEACHER}?seed=1"
    line = fails(capsys, "evaluate", root, "--model", fused, "--protocol", "roxford5k")
    assert "one model at a time" in line


def test_the_command_reads_the_truth_once(
    capsys: Captured, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def noted(place: Path, name: str) -> RevisitedSet:
        read.append(name)
        return read_set(place, name)

    monkeypatch.setattr("whiten.evaluation.revisited.read_set", noted)
    prints(capsys, "evaluate", root, "--model", TEACHER)
    assert read == ["roxford5k"]
