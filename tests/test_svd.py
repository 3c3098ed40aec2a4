"""SVD in its own layout: what is read, who ranks what, and the figures against plain sorting."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from clips import write_lines
from helpers import TEACHER, write_image
from whiten import metrics
from whiten.datasets.finding import find_items, find_videos
from whiten.datasets.svd import read_svd
from whiten.embedding.encoder import Encoder
from whiten.embedding.opening import load
from whiten.embedding.rows import embed_rows
from whiten.errors import ConfigError, NoImagesError, WhitenError
from whiten.evaluation import video_ranking
from whiten.evaluation.svd import svd_task
from whiten.evaluation.video_ranking import VideoSearch
from whiten.evaluation.videos import (
    SVD_FIGURES,
    VideoEvaluation,
    _fitted_as_published,
    evaluate_videos,
)
from whiten.models.teacher import Teacher

KINDS = list(metrics.SET_SIMILARITIES)
# Query, near-duplicates, other labelled candidates; the candidates of one query are shared or not.
TRUTH = {
    "q0": {"l0": 1, "l1": 0, "l2": 1, "l3": 0},
    "q1": {"l3": 1, "l4": 0},
    "q2": {"l5": 0},
}
TRAIN = {"t0": {"t1": 1, "t2": 0}}
UNLABELLED = [f"u{n}" for n in range(9)]
SEEDS = {"l0": 0, "l2": 0, "q0": 0, "q1": 1, "l3": 1, "q2": 2}  # alike where they are the same


def write_svd(root: Path, *, counts: bool = True, frames: int = 3) -> Path:
    """The layout with frames instead of videos; video n has n % `frames` + 1 of them."""
    metadata = root / "metadata-release"
    metadata.mkdir(parents=True)
    labeled = [name for own in (*TRUTH.values(), *TRAIN.values()) for name in own]
    for name, ids in (
        ("query", [*TRUTH, *TRAIN]),
        ("labeled-data", list(dict.fromkeys(labeled))),
        ("unlabeled-data", UNLABELLED),
    ):
        write_lines(metadata / f"{name}-id", [f"{video}.mp4" for video in ids])
    for split, truth in (("test", TRUTH), ("train", TRAIN)):
        lines = [f"{q}.mp4 {c}.mp4 {label}" for q, own in truth.items() for c, label in own.items()]
        write_lines(metadata / f"{split}_groundtruth", lines)
    known = list(dict.fromkeys([*TRUTH, *TRAIN, *labeled, *UNLABELLED]))
    for number, video in enumerate(known):
        for frame in range(number % frames + 1):
            seed = SEEDS.get(video, 10 + number)
            write_image(root / "frames" / video / f"{frame:04d}.jpg", seed, frame)
    if counts:
        rows = [f"{video} {number % frames + 1}" for number, video in enumerate(known)]
        write_lines(root / "num_frames", rows)
    return root


@pytest.fixture
def svd(tmp_path: Path) -> Path:
    return write_svd(tmp_path / "svd")


@pytest.fixture
def teacher(colour_teachers: None) -> str:
    return TEACHER


def plain_figures(
    query: str, similarity: dict[tuple[str, str], float], unlabelled: list[str]
) -> tuple[float, float]:
    """AP of the first 100 and of all, by sorting the whole list as the protocol says."""
    ranked = [(name, label) for name, label in TRUTH[query].items()]
    ranked += [(name, 0) for name in unlabelled]
    ranked.sort(key=lambda pair: -similarity[query, pair[0]])  # stable
    labels = [label for _, label in ranked]
    return metrics.average_precision(labels[:100]), metrics.average_precision(labels)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block", [2, 256])
def test_ranks_equal_those_of_the_sorted_list(
    svd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, block: int
) -> None:
    """With 200 unlabelled videos, so that the first 100 are not all, and with ties."""
    monkeypatch.setattr(video_ranking, "CANDIDATES", block)
    monkeypatch.setattr(video_ranking, "QUERIES", block)
    many = [f"u{n}" for n in range(200)]
    write_lines(svd / "metadata-release" / "unlabeled-data-id", [f"{n}.mp4" for n in many])
    counts = {line.split()[0]: line for line in (svd / "num_frames").read_text().splitlines()}
    write_lines(svd / "num_frames", [counts.get(n, f"{n} 2") for n in [*counts, *many[9:]]])
    task = svd_task(read_svd(svd), tmp_path / "none")
    assert task.videos[task.shared] == many
    # Few different frames: most similarities are those of other videos too.
    palette = np.random.default_rng(0).standard_normal((7, 5)).astype(np.float32)
    frames = palette[np.random.default_rng(1).integers(0, 7, task.lengths.sum())]
    search = VideoSearch(task, frames, kind)
    whole = metrics.set_similarity(
        search.frames_of(task.queries), task.lengths[task.queries], frames, task.lengths, kind
    ).round(5)
    names = [task.videos[query] for query in task.queries]
    similarity = {
        (query, video): float(whole[row, column])
        for row, query in enumerate(names)
        for column, video in enumerate(task.videos)
    }
    monkeypatch.setattr(metrics, "set_similarity", lambda *a, **k: round_similarity(*a, **k))
    for query, ranks in zip(names, search.ranks(), strict=True):
        ours = tuple(figure(ranks) for figure in SVD_FIGURES.values())
        assert ours == pytest.approx(plain_figures(query, similarity, many), abs=1e-12)


_exact = metrics.set_similarity


def round_similarity(*given: object, **options: object) -> np.ndarray:
    """Two products need not round alike; equal videos shall tie."""
    return _exact(*given, **options).round(5)  # type: ignore[arg-type]


def test_the_task(svd: Path, tmp_path: Path) -> None:
    task = svd_task(read_svd(svd), tmp_path / "none")
    assert task.videos == ["q0", "q1", "q2", "l0", "l1", "l2", "l3", "l4", "l5", *UNLABELLED]
    own = [[task.videos[i] for i in videos] for videos in task.own]
    assert own == [list(candidates) for candidates in TRUTH.values()]
    right = [[task.videos[i] for i in videos] for videos in task.positives]
    assert right == [["l0", "l2"], ["l3"], []]
    assert task.lengths.tolist()[:4] == [1, 2, 3, 2]
    # What num_frames says and what lies there is the same.
    (svd / "num_frames").unlink()
    listed = svd_task(read_svd(svd), tmp_path / "none")
    assert list(listed.frames) == list(task.frames)


def test_frames_are_cut_and_strided(tmp_path: Path) -> None:
    svd = read_svd(write_svd(tmp_path / "svd", frames=7))
    task = svd_task(svd, tmp_path / "none", max_frames=4, stride=3)
    # Of 7 frames the first 4 count, and of these every third.
    assert sorted(set(task.lengths.tolist())) == [1, 2]
    seventh = [item.id for item in task.frames if item.id.startswith("l2/")]
    assert seventh == ["l2/0000.jpg", "l2/0003.jpg"]


def test_the_whole_way(svd: Path, teacher: str) -> None:
    result = evaluate_videos(teacher, svd)
    # q2 has no near-duplicate in the truth, and counts with 0 as in the published evaluation.
    assert result.query_ids == ["q0", "q1", "q2"]
    assert result.aps.tolist() == [1, 1, 0]
    assert result.figures["map_top_inf"].value == pytest.approx(2 / 3)
    assert result.figures["map_top_inf"].low < 2 / 3 < result.figures["map_top_inf"].high
    assert result.gallery_size == 6 + 9
    told = result.to_json()
    assert told["similarity"] == "cf"
    assert told["frames"] == result.frames == 36
    assert isinstance(told["map_top_100"], dict)


def test_frames_and_videos_that_are_missing_are_told(svd: Path, teacher: str) -> None:
    for name in ("l3", "l5"):  # the only near-duplicate of q1, and a labelled candidate
        for frame in (svd / "frames" / name).iterdir():
            frame.write_bytes(b"damaged")
    (svd / "num_frames").unlink()
    for frame in (svd / "frames" / "u0").iterdir():
        frame.unlink()
    result = evaluate_videos(teacher, svd)
    assert result.query_ids == ["q0", "q2"]
    assert result.without_positives == 1
    assert result.gallery_size == 15 - 4  # l4 is a candidate of q1 alone
    reasons = {skip.id: skip.reason for skip in result.skipped}
    assert "no frames in" in reasons["u0"]
    assert reasons["l3"] == "none of its frames is left"
    assert reasons["l3/0000.jpg"].startswith("not an image")


def test_the_published_omission_of_the_normalisation(svd: Path, teacher: str) -> None:
    seen: list[tuple[object, ...]] = []

    class WatchedError(Exception):
        """Ends the evaluation once the encoder is there."""

    def watch(encoder: object, *_: object, **__: object) -> None:
        (part,) = encoder.parts  # type: ignore[attr-defined]
        own = part.teacher.preprocess
        seen.append((own.mean, own.std, own.crop_fraction, own.interpolation, own.size))
        raise WatchedError

    for omit in (False, True):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(WatchedError):
            patch.setattr(sys.modules["whiten.evaluation.videos"], "embed_rows", watch)
            evaluate_videos(teacher, svd, omit_normalisation=omit)
    published = (224 / 256, "bilinear", (32, 32))
    imagenet = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert seen == [(*imagenet, *published), ((0.0,) * 3, (1.0,) * 3, *published)]
    with pytest.raises(ConfigError, match="with the protocol svd only"):
        evaluate_videos(teacher, svd, protocol="videos", omit_normalisation=True)


def test_models_that_are_fitted_as_published_keep_their_weights(
    teacher: str, tmp_path: Path
) -> None:
    items = find_items(write_image(tmp_path / "pictures" / "0.png", 0).parent)
    parts = [*load(teacher).parts, *load(f"{TEACHER}?seed=5").parts]
    weighted = _fitted_as_published(Encoder("both", parts, weights=[1.5, 0.5]), False)
    _, [vector], _ = embed_rows(weighted, items)
    lengths = (vector[:12] ** 2).sum(), (vector[12:] ** 2).sum()
    np.testing.assert_allclose(lengths, (0.75, 0.25), atol=1e-5)


def test_what_normalises_its_pixels_is_refused_without_normalisation(
    svd: Path, teacher: str
) -> None:
    encoder = load(teacher)
    model = encoder.parts[0].teacher
    assert isinstance(model, Teacher)
    model.takes_pixels = True
    with pytest.raises(ConfigError, match="normalises its pixels itself: leave out"):
        evaluate_videos(encoder, svd, omit_normalisation=True)


def test_both_normalisations_share_a_cache_without_mixing(
    svd: Path, teacher: str, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"

    def run(omit: bool) -> VideoEvaluation:
        return evaluate_videos(load(teacher), svd, omit_normalisation=omit, cache=cache)

    first = run(False)
    run(True)
    assert len(list(cache.iterdir())) == 2
    assert run(False).aps.tolist() == first.aps.tolist()


def test_training_takes_the_frames_of_the_training_videos(svd: Path) -> None:
    items = find_items(svd)
    assert {item.id.split("/")[0] for item in items} == {"t0", "t1", "t2"}
    assert all(item.group is None for item in items)  # two views of a frame are a pair
    assert Path(items[0].path).is_file()
    (svd / "metadata-release" / "train_groundtruth").unlink()
    with pytest.raises(ConfigError, match="no train_groundtruth"):
        find_items(svd)


def test_without_frames_the_command_is_named(svd: Path) -> None:
    (svd / "frames").rename(svd.parent / "elsewhere")
    with pytest.raises(NoImagesError, match=f"whiten frames {svd} --out {svd / 'frames'}"):
        find_items(svd)
    with pytest.raises(ConfigError, match="neither frames nor videos"):
        evaluate_videos("timm:test_efficientnet?pretrained=0", svd)


def test_names_of_videos_are_those_of_the_release(svd: Path) -> None:
    for name in ("videos/query/q0", "labeled-0/l0", "unlabeled-3/u8"):
        path = svd / f"{name}.mp4"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"video")
    assert [(v.id, v.group) for v in find_videos(svd)] == [("l0", None), ("q0", None), ("u8", None)]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("test_groundtruth", "q0.mp4 l0.mp4 2\n", "line 1 must be QUERY CANDIDATE 0|1"),
        ("test_groundtruth", "q0.mp4 l0.mp4 1\nq0.mp4\n", "line 2 must be QUERY CANDIDATE"),
        ("test_groundtruth", "q0.mp4 stranger.mp4 1\n", "names 'stranger', which is in none of"),
        ("test_groundtruth", "", "has no test_groundtruth"),
        ("query-id", "q0.mp4 q1.mp4\n", "line 1 must be one video"),
        ("query-id", b"\xff\xfe\x00", "it is no text"),
        ("unlabeled-data-id", None, "cannot read .*unlabeled-data-id .no such file"),
        ("query-id", None, "has no metadata-release/query-id"),
        ("../num_frames", "q0 many\n", "line 1 must be VIDEO NUMBER"),
    ],
)
def test_damaged_metadata_are_refused(
    svd: Path, file: str, content: str | bytes | None, message: str
) -> None:
    path = svd / "metadata-release" / file
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(WhitenError, match=message):
        evaluate_videos("timm:test_efficientnet?pretrained=0", svd)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"similarity": "chamfer"}, "unknown value 'chamfer'.*cf, sme, smx, fme, fmx"),
        ({"protocol": "vcdb"}, "unknown value 'vcdb'.*svd, videos"),
        ({"max_frames": 0}, "at least 1"),
    ],
)
def test_options_that_do_not_exist(svd: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluate_videos("timm:test_efficientnet?pretrained=0", svd, **options)  # type: ignore[arg-type]
