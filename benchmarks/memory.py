"""Memory and time of every stage from 1,000 to 1,000,000 images, and one plot of both.

    python benchmarks/memory.py --out benchmarks/results/memory.json

Each stage runs in a process of its own, which tells how far its resident memory (the kernel's
VmHWM, mapped files included) rose above what it had once everything was imported and the model was
open. Stores hold random vectors under the names of a few real images: 1,000 files, with as many
links to each as it takes. What is real: the stores on disk, every file's date, the pictures that
`embed` decodes (the last 10,000 of the collection; the others are there already), the steps of
`distill` with a frozen backbone, and every search.

Names, paths and pair lists grow with the images, some hundred bytes each; embeddings must not, so
that long ones (512 dimensions, at 100,000 images) are measured as well as short ones (64).
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from side_by_side import arguments, logarithmic

PLOT = Path(__file__).parent.parent / "docs" / "memory.png"
SIZES = (1_000, 10_000, 100_000, 1_000_000)
SHORT, LONG = 64, 512  # dimensions
LONG_SIZE = 100_000
FILES, SHARD = 1_000, 1_024
FRESH = 10_000  # images that `embed` decodes
GROUPED = 140  # images of the evaluation that have a counterpart; the others distract
STUDENT = "timm:test_vit?pretrained=0&size=32"  # 64 features
TEACHER = "python:flat_teacher:make"
STAGES = ("embed", "fit", "distill", "evaluate", "index", "search")
FACTORY = """
import torch
from torch import nn

from whiten.views.rendering import Preprocess


def make(dim):
    torch.manual_seed(0)
    layers = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, int(dim)))
    return layers, Preprocess(size=(32, 32))
