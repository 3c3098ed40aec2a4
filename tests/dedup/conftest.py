"""What tests of near-duplicates share: a model that costs nothing, and drawings with copies."""

from __future__ import annotations

import shutil
from importlib import resources
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

FACTORY = '''
"""Sees an image as 8 × 8 pixels, without their mean."""

from torch import nn

from whiten.views.rendering import Preprocess


class Centre(nn.Module):
    def forward(self, x):
        return x - x.mean((2, 3), keepdim=True) + 0.01


def make(size="32"):
    layers = nn.Sequential(nn.AdaptiveAvgPool2d(8), Centre(), nn.Flatten())
    return layers, Preprocess(size=(int(size), int(size)))
'''


@pytest.fixture
def small_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder to work in, and a model that costs nothing."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "small_pictures.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(tmp_path / "code")
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Bundled drawings that differ: of one vendor, from all over the set."""
    root = tmp_path_factory.mktemp("drawings")
    with resources.as_file(resources.files("whiten") / "demo" / "data" / "emoji.parquet") as path:
        table = pq.read_table(path, columns=["group", "vendor", "image"])
    rows = [row for row in table.to_pylist() if row["vendor"] == "fluent"][7::83]
    for row in rows:
        (root / f"{row['group']}.webp").write_bytes(row["image"])
    return sorted(root.iterdir())


@pytest.fixture
def copied(drawings: list[Path], tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A folder of drawings, some with copies; and of each copy the original's id."""
    folder = tmp_path / "images"
    folder.mkdir()
    origin: dict[str, str] = {}
    for number, path in enumerate(drawings[:20]):
        name = f"{number:02d}"
        shutil.copy(path, folder / f"{name}.webp")
        image = Image.open(path).convert("RGB")
        if number < 12:
            if number % 4 == 0:
                image.save(folder / f"{name}-copy.jpg", quality=70)
            elif number % 4 == 1:
                image.resize((40, 40)).save(folder / f"{name}-copy.png")
            elif number % 4 == 2:
                image.crop((1, 1, 63, 63)).save(folder / f"{name}-copy.png")
            else:
                shutil.copy(path, folder / f"{name}-copy.webp")
            [made] = folder.glob(f"{name}-copy*")
            origin[made.name] = f"{name}.webp"
    return folder, origin
