"""ICC profiles of known colour spaces, built from their numbers (ICC.1:2010)."""

from __future__ import annotations

import struct

import numpy as np

_D50 = (0.9642, 1.0, 0.8249)
_BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)

Point = tuple[float, float]


def _xyz(point: Point) -> np.ndarray:
    x, y = point
    return np.array([x / y, 1, (1 - x - y) / y])


def _numbers(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(v * 65536)) for v in values)


def _curve(gamma: float | None) -> bytes:
    if gamma is None:  # that of sRGB
        return (
            b"para"
            + struct.pack(">4xHH", 3, 0)
            + _numbers(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
        )
    return b"para" + struct.pack(">4xHH", 0, 0) + _numbers(gamma)


def _profile(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    table, data = struct.pack(">I", len(tags)), b""
    start = 132 + 12 * len(tags)
    for name, content in tags.items():
        table += name + struct.pack(">II", start + len(data), len(content))
        data += content + bytes(-len(content) % 4)
    header = struct.pack(">I4xI", start + len(data), 0x04200000) + b"mntr" + space + b"XYZ "
    header += bytes(12) + b"acsp" + bytes(28) + _numbers(*_D50)
    return header.ljust(128, b"\0") + table + data


def matrix_profile(
    red: Point, green: Point, blue: Point, gamma: float | None, white: Point = (0.3127, 0.329)
) -> bytes:
    """An RGB space; the tone curve is a power, or sRGB's if `gamma` is None."""
    primaries = np.stack([_xyz(point) for point in (red, green, blue)], axis=1)
    colorants = primaries * np.linalg.solve(primaries, _xyz(white))
    scale = (_BRADFORD @ np.array(_D50)) / (_BRADFORD @ _xyz(white))
    adapted = np.linalg.inv(_BRADFORD) @ np.diag(scale) @ _BRADFORD @ colorants
    tags = {b"wtpt": b"XYZ " + bytes(4) + _numbers(*_D50)}
    for number, name in enumerate((b"r", b"g", b"b")):
        tags[name + b"XYZ"] = b"XYZ " + bytes(4) + _numbers(*adapted[:, number])
        tags[name + b"TRC"] = _curve(gamma)
    return _profile(b"RGB ", tags)


def grey_profile(gamma: float) -> bytes:
    tags = {b"wtpt": b"XYZ " + bytes(4) + _numbers(*_D50), b"kTRC": _curve(gamma)}
    return _profile(b"GRAY", tags)


P3 = matrix_profile((0.68, 0.32), (0.265, 0.69), (0.15, 0.06), None)
PROPHOTO = matrix_profile(
    (0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001), 1.8, white=(0.3457, 0.3585)
)
