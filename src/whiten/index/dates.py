"""Dates and times in ISO 8601, as text whose order is that of time.

A date without a time is its midnight. A time is compared as it was written, or, where it and the
bound state their zones, as the moment that it is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta

_DATE = re.compile(
    r"\s*(\d{4})-(\d\d)-(\d\d)"
    r"(?:[Tt ](\d\d):(\d\d)(?::(\d\d)(?:[.,](\d{1,9}))?)?"
    r" ?(?:([Zz]|UTC)|([+-])(\d\d)(?::?(\d\d))?)?)?\s*",
    re.ASCII,
)


@dataclass(frozen=True)
class Moment:
    """A date or time, as texts of equal length that sort as time does.

    Attributes:
        time: as written, without the zone.
        utc: in UTC; None if no zone is stated.
    """

    time: str
    utc: str | None


def read_moment(text: str) -> Moment | None:
    """Read `2024-01-03`, or `2024-01-03T10:00:00.5+02:00` and its usual variants; else None."""
    found = _DATE.fullmatch(text)
    if found is None:
        return None
    fraction, utc, sign, hours, minutes = found.groups()[6:]
    try:
        y, mo, d, h, mi, s = (int(part or 0) for part in found.groups()[:6])
        written = datetime(y, mo, d, h, mi, s)
        if utc is None and sign is None:
            return Moment(_sortable(written, fraction), None)
        if int(hours or 0) > 23 or int(minutes or 0) > 59:
            return None
        offset = timedelta(hours=int(hours or 0), minutes=int(minutes or 0))
        moment = written + offset if sign == "-" else written - offset
    except (ValueError, OverflowError):
        return None
    return Moment(_sortable(written, fraction), _sortable(moment, fraction))


def _sortable(time: datetime, fraction: str | None) -> str:
    return f"{time.isoformat()}.{fraction or '':0<9}"
