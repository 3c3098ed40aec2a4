"""An epoch with cached teachers, as in `whiten distill`, compared with teachers run in each step.

    python benchmarks/epoch.py

ResNet-18 learns from two ResNet-101 at 224 px, all with random weights. The rival is the paper's
way in plain torch: both teachers see both views of every image in every step, float32, eager,
channels first. Ours is the public `whiten.distill` with its defaults, by the speed that the run
itself records (decoding, step and log; the first step warms up), plus the time of embedding the
cached views, spread over 200 epochs. An epoch has a pair for each image.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from photographs import write_photographs
from PIL import Image
from side_by_side import Comparison, Report, arguments
from torch import Tensor, nn
from torchvision import transforms

import whiten
from whiten.datasets.finding import find_items
from whiten.embedding.embed import embed
from whiten.models.registry import open_teacher
from whiten.utils.memory import keep_freed_memory
from whiten.views.rendering import IMAGENET_MEAN, IMAGENET_STD

SIDE, STORED, EPOCHS, TARGET = 224, 256, 200, 9.0
TEACHERS = ("python:epoch:first_teacher", "python:epoch:second_teacher")
STUDENT = "timm:resnet18?pretrained=0"
RIVAL, OURS = "plain torch, teachers online, float32", "whiten distill, teachers cached"


def first_teacher() -> nn.Module:
    return _teacher(1)


def second_teacher() -> nn.Module:
    return _teacher(2)


def _teacher(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model("resnet101", pretrained=False, num_classes=0).eval()


class PlainLoop:
    """One process, one image after another, as the method would be written down."""

    def __init__(self, paths: Sequence[Path], batch: int) -> None:
        self.paths, self.batch = list(paths), batch
        self.teachers = [first_teacher(), second_teacher()]
        torch.manual_seed(0)
        self.student = timm.create_model("resnet18", pretrained=False, num_classes=256).train()
        self.optimizer = torch.optim.Adam(self.student.parameters(), lr=1e-3)
        self.whitenings = [torch.randn(256, 2048) / 2048**0.5 for _ in self.teachers]
        self.view = transforms.Compose(
            [
                transforms.RandomResizedCrop(SIDE, scale=(0.35, 1.0)),
                transforms.RandomHorizontalFlip(),
                transforms.ColorJitter(0.3, 0.3, 0.3),
                transforms.ToTensor(),
                transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ]
        )

    def step(self) -> None:
        pictures = [Image.open(path).convert("RGB") for path in self.paths[: self.batch]]
        x, y = (torch.stack([self.view(picture) for picture in pictures]) for _ in range(2))
        similarities = []
        with torch.no_grad():
            for teacher, whitening in zip(self.teachers, self.whitenings, strict=True):
                tx, ty = (F.normalize(teacher(side) @ whitening.T, dim=1) for side in (x, y))
                similarities.append(tx @ ty.T)
            stacked = torch.stack(similarities)
            eye = torch.eye(self.batch, dtype=torch.bool)
            target = torch.where(eye, stacked.amax(0), stacked.amin(0)) / 0.05
        sx, sy = F.normalize(self.student(torch.cat([x, y])), dim=1).chunk(2)
        student = sx @ sy.T / 0.05
        loss = _kl(student, target) + _kl(student.T, target.T)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def student_alone(self) -> None:
        """Forward and backward of both views on ready tensors."""
        x = torch.zeros(2 * self.batch, 3, SIDE, SIDE)
        self.student(x).square().mean().backward()

    def student_alone_in_bf16(self) -> None:
        """The same in bfloat16 and channels last: the floor of an epoch with cached teachers."""
        self.student.to(memory_format=torch.channels_last)
        x = torch.zeros(2 * self.batch, 3, SIDE, SIDE).to(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = self.student(x)
        out.float().square().mean().backward()
        self.student.to(memory_format=torch.contiguous_format)


def _kl(student: Tensor, target: Tensor) -> Tensor:
    return F.kl_div(student.log_softmax(1), target.softmax(1), reduction="batchmean")


def seconds_a_pair(folder: Path, number: str, batch: int) -> float:
    out = folder / f"run-{number}"
    whiten.distill(
        folder / "images",
        TEACHERS,
        out=out,
        cache=folder / "cache",
        student=STUDENT,
        size=SIDE,
        epochs=1,
        batch_size=batch,
        pairs="views",
        show_progress=False,
    )
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    # The speed is that of all steps so far; what is wanted is the time after the first one.
    elapsed = [2 * batch * record["step"] / record["images_per_s"] for record in records]
    return (elapsed[-1] - elapsed[0]) / (batch * (len(records) - 1))


def embedding_seconds(folder: Path, number: str, count: int) -> float:
    """Of one view of one image by both teachers, in the precision of the cache."""
    items = find_items(folder / "images")[:count]
    teachers = [open_teacher(uri) for uri in TEACHERS]
    began = time.perf_counter()
    for k, teacher in enumerate(teachers):
        embed(items, teacher, folder / f"store-{number}-{k}", precision="auto")
    return (time.perf_counter() - began) / len(items)


def measure(folder: Path, images: int, batch: int, rounds: int) -> dict[str, list[float]]:
    """Seconds a pair, of each part, in each round."""
    plain = PlainLoop(write_photographs(folder / "images", images, STORED, STORED), batch)
    seconds_a_pair(folder, "warm", batch)  # fills the cache, which the others share
    embedding_seconds(folder, "warm", batch)
    plain.student_alone()
    plain.student_alone_in_bf16()
    steps = {
        "plain": plain.step,
        "student": plain.student_alone,
        "student in bf16": plain.student_alone_in_bf16,
    }
    parts: dict[str, list[float]] = {"epoch": [], "embedding": [], **{name: [] for name in steps}}
    for number in map(str, range(rounds)):
        parts["epoch"].append(seconds_a_pair(folder, number, batch))
        parts["embedding"].append(embedding_seconds(folder, number, batch))
        for name, action in steps.items():
            began = time.perf_counter()
            action()
            parts[name].append((time.perf_counter() - began) / batch)
    return parts


def compare(parts: dict[str, list[float]], views: int) -> Comparison:
    ours = [
        epoch + views * embedding / EPOCHS
        for epoch, embedding in zip(parts["epoch"], parts["embedding"], strict=True)
    ]
    result = Comparison(
        f"one pair of an epoch, {views} cached view{'s' if views > 1 else ''}",
        OURS,
        {
            OURS: ours,
            RIVAL: parts["plain"],
            "floor: the student alone, bf16, channels last": parts["student in bf16"],
            "the student alone, float32, channels first": parts["student"],
        },
        targets={RIVAL: TARGET},
    )
    medians = {name: statistics.median(values) for name, values in parts.items()}
    result.facts = {
        "seconds_a_pair_of_training": medians["epoch"],
        "seconds_to_embed_a_view": medians["embedding"],
        "epochs_that_share_the_embedding": EPOCHS,
        "ratio_in_each_round": [round(p / o, 2) for p, o in zip(parts["plain"], ours, strict=True)],
        "share_of_embedding": round(
            views * medians["embedding"] / EPOCHS / statistics.median(ours), 4
        ),
    }
    return result


def main() -> None:
    options = arguments(__doc__).parse_args()
    keep_freed_memory()  # as the command line does; the rival has it too
    report = Report("epoch", torch=torch.__version__, threads=torch.get_num_threads())
    images, batch, rounds = (24, 8, 1) if options.quick else (128, 32, 5)
    with tempfile.TemporaryDirectory(prefix="whiten-epoch-") as folder:
        parts = measure(Path(folder), images, batch, rounds)
    for views in (1, 2, 5):
        report.add(compare(parts, views))
    report.finish(options.out)


if __name__ == "__main__":
    main()
