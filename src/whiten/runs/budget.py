"""A time that a user grants, as text: 90s, 10m, 1h, 1h30m. No torch here."""

from __future__ import annotations

import math
import re

from whiten.errors import ConfigError

_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0}
_TIME = re.compile("".join(rf"(?:(?P<{unit}>\d+(?:\.\d+)?){unit})?" for unit in _UNITS), re.ASCII)


def parse_time(text: str) -> float:
    """Return the seconds of a time such as 90s, 10m, 1h or 1h30m.

    Raises:
        ConfigError: the text is no such time, or 0.
    """
    match = _TIME.fullmatch(text.strip())
    given = {} if match is None else {k: float(v) for k, v in match.groupdict().items() if v}
    seconds = sum(number * _UNITS[unit] for unit, number in given.items())
    if not 0 < seconds < math.inf:
        raise ConfigError(f"budget is a time such as 90s, 10m, 1h or 1h30m, not {text!r}")
    return seconds


def format_time(seconds: float) -> str:
    """Write a time for `parse_time`: rounded up to seconds, above 10 minutes to minutes."""
    step = 60 if seconds > 600 else 1
    left = max(1, math.ceil(seconds / step - 1e-9)) * step
    parts = []
    for unit, size in _UNITS.items():
        count, left = divmod(left, int(size))
        parts += [f"{count}{unit}"] * (count > 0)
    return "".join(parts)
