"""Chamfer similarity of 64 queries and 1,024 candidates, compared with the published padded way.

    python benchmarks/set_similarity.py

512 dimensions; every video has 60 frames, or 8 to 60. The published way pads all videos to 60
frames, multiplies every query with every candidate, 16 videos at a time, masks what is padding,
and reduces it. Because its mask is made by a loop in Python, the same way with a mask made in one
step is a rival too. The floor is the product of all frames alone. `OPENBLAS_CORETYPE` and
`OPENBLAS_L2_SIZE` should not be set.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from side_by_side import Comparison, Report, arguments, peak_bytes, take_turns
from torch import Tensor

from whiten.retrieval.sets import set_similarity

OURS, PUBLISHED, VECTORIZED, FLOOR = (
    "whiten",
    "published way (padded, torch)",
    "the same, mask made in one step",
    "floor: bare product",
)
LONGEST = 60
BATCH = 16  # videos; the published evaluation's default
FLOOR_ROWS = 2048
AIMS = {"60": 9.0, "8 to 60": 25.0}  # times the published way's speed
MOST_MEMORY, MOST_DEVIATION = 0.1, 1e-5

Lengths = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


def padded(frames: Floats, lengths: Lengths) -> Tensor:
    out = torch.zeros(len(lengths), LONGEST, frames.shape[1])
    for row, own in enumerate(np.split(frames, np.cumsum(lengths)[:-1])):
        out[row, : len(own)] = torch.from_numpy(own)
    return F.normalize(out, dim=-1)


def mask_by_loop(queries: Lengths, candidates: Lengths) -> Tensor:
    valid = torch.ones(len(queries), len(candidates), LONGEST, LONGEST, dtype=torch.bool)
    for i, own in enumerate(queries.tolist()):
        for j, other in enumerate(candidates.tolist()):
            valid[i, j, own:, :] = False
            valid[i, j, :, other:] = False
    return valid


def mask_at_once(queries: Lengths, candidates: Lengths) -> Tensor:
    frame = torch.arange(LONGEST)
    rows = frame < torch.from_numpy(queries)[:, None]
    columns = frame < torch.from_numpy(candidates)[:, None]
    return rows[:, None, :, None] & columns[None, :, None, :]


def padded_chamfer(
    query_frames: Floats,
    query_lengths: Lengths,
    frames: Floats,
    lengths: Lengths,
    mask: Callable[[Lengths, Lengths], Tensor],
) -> Floats:
    queries = padded(query_frames, query_lengths)
    ends = np.cumsum(lengths)
    blocks = []
    for start in range(0, len(lengths), BATCH):
        some = lengths[start : start + BATCH]
        last = ends[start + len(some) - 1]
        videos = padded(frames[last - some.sum() : last], some)
        pairs = queries[:, None] @ videos.transpose(1, 2)
        valid = mask(query_lengths, some)
        best = pairs.masked_fill_(~valid, float("-inf")).amax(dim=-1)
        is_frame = ~best.isinf()
        blocks.append(best.masked_fill(~is_frame, 0).sum(dim=-1) / is_frame.sum(dim=-1))
    return torch.cat(blocks, dim=1).numpy()


def peak_mb(action: Callable[[], object]) -> float:
    """Without what the allocator had kept of earlier work."""
    ctypes.CDLL(None).malloc_trim(0)
    return round(peak_bytes(action) / 2**20, 1)


def compare(name: str, queries: Lengths, candidates: Lengths, dim: int, rounds: int) -> Comparison:
    rng = np.random.default_rng(0)
    query_frames, frames = (
        rng.standard_normal((int(lengths.sum()), dim), dtype=np.float32)
        for lengths in (queries, candidates)
    )
    given = (query_frames, queries, frames, candidates)
    room = np.empty((FLOOR_ROWS, len(query_frames)), np.float32)

    def bare_product() -> None:
        for start in range(0, len(frames), FLOOR_ROWS):
            rows = frames[start : start + FLOOR_ROWS]
            np.matmul(rows, query_frames.T, out=room[: len(rows)])

    ways: dict[str, Callable[[], Floats]] = {
        OURS: lambda: set_similarity(*given),
        PUBLISHED: lambda: padded_chamfer(*given, mask_by_loop),
        VECTORIZED: lambda: padded_chamfer(*given, mask_at_once),
    }
    results = {way: action() for way, action in ways.items()}  # and what BLAS keeps for good
    deviation = max(float(np.abs(results[OURS] - theirs).max()) for theirs in results.values())
    memory = {way: peak_mb(action) for way, action in ways.items()}
    result = take_turns(name, {**ways, FLOOR: bare_product}, ours=OURS, rounds=rounds, warmup=0)
    share = memory[OURS] / max(0.1, memory[PUBLISHED])
    result.facts = {
        "peak_mb": memory,
        "share_of_the_published_memory": round(share, 4),
        "aim_for_the_share": MOST_MEMORY,
        "memory_met": share <= MOST_MEMORY,
        "largest_deviation": float(f"{deviation:.2g}"),
        "aim_for_the_deviation": MOST_DEVIATION,
        "deviation_met": deviation <= MOST_DEVIATION,
    }
    return result


def main() -> None:
    options = arguments(__doc__).parse_args()
    report = Report(
        "set similarity",
        numpy=np.__version__,
        torch=torch.__version__,
        torch_threads=torch.get_num_threads(),
    )
    n_queries, n_candidates, dim, rounds = (8, 40, 32, 2) if options.quick else (64, 1024, 512, 3)
    rng = np.random.default_rng(1)
    for frames, least in (("60", LONGEST), ("8 to 60", 8)):
        queries, candidates = (
            rng.integers(least, LONGEST + 1, n) for n in (n_queries, n_candidates)
        )
        setting = f"Q={n_queries:,}, C={n_candidates:,}, D={dim}, {frames} frames a video"
        result = compare(setting, queries, candidates, dim, rounds)
        result.targets = {PUBLISHED: AIMS[frames]}
        report.add(result)
    report.finish(options.out)


if __name__ == "__main__":
    main()
