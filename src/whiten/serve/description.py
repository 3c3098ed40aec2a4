"""The OpenAPI description: what FastAPI cannot know of the service is added to what it writes."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.routing import Match, Route

from whiten.serve.live import MAX_WHERE
from whiten.serve.queries import SearchSent
from whiten.serve.settings import Settings

REFUSALS = (400, 401, 403, 404, 405, 408, 413, 415, 421, 422, 500, 503)
_WAYS = ("image", "id", "path")  # to name the query; exactly one is needed


class Problem(BaseModel):
    """Why a request was refused."""

    detail: str


def describe(app: FastAPI, settings: Settings) -> None:
    """Answer HEAD wherever GET is answered, and complete the description of all routes."""
    for route in list(app.routes):
        if isinstance(route, APIRoute) and "GET" in (route.methods or ()):
            app.add_api_route(
                route.path,
                route.endpoint,
                methods=["HEAD"],
                response_model=None,
                include_in_schema=False,
            )
    written = app.openapi

    def complete() -> dict[str, Any]:
        if app.openapi_schema is None:
            _complete(written(), settings)
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = complete  # type: ignore[method-assign]


def allowed_methods(app: FastAPI, request: Request) -> list[str]:
    """All methods of a path; each route alone knows only its own."""
    return sorted(
        {
            method
            for route in app.routes
            if isinstance(route, Route) and route.matches(request.scope)[0] != Match.NONE
            for method in route.methods or ()
        }
    )


def invalid_field(problems: Sequence[dict[str, Any]]) -> str:
    """Say what is wrong with the first field, without its value, which may be a whole upload."""
    first = problems[0]
    field = ".".join(str(part) for part in first["loc"][1:]) or "request"
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(field, list(SearchSent.model_fields), 1)
        hint = f": did you mean {near[0]!r}?" if near else ": see /docs"
        return f"there is no field {field[:80]!r}{hint}"
    return f"{field}: {first['msg']}"[:500]


def _complete(description: dict[str, Any], settings: Settings) -> None:
    for schema in description["components"]["schemas"].values():
        if "box" in schema.get("properties", {}):
            _exact(schema, settings)
    for methods in description["paths"].values():
        if "get" in methods:
            get = methods["get"]
            if any(p["name"] == "box" for p in get.get("parameters", [])):
                get["parameters"] = [_as_object(get["parameters"], settings)]
            methods["head"] = _without_content(get)


def _exact(schema: dict[str, Any], settings: Settings) -> None:
    """Exactly one query, no null, and the limits of this service."""
    fields = schema["properties"]
    for name, field in fields.items():
        kinds = [kind for kind in field.pop("anyOf", []) if kind.get("type") != "null"]
        fields[name] = field | (kinds[0] if kinds else {})
        fields[name].pop("title", None)
    for name in ("id", "path"):
        fields[name]["minLength"] = 1
    fields["box"]["format"] = "box"
    if "image" in fields:
        fields["image"] |= {"type": "string", "format": "binary"}
    if "k" in fields:
        fields["k"]["maximum"] = settings.max_hits
        fields["where"] |= {"format": "filter", "maxLength": MAX_WHERE}
    schema["oneOf"] = [{"required": [name]} for name in _WAYS if name in fields]
    schema["additionalProperties"] = False


def _as_object(parameters: Sequence[dict[str, Any]], settings: Settings) -> dict[str, Any]:
    """The fields of a query string as one object: only so can it say that one of them is needed."""
    properties = {
        p["name"]: p["schema"] | {"description": p.get("description", "")} for p in parameters
    }
    schema = {"type": "object", "properties": properties}
    _exact(schema, settings)
    return {
        "name": "query",
        "in": "query",
        "required": True,
        "style": "form",
        "explode": True,
        "schema": schema,
    }


def _without_content(get: dict[str, Any]) -> dict[str, Any]:
    head = copy.deepcopy(get)
    head["operationId"] = f"{get['operationId']}_head"
    for answer in head["responses"].values():
        answer.pop("content", None)
    return head
