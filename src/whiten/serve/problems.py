"""Say in plain words what is wrong with the fields of a request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from whiten.errors import nearest

# Pydantic's kinds of errors; other kinds keep its own words.
_WORDS = {
    "missing": "must be given",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a whole number of fewer digits",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_parsing": "must be true or false",
    "literal_error": "must be {expected}",
    "greater_than_equal": "must be at least {ge:,}",
    "less_than_equal": "must be at most {le:,}",
    "too_short": "must be given",
    "too_long": "must be given at most {max_length} times",
    "string_type": "must be a text, not a file",
    "string_too_short": "must not be empty",
    "string_too_long": "must have at most {max_length} characters",
    "string_pattern_mismatch": "must be x,y,width,height in pixels, the last two above 0",
}


def first_problem(problems: Sequence[dict[str, Any]], known: set[str]) -> str:
    """Describe the first error of a validation in a line.

    Omits the value itself, which may be a whole upload, or no valid JSON.

    Args:
        problems: as pydantic lists them.
        known: the fields that the route takes.
    """
    first = problems[0]
    kind, where = first["type"], [str(part) for part in first["loc"][1:]]
    if kind == "extra_forbidden":
        return f"unknown field {where[0][:80]!r}{nearest(where[0], known)}"
    if where[0:1] == ["image"] and len(where) > 1:
        return "image: must be a file, not a text"
    words = _WORDS[kind].format_map(first.get("ctx", {})) if kind in _WORDS else first["msg"]
    return f"{'.'.join(where) or 'request'}: {words}"[:500]
