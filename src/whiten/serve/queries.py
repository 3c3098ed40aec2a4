"""The fields of requests, and the files that clients may name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import Request, UploadFile
from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic.config import JsonDict
from starlette.datastructures import ImmutableMultiDict

from whiten.errors import nearest

FORM = "multipart/form-data"
_FORMS = (FORM, "application/x-www-form-urlencoded")
MOST_IMAGES = 32  # per query


class RefusedError(Exception):
    """A request that is refused, with its status code."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


# Sides of a box: numbers, and numbers above 0.
_SIDE = r"-?\d{1,7}(\.\d{1,20})?"
_LENGTH = r"([1-9]\d{0,6}(\.\d{1,20})?|0\.\d{0,8}[1-9]\d{0,12})"
# A form sends an empty list for a field left empty; the schema requires none.
_SOME: JsonDict = {"minItems": 1}
_BOX = f"^$|^({_SIDE},){{2}}{_LENGTH},{_LENGTH}$"

Ids = Annotated[
    list[Annotated[str, Field(min_length=1)]],
    Field(description="ids of indexed images", max_length=MOST_IMAGES, json_schema_extra=_SOME),
]
BoxText = Annotated[
    str,
    Field(
        description="x,y,width,height of the part of the single image to use, in pixels of the "
        "upright image",
        pattern=_BOX,
    ),
]


class Images(BaseModel):
    """Images that are one query: uploads, files below the service's folders, indexed images."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"anyOf": [{"required": [name]} for name in ("image", "path", "id")]},
    )

    image: Annotated[
        list[UploadFile],
        Field(
            description="image files, whatever their declared type",
            max_length=MOST_IMAGES,
            json_schema_extra={**_SOME, "items": {"type": "string", "format": "binary"}},
        ),
    ] = []
    path: Annotated[
        list[Annotated[str, Field(min_length=1)]],
        Field(
            description="files below a folder that the service reads",
            max_length=MOST_IMAGES,
            json_schema_extra=_SOME,
        ),
    ] = []
    id: Ids = []
    box: BoxText = ""

    @field_validator("image", "path", "id", mode="before")
    @classmethod
    def _without_empty(cls, value: list[object]) -> list[object]:
        """Drop empty texts, which a form sends for fields left empty."""
        return [part for part in value if part != ""]


class Options(BaseModel):
    """Options of a search, see `whiten.index.query.SearchOptions`."""

    model_config = ConfigDict(extra="forbid")

    k: Annotated[int, Field(ge=1, le=1000, description="most hits")] = 10
    threshold: Annotated[
        float, Field(ge=-2, le=2, allow_inf_nan=False, description="lowest score of a hit")
    ] = -2.0
    where: Annotated[
        str,
        Field(
            description="filter on columns, as price < 10 and group == 'a'; none if empty",
            json_schema_extra={"format": "whiten-filter"},
        ),
    ] = ""
    combine: Annotated[
        Literal["mean", "max"],
        Field(description="search with the mean of several images, or score by the best of them"),
    ] = "mean"
    videos: Annotated[bool, Field(description="return videos, each with its best frame")] = False
    expand: Annotated[
        int, Field(ge=0, le=100, description="first hits that a second search adds to the query")
    ] = 0
    alpha: Annotated[
        float,
        Field(
            ge=0,
            le=100,
            allow_inf_nan=False,
            description="exponent of the similarities that weight these hits; unused without them",
        ),
    ] = 3.0
    background: Annotated[
        bool,
        Field(description="subtract the similarity to the service's background from the scores"),
    ] = False


class SearchById(Options):
    """A search with indexed images."""

    id: Annotated[Ids, Field(min_length=1)]
    box: BoxText = ""


class SearchByImages(Options, Images):
    """A search with any images."""


async def refuse_ignored(request: Request) -> None:
    """Refuse what would be ignored without a word.

    Pages take anything in the address: their scripts read it.

    Raises:
        RefusedError: the address has a field that the route does not take there, a field of one
            value comes several times, in the address or in the form, or the body is no form.
    """
    route = _described(request)
    in_address = _in_address(route)
    for name in request.query_params if route else ():
        if name not in in_address:
            hint = nearest(name, in_address)
            if name in fields_of(request):
                hint = " in the address: send it in the form"
            raise RefusedError(422, f"unknown field {name[:80]!r}{hint}")
    _refuse_repeated(request.query_params, in_address)
    if in_form := _in_form(request):
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind and kind not in _FORMS:
            raise RefusedError(415, f"the body must be a form, {FORM}, not {kind[:80]!r}")
        _refuse_repeated(await request.form(), in_form)  # which FastAPI has parsed already


def _refuse_repeated(given: ImmutableMultiDict[str, Any], fields: dict[str, Any]) -> None:
    for name, field in fields.items():
        if field.get("type") != "array" and (count := len(given.getlist(name))) > 1:
            raise RefusedError(422, f"{name}: sent {count} times, of which one would count")


def fields_of(request: Request) -> set[str]:
    """Return the names of the fields that a route takes, in the address or in a form."""
    in_path = {one["name"] for one in _described(request).get("parameters", ())}
    return in_path | _in_form(request).keys()


def _in_address(route: dict[str, Any]) -> dict[str, Any]:
    """Return the schemas of a route's fields in the address, by name."""
    fields = route.get("parameters", ())
    return {one["name"]: one["schema"] for one in fields if one["in"] == "query"}


def _in_form(request: Request) -> dict[str, Any]:
    """Return the schemas of the fields in the form of a route, by name."""
    found: dict[str, Any] = {}
    for body in _described(request).get("requestBody", {}).get("content", {}).values():
        schema = body["schema"]["$ref"].rpartition("/")[2]
        found |= request.app.openapi()["components"]["schemas"][schema]["properties"]
    return found


def _described(request: Request) -> dict[str, Any]:
    """Return the description of a route; {} if it is a page."""
    path = request.app.openapi()["paths"].get(request.scope["route"].path_format, {})
    found: dict[str, Any] = path.get(request.method.lower(), {})
    return found


def allowed_path(text: str, roots: Sequence[Path]) -> str:
    """Return the file that a client names, with symbolic links resolved.

    Files elsewhere are refused with the same message whether or not they exist.

    Args:
        text: absolute path, or relative to any of the roots.
        roots: folders, with symbolic links resolved.

    Raises:
        RefusedError: the path leads outside all roots, or there is no file.
    """
    if not roots:
        raise RefusedError(403, "this service reads no files by path: it has to be opened for them")
    if "\0" in text:
        raise RefusedError(422, "a path has no null bytes")
    inside = []
    for root in roots:
        try:
            real = Path(os.path.realpath(root / text))
        except (OSError, ValueError):  # for example a name that is too long
            continue
        if any(real.is_relative_to(one) for one in roots):
            inside.append(real)
    if not inside:
        raise RefusedError(403, "this path is not below a folder that the service reads from")
    for real in inside:
        if _is_file(real):
            return os.fspath(real)
    raise RefusedError(404, "there is no such file")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
