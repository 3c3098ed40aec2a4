"""Refuse folders of codes that `whiten compact` wrote up to version 0.1."""

from __future__ import annotations

import json
from pathlib import Path

from whiten.errors import DAMAGED, StoreError


def refuse_earlier_codes(folder: Path) -> None:
    """Refuse a folder of codes of the earlier kind, naming the remedy.

    Raises:
        StoreError: the folder holds such codes.
    """
    if not all((folder / name).is_file() for name in ("codes.npy", "names.parquet")):
        return
    try:
        kind = str(json.loads((folder / "manifest.json").read_text("utf-8"))["kind"])
    except (OSError, *DAMAGED):
        kind = "KIND"
    storage = "binary" if kind == "hamming" else kind
    raise StoreError(
        f"{folder} holds codes of an earlier version, which are stored in an index now: make it "
        f"again with `whiten index IMAGES --model MODEL --storage {storage} --out PLACE`"
    )