"""


# --- simulated collections ---------------------------------------------------------------


def prepare(root: Path, n: int, dim: int) -> None:
    """Lay out images, tables and full stores of the teacher and of the student's features."""
    import torch

    from whiten.embedding.embed import store_folder
    from whiten.models.registry import open_teacher
    from whiten.models.student import backbone_as_teacher, build_student

    torch.manual_seed(0)  # as `distill` does
    features = backbone_as_teacher(*build_student(STUDENT, dim=32))
    write_images(root / "files")
    files = sorted((root / "files").iterdir())
    for number in range(-(-n // FILES)):
        folder = root / f"{number:04d}"
        folder.mkdir()
        for file in files:
            os.link(file, folder / file.name)
    names = [f"{i // FILES:04d}/{i % FILES:03d}.png" for i in range(n)]
    write_table(root / "pairs.csv", names, lambda i: f"{i // 2}")
    write_table(root / "search.csv", names, lambda i: f"{i // 2}" if i < GROUPED else "")
    teacher = open_teacher(f"{TEACHER}?dim={dim}")
    full = store_folder(root / "cache", teacher)
    write_store(full, teacher, root, names)
    write_store(store_folder(root / "cache", features), features, root, names)
    share_shards(full, root / "resumed", leave_out=-(-FRESH // SHARD))


def write_images(folder: Path) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(FILES):
        pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")


def write_table(path: Path, names: list[str], group: Callable[[int], str]) -> None:
    with path.open("w") as file:
        file.write("path,group\n")
        file.writelines(f"{name},{group(i)}\n" for i, name in enumerate(names))


def write_store(folder: Path, teacher: Any, root: Path, names: list[str]) -> None:
    """A store such as `embed` would have made of these images, but for the random vectors."""
    from whiten.media.reading import stamp_of
    from whiten.store.shards import Origin, Row, Seen
    from whiten.store.store import Store
    from whiten.utils.hashing import content_hash

    files = sorted((root / "files").iterdir())
    seen = [Seen("", stamp_of(str(f)), content_hash(f.read_bytes())) for f in files]
    origin = Origin(teacher.uri, teacher.fingerprint(), teacher.dim, plan="", plan_seed=0)
    store = Store.create_or_resume(folder, origin)
    rng = np.random.default_rng(0)
    for start in range(0, len(names), SHARD):
        part = names[start : start + SHARD]
        vectors = rng.standard_normal((len(part), teacher.dim), dtype=np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        found = {name: seen[(start + i) % FILES] for i, name in enumerate(part)}
        store.append(
            [
                Row(name, str(root / name), None, 0, found[name].content_hash, vector)
                for name, vector in zip(part, vectors, strict=True)
            ],
            seen=found,
        )


def share_shards(store: Path, folder: Path, *, leave_out: int) -> None:
    folder.mkdir(parents=True)
    shards = sorted(store.iterdir())
    for shard in shards[: max(0, len(shards) - leave_out)]:
        os.link(shard, folder / shard.name)


# --- stages ------------------------------------------------------------------------------


def stage(name: str, root: Path, dim: int) -> dict[str, Any]:
    """Run one stage in this process and tell how far its memory rose, and how long it took."""
    from whiten.datasets.finding import find_items
    from whiten.distillation.distill import distill
    from whiten.embedding.embed import embed
    from whiten.embedding.fitting import fit_whitener
    from whiten.embedding.opening import load
    from whiten.evaluation.evaluate import evaluate
    from whiten.index import Index
    from whiten.models.registry import open_teacher
    from whiten.store.store import Store

    for module in ("lightning_fabric", "whiten.models.student", "timm"):
        importlib.import_module(module)
    uri = f"{TEACHER}?dim={dim}"
    encoder = load(uri)
    teacher = open_teacher(uri)
    cache, table = root / "cache", root / "search.csv"

    def fit() -> None:
        store = Store.open(next(cache.glob("flat_teacher*")))
        fit_whitener(store, find_items(table).by_id, dim=32, shrinkage=0.1)

    def train() -> None:
        distill(
            root / "pairs.csv",
            [uri],
            out=root / "run",
            cache=cache,
            student=STUDENT,
            dim=32,
            whiten_dim=32,
            backbone_lr=0,
            batch_size=256,
            epochs=1,
            precision="32",
            show_progress=False,
        )

    def index() -> None:
        Index.build(None, next(cache.glob("flat_teacher*")), root / "index")

    def search() -> None:
        built = Index.build(encoder, find_items(table), root / "index")
        assert len(built.search(root / "files" / "000.png", k=10)[0]) == 10

    actions: dict[str, Callable[[], object]] = {
        "embed": lambda: embed(find_items(table), teacher, root / "resumed"),
        "fit": fit,
        "distill": train,
        "evaluate": lambda: evaluate(encoder, table, cache=cache),
        "index": index,
        "search": search,
    }
    encoder.embed(root / "files" / "000.png")
    before, began = memory("VmRSS"), time.perf_counter()
    actions[name]()
    seconds = time.perf_counter() - began
    return {
        "peak_mb": (memory("VmHWM") - before) / 1e6,
        "imports_mb": before / 1e6,
        "seconds": round(seconds, 3),
    }


def memory(field: str) -> int:
    """Bytes that the kernel counts for this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise LookupError(field)


def in_a_process(root: Path, *arguments_: str) -> Any:
    (root / "flat_teacher.py").write_text(FACTORY)
    done = subprocess.run(
        [sys.executable, Path(__file__).resolve(), "--inside", str(root), *arguments_],
        cwd=root,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout or "null")


def measure(sizes: tuple[int, ...], long_size: int) -> Iterator[dict[str, Any]]:
    for n, dim in [*((n, SHORT) for n in sizes), (long_size, LONG)]:
        with tempfile.TemporaryDirectory(prefix="whiten-memory-") as folder:
            root = Path(folder)
            in_a_process(root, "--n", str(n), "--dim", str(dim))
            for name in STAGES:
                facts = in_a_process(root, "--stage", name, "--dim", str(dim))
                row = {"stage": name, "n": n, "dim": dim, **facts}
                peak, seconds = row["peak_mb"], row["seconds"]
                text = f"{name:<9} n={n:>9,} D={dim:<3} {peak:>8.1f} MB {seconds:>8.2f} s"
                print(text, file=sys.stderr, flush=True)
                yield row


def growth(rows: list[dict[str, Any]], sizes: tuple[int, ...], long_size: int) -> dict[str, Any]:
    """Per stage the bytes and seconds an image costs, and the bytes of each of its dimensions."""
    peak = {(row["stage"], row["n"], row["dim"]): 1e6 * row["peak_mb"] for row in rows}
    seconds = {(row["stage"], row["n"]): row["seconds"] for row in rows if row["dim"] == SHORT}
    few, many = sizes[-2:]
    return {
        name: {
            "bytes_an_image": (peak[name, many, SHORT] - peak[name, few, SHORT]) / (many - few),
            "bytes_a_dimension": (peak[name, long_size, LONG] - peak[name, long_size, SHORT])
            / (long_size * (LONG - SHORT)),
            "seconds_an_image": (seconds[name, many] - seconds[name, few]) / (many - few),
            "times_for_tenfold": seconds[name, many] / seconds[name, few],
        }
        for name in STAGES
    }


def draw(rows: list[dict[str, Any]], sizes: tuple[int, ...]) -> bytes | None:
    from matplotlib.figure import Figure

    from whiten.report.style import QUIET, RUNS, styled

    @styled
    def figure() -> Figure:
        made = Figure(figsize=(9.6, 3.9))
        space, times = made.subplots(1, 2)
        for axes, field in ((space, "peak_mb"), (times, "seconds")):
            for name, colour, marker in zip(STAGES, RUNS, "osD^vP", strict=True):
                found = [r[field] for r in rows if r["stage"] == name and r["dim"] == SHORT]
                axes.plot(sizes, found, color=colour, marker=marker, markersize=5, label=name)
            axes.set(xlabel="images")
            logarithmic(axes)
        # What one copy of the embeddings of the usual teachers would take.
        for dim, dashes in ((512, ":"), (2048, "-.")):
            held = [4 * dim * n / 1e6 for n in sizes]
            label = f"embeddings, D={dim:,}"
            space.plot(sizes, held, color=QUIET, linestyle=dashes, linewidth=1, label=label)
        steady = max(r["seconds"] for r in rows if r["dim"] == SHORT) / sizes[-1]
        linear = [steady * n for n in sizes]
        times.plot(sizes, linear, color=QUIET, linestyle=":", linewidth=1, label="linear")
        space.set(ylabel="peak memory above start, MB", title="Memory, mapped files included")
        times.set(ylabel="seconds beyond start", title="Time")
        space.set_ylim(bottom=1)
        space.legend(ncols=2)
        times.legend(ncols=2)
        return made

    return figure()


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--plot", type=Path, help="draw the plot here, not in docs/memory.png")
    parser.add_argument("--inside", type=Path, help="of the processes that this one starts")
    parser.add_argument("--stage")
    parser.add_argument("--n", type=int)
    parser.add_argument("--dim", type=int)
    options: Namespace = parser.parse_args()
    if options.inside is not None:
        sys.path.insert(0, str(options.inside))
        if options.stage is None:
            prepare(options.inside, options.n, options.dim)
        else:
            print(json.dumps(stage(options.stage, options.inside, options.dim)))
        return
    sizes, long_size = (SIZES[:2], SIZES[1]) if options.quick else (SIZES, LONG_SIZE)
    rows = list(measure(sizes, long_size))
    facts = {"benchmark": "memory", "rows": rows, "growth": growth(rows, sizes, long_size)}
    text = json.dumps(facts, indent=2)
    print(text)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n")
    plot = options.plot or (None if options.quick else PLOT)
    if plot is not None:
        plot.write_bytes(draw(rows, sizes) or b"")


if __name__ == "__main__":
    main()
