"""The table of an export, for the terminal and for the model card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from whiten.models.exported import Manifest, Variant

TORCH = "torch fp32"
Speeds = Mapping[str, Mapping[str, float]]
_SLOWER = 0.95  # below this, a ratio of speeds is not noise

_CENTRED = 0.99  # below this, rounding is not small compared with differences of embeddings

_HEAD = [
    *("variant", "MB", "cosine", "lowest", "centred", "mAP"),
    *("images/s, 1", "of torch", "images/s, 16", "of torch"),
]


def title(variant: Variant) -> str:
    return f"{variant.format} {variant.precision}"


def remarks_on(variant: Variant, speeds: Speeds) -> list[str]:
    """Return remarks on variants slower than fp32 or torch, and on the costs of a precision.

    Args:
        speeds: images per second by batch size, for `TORCH`, the variants and the formats' fp32.
    """
    own = speeds[title(variant)]
    found = []
    for rival in (f"{variant.format} fp32", TORCH):
        ratios = {batch: own[batch] / speed for batch, speed in speeds[rival].items()}
        slower = [f"{r:.2f}x at batch {b}" for b, r in ratios.items() if r < _SLOWER]
        if rival != title(variant) and slower:
            found.append(f"slower here than {rival}: {', '.join(slower)}")
    centred = variant.parity.get("centred")
    if variant.precision in ("fp16", "bf16") and centred is not None and centred < _CENTRED:
        found.append(
            f"mean-centred cosine {centred:.4f}: embeddings of this student are so close together "
            "that half precision changes who is near"
        )
    if (variant.format, variant.precision) == ("openvino", "fp16"):
        found.append("stored as fp16, computed in fp32: CPUs gain a smaller file alone")
    return found


def rows(manifest: Manifest) -> list[list[str]]:
    """Return the rows of cells, header first."""
    torch: dict[str, Any] = manifest.measured["torch"]
    speed = [cell for s in torch["speed"].values() for cell in (f"{s:,.1f}", "1.00x")]
    found = [_HEAD, [TORCH, "", "", "", "", _cell(torch["map"]), *speed]]
    for variant in manifest.variants:
        parity = variant.parity
        speed = [
            cell
            for batch, s in variant.speed.items()
            for cell in (f"{s:,.1f}", f"{s / torch['speed'][batch]:.2f}x")
        ]
        found.append(
            [
                title(variant),
                f"{variant.bytes / 1e6:.1f}",
                f"{parity['cosine']:.5f}",
                f"{parity['lowest_cosine']:.5f}",
                _cell(parity["centred"]),
                _cell(parity["map"]),
                *speed,
            ]
        )
    return found


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def notes(manifest: Manifest) -> list[str]:
    """Explain the measurements, and remark on the rows."""
    known = manifest.measured
    if known["drawn"]:
        images = f"{known['drawn']} synthetic images, since --images named none"
    else:
        images = f"{known['held_out']:,} held-out images"
    found = [f"compared with torch on {images}"]
    if known["calibration"] and any(v.precision == "int8" for v in manifest.variants):
        found.append(f"int8 is calibrated on {known['calibration']:,} others")
    found.append(
        {
            "groups": "mAP: images of a group find each other",
            "neighbours": "mAP: of torch's 5 nearest neighbours, for there are no groups",
        }.get(known["map_by"], "mAP is left out: there are too few images, and no groups")
    )
    found.append(f"speed: {known['threads']} threads, from rendered pixels; {known['cpu']}".strip())
    return found + [f"{title(v)}: {remark}" for v in manifest.variants for remark in v.remarks]


def lines(manifest: Manifest) -> list[str]:
    """Format the table for the terminal."""
    cells = rows(manifest)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    table = [
        "  ".join(
            cell.ljust(width) if number == 0 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    return [*table, *notes(manifest)]


def markdown(manifest: Manifest) -> str:
    """Format the table for the model card."""
    head, *body = rows(manifest)
    ruled = [head, ["---", *(["---:"] * (len(head) - 1))], *body]
    table = "\n".join(f"| {' | '.join(row)} |" for row in ruled)
    return table + "\n\n" + "\n".join(f"- {note}" for note in notes(manifest)) + "\n"
