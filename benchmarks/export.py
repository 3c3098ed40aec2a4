"""Compare an exported student with eager torch and with its teachers, and embed JPEGs with it.

    python benchmarks/export.py --demo RUN

RUN is the folder `drawings` that `whiten demo` wrote; without it the demo's network stands in with
an untrained projection, which takes as long. The second student is a ResNet-18 at 224 px with 512
dimensions and random weights. Eager torch runs in float32, without gradients, channels first, as
most code does; whiten's own way of running it (channels last, inference mode) is another rival. All
take the same normalised input, with as many threads. Teachers and students are compared from
rendered pixels. From end to end, images are JPEGs of a megapixel, and the rival a plain loop of
Pillow, torchvision and eager torch in batches of 16.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from photographs import write_photographs
from PIL import Image
from side_by_side import Action, Comparison, Report, arguments, take_turns
from torchvision import transforms

from whiten.datasets.finding import find_items
from whiten.demo.images import extract_drawings
from whiten.embedding.embed import embed
from whiten.export import export, speed
from whiten.export.exporting import INT8_FLOOR, INT8_LOSS
from whiten.models.card import model_card
from whiten.models.exported import Exported, Manifest
from whiten.models.registry import open_teacher
from whiten.models.student import StudentNet, build_student, load_student, save_student
from whiten.models.teacher import Teacher
from whiten.utils.memory import keep_freed_memory
from whiten.views.rendering import Preprocess

FP32_AIM, BEST_AIM, END_TO_END_AIM = 2.0, 5.0, 3.0
BATCH = 16
WIDTH, HEIGHT = 1152, 896  # 1.03 megapixels
PRECISIONS = ("fp32", "bf16", "fp16", "int8")
# As the demo has them.
TEACHERS = ("demo:mobilenetv2?size=128&fit=squash", "demo:efficientnet-lite2?size=128&fit=squash")
LITE = "demo:efficientnet-lite0?size=64&fit=squash"
RESNET = "timm:resnet18?pretrained=0&size=224"
EAGER, OURS_EAGER = "eager torch, float32", "eager torch, float32, as whiten runs it"


@dataclass
class Student:
    """A student, and all variants of its export."""

    name: str
    net: StudentNet
    preprocess: Preprocess
    manifest: Manifest
    exported: dict[str, Teacher]


def prepare(name: str, folder: Path, out: Path, images: Path) -> Student:
    net, config = load_student(folder)
    speed.ROUNDS, speed.SECONDS = 1, 0.0  # times are taken below, with care
    done = export(
        folder,
        out,
        formats=["onnx", "openvino"],
        precisions=PRECISIONS,
        images=images,
        int8_floor=-1,  # it is measured, whatever it is worth
        int8_loss=1,
    )
    exported = {
        f"{v.format} {v.precision}": Exported(out, format=v.format, precision=v.precision).teacher
        for v in done.manifest.variants
    }
    return Student(name, net.eval(), config.preprocess, done.manifest, exported)


def new_student(uri: str, dim: int, folder: Path) -> Path:
    torch.manual_seed(0)
    net, config = build_student(uri, dim=dim)
    save_student(net.eval(), config, folder, model_card(config))
    return folder


# --- the network alone ------------------------------------------------------------------


def compare_networks(student: Student, batch: int, rounds: int) -> list[Comparison]:
    """Eager torch and every variant in turn; seen from fp32, and from the fastest."""
    inputs = student.preprocess.normalize(_pixels(student.preprocess, batch))
    plain = torch.from_numpy(inputs).contiguous()
    contiguous = student.net.to(memory_format=torch.contiguous_format)
    teacher = open_teacher_of(student)

    def eager() -> None:
        with torch.no_grad():
            contiguous(plain)

    def as_we_do() -> None:
        with torch.inference_mode():
            teacher.forward(torch.from_numpy(inputs))

    rivals: dict[str, Action] = {EAGER: eager, OURS_EAGER: as_we_do}
    for name, model in student.exported.items():
        rivals[name] = lambda forward=model.forward: forward(inputs)
    repeats = 10 if batch == 1 else 1
    setting = f"{student.name}, batch {batch}"
    timed = take_turns(setting, _repeated(rivals, repeats), ours=EAGER, rounds=rounds)
    medians = {name: seconds / repeats / batch for name, seconds in timed.medians().items()}
    rates = {name: round(1 / seconds, 1) for name, seconds in medians.items()}
    floats = min((n for n in student.exported if n.endswith("fp32")), key=medians.__getitem__)
    # Of what would be exported: int8 that is refused is no gain.
    best = min((n for n in student.exported if not refused(student, n)), key=medians.__getitem__)
    return [
        Comparison(
            f"{setting}, {what}",
            ours,
            timed.seconds,
            {EAGER: aim},
            {"images_a_second": rates, "threads": torch.get_num_threads()},
        )
        for what, ours, aim in (("fp32", floats, FP32_AIM), ("the best", best, BEST_AIM))
    ]


def _repeated(rivals: dict[str, Action], repeats: int) -> dict[str, Action]:
    def many(action: Action) -> Action:
        return lambda: [action() for _ in range(repeats)]

    return {name: many(action) for name, action in rivals.items()}


def open_teacher_of(student: Student) -> Teacher:
    """The student in torch, as whiten runs it: a copy, for it is laid out otherwise."""
    import copy

    from whiten.models.weights import hash_state

    net = copy.deepcopy(student.net)
    return Teacher(
        uri="python:benchmark:student",
        name=student.name,
        dim=student.manifest.dim,
        preprocess=student.preprocess,
        weights_hash=hash_state(net.state_dict()),
        forward=net,
        module=net,
    )


def refused(student: Student, name: str) -> bool:
    """Return whether `whiten export` would refuse this variant at its default floors."""
    parity = {f"{v.format} {v.precision}": v.parity for v in student.manifest.variants}[name]
    by_groups = student.manifest.measured["map_by"] == "groups"
    return name.endswith("int8") and (
        parity["centred"] < INT8_FLOOR or (by_groups and parity["map_lost"] > INT8_LOSS)
    )


def parity_facts(student: Student) -> dict[str, Any]:
    """Return what the export measured, for the last comparison of each student."""
    return {
        "map_in_torch": student.manifest.measured["torch"]["map"],
        "map_by": student.manifest.measured["map_by"],
        "parity": {
            f"{v.format} {v.precision}": {k: x and round(x, 5) for k, x in v.parity.items()}
            for v in student.manifest.variants
        },
        "refused": [name for name in student.exported if refused(student, name)],
    }


# --- teachers, and end to end -------------------------------------------------------------


def compare_teachers(student: Student, batch: int, rounds: int) -> Comparison:
    models = {uri: open_teacher(uri) for uri in TEACHERS}
    models |= {f"the student, {name}": model for name, model in student.exported.items()}
    rivals: dict[str, Action] = {}
    for name, model in models.items():
        pixels = _pixels(model.preprocess, batch)
        rivals[name] = lambda model=model, pixels=pixels: model.embed(pixels)
    setting = f"the demo's teachers and {student.name}, batch {batch}"
    timed = take_turns(setting, rivals, ours=TEACHERS[0], rounds=rounds)
    medians = timed.medians()
    kept = [n for n in student.exported if not refused(student, n)]
    timed.ours = min((f"the student, {n}" for n in kept), key=medians.__getitem__)
    timed.facts["images_a_second"] = {n: round(batch / s, 1) for n, s in medians.items()}
    return timed


def plain_loop(student: Student, paths: Sequence[Path]) -> np.ndarray:
    """(n, dim) embeddings, L2-normalised: what one writes in ten lines."""
    p = student.preprocess
    resized: Any = p.size if p.fit == "squash" else round(p.size[0] / p.crop_fraction)
    modes = transforms.InterpolationMode
    usual = transforms.Compose(
        [
            transforms.Resize(resized, modes[p.interpolation.upper()], antialias=True),
            transforms.CenterCrop(p.size),
            transforms.ToTensor(),
            transforms.Normalize([m / p.white for m in p.mean], [s / p.white for s in p.std]),
        ]
    )
    out = []
    with torch.no_grad():
        for start in range(0, len(paths), BATCH):
            batch = [usual(Image.open(q).convert("RGB")) for q in paths[start : start + BATCH]]
            embeddings = student.net(torch.stack(batch))
            out.append(torch.nn.functional.normalize(embeddings, dim=1))
    return torch.cat(out).numpy()


def compare_end_to_end(student: Student, folder: Path, paths: list[Path], rounds: int) -> Any:
    items, threads = find_items(paths[0].parent), os.cpu_count() or 1
    numbers = itertools.count()
    names = [n for n in student.exported if n.endswith(("fp32", "int8", "bf16"))]
    last: dict[str, np.ndarray] = {}

    def through(name: str) -> Callable[[], None]:
        def run() -> None:
            out = folder / f"store {student.name} {next(numbers)}"
            store = embed(items, student.exported[name], out, workers=threads)
            last[name] = store.gather([item.id for item in items])

        return run

    rival = "Pillow + torchvision + eager torch, a plain loop"
    rivals: dict[str, Action] = {f"whiten embed {name}": through(name) for name in names}
    rivals[rival] = lambda: plain_loop(student, paths)
    setting = f"{len(paths)} JPEGs of {WIDTH}×{HEIGHT}, {student.name}"
    timed = take_turns(setting, rivals, ours=rival, rounds=rounds)
    medians = timed.medians()
    kept = [f"whiten embed {n}" for n in names if not refused(student, n)]
    timed.ours = min(kept, key=medians.__getitem__)
    timed.targets = {rival: END_TO_END_AIM}
    plain = plain_loop(student, paths)
    timed.facts = {
        "images_a_second": {n: round(len(paths) / s, 1) for n, s in medians.items()},
        "mean_cosine_to_the_plain_loop": {
            name: round(float((found * plain).sum(axis=1).mean()), 4)
            for name, found in last.items()
        },
        "threads_that_decode": threads,
    }
    return timed


def _pixels(preprocess: Preprocess, count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *preprocess.size, 3), np.uint8)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument(
        "--demo", type=Path, help="the folder `drawings` of a finished `whiten demo`"
    )
    options = parser.parse_args()
    keep_freed_memory()  # as the command line does; the rivals have it too
    rounds, count = (1, 16) if options.quick else (7, 256)
    report = Report("export", torch=torch.__version__)
    with tempfile.TemporaryDirectory(prefix="whiten-export-") as root:
        folder = Path(root)
        images = folder / "images"
        extract_drawings(images, 12 if options.quick else None)
        trained = options.demo and options.demo / "groups" / "student"
        first = trained or new_student(LITE, 256, folder / "lite0")
        second = new_student(RESNET, 512, folder / "resnet18")
        name = "the demo's student" if trained else "the demo's network, untrained projection"
        side = load_student(first)[1].preprocess.size[0]
        students = [
            prepare(f"{name}, {side} px", first, folder / "one", images / "test"),
            prepare("ResNet-18, 224 px, random weights", second, folder / "two", images / "test"),
        ]
        for student in students:
            for batch in (1, BATCH):
                for comparison in compare_networks(student, batch, rounds):
                    report.add(comparison)
            report.comparisons[-1].facts.update(parity_facts(student))
        for batch in (1, BATCH):
            report.add(compare_teachers(students[0], batch, rounds))
        paths = write_photographs(folder / "photographs", count, WIDTH, HEIGHT)
        for student in students:
            report.add(compare_end_to_end(student, folder, paths, min(rounds, 3)))
    report.finish(options.out)


if __name__ == "__main__":
    main()
