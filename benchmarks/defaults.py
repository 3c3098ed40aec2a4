"""Embedding from files and `whiten search` with the defaults, alone and next to busy programs.

    python benchmarks/defaults.py

Embedding: a student (EfficientNet-Lite0 at 224 px, stages pooled, 1,024 dimensions) and two
teachers of the demo, in the runtime that whiten takes by itself and in torch, from three kinds of
files. The floors are decoding alone on all cores and the network alone; the larger one is the
bottleneck.
Search: a process from start to end, compared with the same with `--runtime torch`. Busy programs:
the same work while none, one or two other processes compute without a pause.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from whiten.utils.steady import be_steady

be_steady()  # as the command line does, before torch is imported

import numpy as np  # noqa: E402
import torch  # noqa: E402
from photographs import photograph  # noqa: E402
from side_by_side import Comparison, Report, arguments, take_turns  # noqa: E402

import whiten  # noqa: E402
from whiten.embedding.encoder import Encoder  # noqa: E402
from whiten.media.reading import read_bytes  # noqa: E402
from whiten.models.student import build_student, save_student  # noqa: E402
from whiten.models.student_graph import finish_student  # noqa: E402
from whiten.models.teacher import Teacher  # noqa: E402
from whiten.utils.memory import keep_freed_memory  # noqa: E402
from whiten.utils.threads import cores  # noqa: E402
from whiten.views.plan import ViewPlan  # noqa: E402
from whiten.views.rendering import render_bytes  # noqa: E402

BACKBONE = "demo:efficientnet-lite0"
TEACHERS = ("demo:efficientnet-lite2", "demo:mobilenetv2")
BATCH = 16
# Name of a kind -> width, height, format, files. Teachers are traced from 128 images on.
KINDS = {
    "JPEGs of 12 megapixels": (4000, 3000, "JPEG", 48),
    "JPEGs of a megapixel": (1152, 864, "JPEG", 160),
    "small WebPs": (320, 240, "WEBP", 320),
}
STUDENTS, TEACHING = 2.0, 1.5
TRAINED = 16  # images of a step of training, at 96 px


def write_files(folder: Path, kind: str, count: int) -> list[Path]:
    width, height, name, _ = KINDS[kind]
    folder.mkdir(parents=True)
    paths = [folder / f"{number:04d}.{name.lower()}" for number in range(count)]
    for seed, path in enumerate(paths):
        photograph(seed, width, height).save(path, name, quality=85)
    return paths


def write_student(folder: Path) -> Path:
    torch.manual_seed(0)
    net, config = build_student(BACKBONE, dim=1024, pool="stages")
    save_student(net, config, folder, "", finish=finish_student)
    return folder


def network(encoder: Encoder) -> Teacher:
    model = encoder.parts[0].teacher
    assert isinstance(model, Teacher)
    return model.traced or model


def embedding(paths: list[Path], uri: str, kind: str, aim: float, rounds: int) -> Comparison:
    ours, theirs = whiten.load(uri), whiten.load(uri, runtime="torch")
    expected = theirs.embed(paths)  # traces ours, too
    closest = float((ours.embed(paths) * expected).sum(axis=1).min())
    alone = network(ours)
    blank = np.zeros((min(BATCH, len(paths)), *alone.preprocess.size, 3), np.uint8)

    def decoding() -> None:
        plan = ViewPlan()
        with ThreadPoolExecutor(cores()) as pool:
            for _ in pool.map(
                lambda path: render_bytes(read_bytes(path), plan, "", 0, alone.preprocess), paths
            ):
                pass

    best = f"as it comes: {ours.runtime}"
    rivals = {
        best: lambda: ours.embed(paths),
        "--runtime torch": lambda: theirs.embed(paths),
        "floor: decoding alone": decoding,
        "floor: the network alone": lambda: [
            alone.embed(blank) for _ in range(0, len(paths), BATCH)
        ],
    }
    name = uri if uri.startswith("demo:") else "a student"
    found = take_turns(f"{len(paths)} {kind}, {name}", rivals, ours=best, rounds=rounds)
    found.targets = {"--runtime torch": aim}
    medians = found.medians()
    decoded, computed = (medians[floor] for floor in rivals if floor.startswith("floor"))
    found.facts = {
        "images_per_s": round(len(paths) / medians[best], 1),
        "bottleneck": "decoding" if decoded > computed else "the network",
        "smallest_cosine_to_torch": round(closest, 5),
    }
    return found


_MEASURED = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def searching(student: Path, paths: list[Path], folder: Path, rounds: int) -> Comparison:
    """Time `whiten search` as a process, and its peak of memory."""
    index = folder / "index"
    whiten.Index.build(student, paths[0].parent, index)
    peaks: dict[str, float] = {}

    def search(name: str, *options: str) -> Callable[[], None]:
        # Started by a small process: a child's peak counts the memory of the one that forked it.
        command = [sys.executable, "-c", _MEASURED, sys.executable, "-m", "whiten", "search"]
        command += [str(paths[0]), "--index", str(index), *options]

        def run() -> None:
            found = subprocess.run(command, capture_output=True, text=True, check=True)
            peaks[name] = max(peaks.get(name, 0.0), float(found.stdout) / 1e3)

        return run

    best, rival = "whiten search", "whiten search --runtime torch"
    rivals = {best: search(best), rival: search(rival, "--runtime", "torch")}
    found = take_turns(f"an index of {len(paths)} images", rivals, ours=best, rounds=rounds)
    found.facts = {"peak_mb": {name: round(peak) for name, peak in peaks.items()}}
    return found


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Other programs that compute all the time."""
    with ExitStack() as stack:
        for _ in range(processes):
            other = stack.enter_context(
                subprocess.Popen([sys.executable, "-c", "while True: sum(range(10**6))"])
            )
            stack.callback(other.kill)
        yield


