"""Pack the demo's photographs, of groceries in shops, from the published data set.

    python tools/pack_photos.py FOLDER src/whiten/demo/data/photos.parquet

FOLDER has a folder of JPEGs per kind of the Grocery Store Dataset (Klasson, Zhang, Kjellström, WACV
2019, MIT). Packages are split in two, every second product in the order of names; fruit and
vegetables are a source of their own. Photographs are scaled to 240 px and written as WebP.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SIDE, QUALITY = 240, 75
BRANDS = ("Alpro", "Arla", "Bravo", "Garant", "God-Morgon", "Oatly", "Tropicana", "Valio", "Yoggi")


def main(source: Path, target: Path) -> None:
    kinds = sorted(path.name for path in source.iterdir() if path.is_dir())
    packages = [kind for kind in kinds if kind.startswith(BRANDS)]
    tested = set(packages[1::2])
    rows = [
        {
            "group": kind,
            "source": "packages" if kind in packages else "produce",
            "split": "test" if kind in tested else "train" if kind in packages else "unseen",
            "name": path.stem,
            "image": _shrink(path),
        }
        for kind in kinds
        for path in sorted((source / kind).glob("*.jpg"))
    ]
    pq.write_table(pa.Table.from_pylist(rows), target, compression="none")
    print(f"{len(rows):,} photographs, {target.stat().st_size / 1e6:.1f} MB")


def _shrink(path: Path) -> bytes:
    with Image.open(path) as image:
        image.draft("RGB", (2 * SIDE, 2 * SIDE))
        scale = SIDE / min(image.size)
        size = (round(scale * image.width), round(scale * image.height))
        small = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    encoded = io.BytesIO()
    small.save(encoded, "WEBP", quality=QUALITY, method=6)
    return encoded.getvalue()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
