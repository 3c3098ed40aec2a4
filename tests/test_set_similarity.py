"""Set similarities against published values, and against the plain way with all pairs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from whiten import metrics
from whiten.errors import ConfigError
from whiten.retrieval import sets as set_similarity

GOLDEN = Path(__file__).parent / "golden" / "video_similarity.npz"
KINDS = list(metrics.SET_SIMILARITIES)

Floats = npt.NDArray[np.float32]


def normalized(rows: Floats) -> Floats:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def plainly(query: Floats, candidate: Floats, kind: str) -> float:
    """One pair of videos at a time."""
    if kind in ("fme", "fmx"):
        pool = np.mean if kind == "fme" else np.max
        return float(normalized(pool(query, axis=0)) @ normalized(pool(candidate, axis=0)))
    pairs = normalized(query) @ normalized(candidate).T
    return float({"cf": pairs.max(1).mean(), "sme": pairs.mean(), "smx": pairs.max()}[kind])


def draw_videos(seed: int, n: int, longest: int, dim: int) -> list[Floats]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest + 1, n)
    return [rng.standard_normal((k, dim)).astype(np.float32) for k in lengths]


@pytest.mark.parametrize("kind", KINDS)
def test_reproduces_the_published_values(kind: str) -> None:
    golden = np.load(GOLDEN)
    ours = metrics.set_similarity(
        golden["query_frames"],
        golden["query_lengths"],
        golden["candidate_frames"],
        golden["candidate_lengths"],
        kind=kind,
    )
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, golden[kind], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block", [3, 40, 100_000])
def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch, kind: str, block: int) -> None:
    """Also where a video is longer than a block, and where a block holds all."""
    monkeypatch.setattr(set_similarity, "_FRAMES", block)
    monkeypatch.setattr(set_similarity, "_QUERY_FRAMES", block + 2)
    queries, candidates = draw_videos(0, 9, 12, 7), draw_videos(1, 31, 20, 7)
    ours = metrics.set_similarity(
        np.concatenate(queries),
        [len(video) for video in queries],
        np.concatenate(candidates),
        [len(video) for video in candidates],
        kind,
    )
    expected = [[plainly(q, c, kind) for c in candidates] for q in queries]
    np.testing.assert_allclose(ours, expected, atol=2e-6)


def test_chamfer_asks_from_the_query() -> None:
    """A short query within a long video is found; the long video is not within the short one."""
    scene = np.eye(4, dtype=np.float32)
    found = metrics.set_similarity(scene[:1], [1], scene, [4])
    assert found.item() == 1
    assert metrics.set_similarity(scene, [4], scene[:1], [1]).item() == pytest.approx(1 / 4)


def test_what_the_user_passes_is_left_alone(tmp_path: Path) -> None:
    frames = np.concatenate(draw_videos(3, 5, 6, 4)) * 7
    before = frames.copy()
    stored = np.memmap(tmp_path / "frames", np.float32, "w+", shape=frames.shape)
    stored[:] = frames
    for kind in KINDS:
        from_file = metrics.set_similarity(frames, [len(frames)], stored, [len(frames)], kind)
        from_half = metrics.set_similarity(
            frames.astype(np.float16), [len(frames)], frames, [len(frames)], kind
        )
        np.testing.assert_allclose(from_file, from_half, atol=1e-3)
    np.testing.assert_array_equal(frames, before)


def test_no_videos_no_similarities() -> None:
    none, some = np.zeros((0, 3), np.float32), np.ones((2, 3), np.float32)
    for kind in KINDS:
        assert metrics.set_similarity(none, [], some, [2], kind).shape == (0, 1)
        assert metrics.set_similarity(some, [2], none, [], kind).shape == (1, 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [1e-30, 1e-16, 1e25])
def test_frames_may_have_any_length(kind: str, length: float) -> None:
    """Their squares vanish or overflow in float32."""
    query, candidate = draw_videos(0, 2, 5, 7)
    scaled = [(video * length).astype(np.float32) for video in (query, candidate)]
    found = metrics.set_similarity(scaled[0], [len(query)], scaled[1], [len(candidate)], kind)
    assert found.item() == pytest.approx(plainly(query, candidate, kind), abs=1e-6)


@pytest.mark.parametrize(
    ("frames", "lengths", "kind", "message"),
    [
        (np.ones((3, 4)), [3], "chamfer", "unknown set similarity 'chamfer'.*cf, sme"),
        (np.ones((3, 4)), [3, 0], "cf", "candidate 1 has 0 frames: leave"),
        (np.ones((3, 4)), [2], "sme", "sum to 2, but there are 3"),
        (np.ones((3, 5)), [3], "fme", "4 dimensions and candidate frames 5"),
        (np.ones(3), [3], "smx", r"shape \(3,\)"),
    ],
)
def test_refuses_what_does_not_fit(
    frames: Floats, lengths: list[int], kind: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        metrics.set_similarity(np.ones((2, 4)), [2], frames, lengths, kind)
