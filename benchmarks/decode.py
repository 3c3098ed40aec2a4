"""Decode a 1024×768 JPEG to a normalised 224 px tensor, compared with Pillow and torchvision.

    python benchmarks/decode.py

The rival is the transform that torchvision's models are published with, and the difference in grey
levels is that of the two results. Last, a thread per core, as every verb has them, is compared with
one thread and with a process per core: decoders release the GIL.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torchvision
from photographs import write_photographs
from PIL import Image
from side_by_side import Comparison, Report, arguments, take_turns
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from whiten.media.reading import read_bytes
from whiten.utils.threads import cores, ordered_map
from whiten.views.plan import ViewPlan
from whiten.views.rendering import IMAGENET_MEAN, IMAGENET_STD, Preprocess, render_bytes

SIDE, RESIZED = 224, 256
TARGET, MOST_GREY_LEVELS = 2.2, 2.0


def compare(paths: Sequence[Path], interpolation: str, rounds: int) -> Comparison:
    preprocess = Preprocess(
        size=(SIDE, SIDE), crop_fraction=SIDE / RESIZED, interpolation=interpolation
    )
    usual = transforms.Compose(
        [
            transforms.Resize(RESIZED, InterpolationMode(interpolation), antialias=True),
            transforms.CenterCrop(SIDE),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    plan = ViewPlan()

    def whiten(path: Path) -> Tensor:
        pixels = render_bytes(read_bytes(str(path)), plan, path.name, 0, preprocess)
        return torch.from_numpy(preprocess.normalize(pixels[None]))[0]

    def torchvision_way(path: Path) -> Tensor:
        with Image.open(path) as image:
            result: Tensor = usual(image.convert("RGB"))
        return result

    def full_decode(path: Path) -> None:
        with Image.open(path) as image:
            image.load()

    def half_decode(path: Path) -> None:
        with Image.open(path) as image:
            image.draft(None, (image.width // 2, image.height // 2))
            image.load()

    def all_of(each: Callable[[Path], object]) -> Callable[[], None]:
        return lambda: [each(path) for path in paths] and None

    rival = "Pillow + torchvision"
    result = take_turns(
        f"{len(paths)} JPEGs of 1024×768, {interpolation}",
        {
            "whiten": all_of(whiten),
            rival: all_of(torchvision_way),
            "floor: decode, every pixel": all_of(full_decode),
            "floor: decode at half size": all_of(half_decode),
            "floor: one read of the bytes": all_of(lambda path: path.read_bytes()),
        },
        ours="whiten",
        rounds=rounds,
    )
    result.targets = {rival: TARGET}
    difference = float(
        np.mean(
            [
                np.abs(grey_levels(whiten(path)) - grey_levels(torchvision_way(path))).mean()
                for path in paths
            ]
        )
    )
    result.facts = {
        "images": len(paths),
        "mean_bytes_per_image": round(np.mean([path.stat().st_size for path in paths])),
        "mean_difference_grey_levels": round(difference, 3),
        "most_grey_levels_allowed": MOST_GREY_LEVELS,
        "difference_allowed": difference < MOST_GREY_LEVELS,
    }
    return result


def shown(path: Path) -> np.ndarray:
    preprocess = Preprocess(size=(SIDE, SIDE), crop_fraction=SIDE / RESIZED)
    return render_bytes(read_bytes(str(path)), ViewPlan(), path.name, 0, preprocess)


def compare_workers(paths: Sequence[Path], rounds: int) -> Comparison:
    many = [*paths] * 8
    with ProcessPoolExecutor(cores()) as processes:
        list(processes.map(shown, paths))  # they are started

        return take_turns(
            f"{len(many)} JPEGs of 1024×768, {cores()} cores",
            {
                "a thread for each core": lambda: list(ordered_map(shown, many)),
                "a process for each core": lambda: list(processes.map(shown, many, chunksize=4)),
                "one thread": lambda: list(map(shown, many)),
            },
            ours="a thread for each core",
            rounds=rounds,
        )


def grey_levels(normalised: Tensor) -> np.ndarray:
    """(3, h, w) normalised -> (h, w, 3) in 0..255."""
    pixels = normalised.permute(1, 2, 0).numpy().astype(np.float64)
    return 255 * (pixels * IMAGENET_STD + IMAGENET_MEAN)


def main() -> None:
    options = arguments(__doc__).parse_args()
    torch.set_num_threads(1)  # an image at a time: a rival with threads would measure their start
    report = Report("decode", torchvision=torchvision.__version__, threads=1)
    with tempfile.TemporaryDirectory(prefix="whiten-decode-") as folder:
        paths = write_photographs(Path(folder), 2 if options.quick else 24)
        for interpolation in ("bilinear", "bicubic"):
            report.add(compare(paths, interpolation, 2 if options.quick else 15))
        report.add(compare_workers(paths, 1 if options.quick else 7))
    report.finish(options.out)


if __name__ == "__main__":
    main()