def training() -> Callable[[], object]:
    net, _ = build_student(BACKBONE, dim=256, size=96)
    net.requires_grad_(True)
    inputs = torch.rand(TRAINED, 3, 96, 96)

    def step() -> None:
        net(inputs).square().mean().backward()

    return step


def beside(name: str, work: Callable[[], object], least: float, rounds: int) -> Comparison:
    """Time a work alone and next to busy programs: the ratio is what is lost."""

    def among(processes: int) -> Callable[[], None]:
        def run() -> None:
            for _ in range(3):
                work()

        def started() -> None:
            with busy(processes):
                run()

        return started if processes else run

    best = "alone"
    rivals = {best: among(0), "beside one": among(1), "beside two": among(2)}
    found = take_turns(f"{name} on {cores()} cores", rivals, ours=best, rounds=rounds)
    medians = found.medians()
    found.facts = {
        "speed_kept": {other: round(medians[best] / medians[other], 2) for other in rivals},
        "aimed_at_beside_one": least,
    }
    return found


def main() -> None:
    options = arguments(__doc__).parse_args()
    keep_freed_memory()
    rounds = 1 if options.quick else 5
    report = Report("what comes by itself", torch=torch.__version__)
    with tempfile.TemporaryDirectory(prefix="whiten-defaults-") as name:
        folder = Path(name)
        student = str(write_student(folder / "student"))
        for number, (kind, (*_, count)) in enumerate(KINDS.items()):
            files = write_files(folder / str(number), kind, 8 if options.quick else count)
            report.add(embedding(files, student, kind, STUDENTS, rounds))
        for uri in TEACHERS:
            report.add(embedding(files, uri, kind, TEACHING, rounds))
        report.add(searching(Path(student), files, folder, rounds))
        for runtime in ("auto", "torch"):
            encoder = whiten.load(student, runtime=runtime)
            few = files[:64]
            work = lambda encoder=encoder, few=few: encoder.embed(few)  # noqa: E731
            report.add(beside(f"embedding, {encoder.runtime}", work, 0.65, rounds))
        report.add(beside("training", training(), 0.5, rounds))
    report.finish(options.out)


if __name__ == "__main__":
    main()
