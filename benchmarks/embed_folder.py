"""Embed a folder of JPEGs end to end, compared with a plain loop of Pillow, torchvision and torch.

    python benchmarks/embed_folder.py

Both run the same ResNet-18 with the same random weights, with as many threads of torch. The plain
loop decodes, transforms and embeds in batches of 16, float32, eager, channels first, without
gradients. `--precision auto` computes in bf16 where the CPU gains from it. The floors are the
network alone in each precision, and decoding alone on all cores.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torchvision
from photographs import write_photographs
from PIL import Image
from side_by_side import Comparison, Report, arguments, take_turns
from torch import nn
from torchvision import transforms

from whiten.datasets.finding import find_items
from whiten.embedding.embed import embed
from whiten.media.reading import read_bytes
from whiten.models.teacher import Teacher
from whiten.models.weights import hash_state
from whiten.store.store import Store
from whiten.utils.memory import keep_freed_memory
from whiten.views.plan import ViewPlan
from whiten.views.rendering import IMAGENET_MEAN, IMAGENET_STD, Preprocess, render_bytes

SIDE, RESIZED, BATCH, TARGET = 224, 256, 16, 2.0
PREPROCESS = Preprocess(size=(SIDE, SIDE), crop_fraction=SIDE / RESIZED, interpolation="bilinear")


def network() -> nn.Module:
    torch.manual_seed(0)
    model = torchvision.models.resnet18(weights=None)
    model.fc = nn.Identity()
    return model.eval()


def teacher() -> Teacher:
    module = network()
    return Teacher(
        uri="python:benchmark:resnet18",
        name="resnet18",
        dim=512,
        preprocess=PREPROCESS,
        weights_hash=hash_state(module.state_dict()),
        forward=module,
        module=module,
    )


def plain_loop(model: nn.Module, paths: Sequence[Path]) -> np.ndarray:
    """(n, 512) embeddings, L2-normalised."""
    usual = transforms.Compose(
        [
            transforms.Resize(RESIZED, antialias=True),
            transforms.CenterCrop(SIDE),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    out = []
    with torch.no_grad():
        for start in range(0, len(paths), BATCH):
            batch = [usual(Image.open(p).convert("RGB")) for p in paths[start : start + BATCH]]
            embeddings = model(torch.stack(batch))
            out.append(torch.nn.functional.normalize(embeddings, dim=1))
    return torch.cat(out).numpy()


def compare(folder: Path, count: int, rounds: int) -> Comparison:
    paths = write_photographs(folder / "images", count)
    items = find_items(folder / "images")
    model, ours, threads = network(), teacher(), os.cpu_count() or 1
    numbers = itertools.count()
    last: dict[str, Store] = {}

    def whiten(precision: str) -> Callable[[], None]:
        def run() -> None:
            out = folder / f"store{next(numbers)}"
            last[precision] = embed(items, ours, out, precision=precision, workers=threads)

        return run

    def network_alone(bf16: bool) -> Callable[[], None]:
        blank = np.zeros((BATCH, SIDE, SIDE, 3), np.uint8)
        return lambda: [ours.embed(blank, bf16=bf16) for _ in range(0, count, BATCH)] and None

    def decoding_alone() -> None:
        plan = ViewPlan()
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(
                lambda i: render_bytes(read_bytes(i.path), plan, i.id, 0, PREPROCESS), items
            ):
                pass

    rival, best = "Pillow + eager torch, a plain loop", "whiten embed --precision auto"
    rivals = {
        best: whiten("auto"),
        "whiten embed --precision 32": whiten("32"),
        rival: lambda: plain_loop(model, paths),
        "floor: the network alone, bf16": network_alone(True),
        "floor: the network alone, float32": network_alone(False),
        "floor: decoding alone": decoding_alone,
        "floor: one read of the bytes": lambda: [path.read_bytes() for path in paths],
    }
    result = take_turns(
        f"{count} JPEGs of 1024×768, ResNet-18 at {SIDE} px", rivals, ours=best, rounds=rounds
    )
    result.targets = {rival: TARGET}
    ids = [item.id for item in items]
    plain = plain_loop(model, paths)
    result.facts = {
        "images": count,
        "threads_of_torch": torch.get_num_threads(),
        "smallest_cosine_to_the_plain_loop": {
            precision: round(float((store.gather(ids) * plain).sum(axis=1).min()), 4)
            for precision, store in last.items()
        },
        "auto_is": last["auto"].origin.precision,
    }
    return result


def main() -> None:
    options = arguments(__doc__).parse_args()
    keep_freed_memory()  # as the command line does; the rivals have it too
    report = Report("embed a folder", torch=torch.__version__, torchvision=torchvision.__version__)
    with tempfile.TemporaryDirectory(prefix="whiten-embed-") as folder:
        count, rounds = (32, 1) if options.quick else (256, 5)
        report.add(compare(Path(folder), count, rounds))
    report.finish(options.out)


if __name__ == "__main__":
    main()
