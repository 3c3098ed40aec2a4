"""The two pages: the search, stored next to this file, and the reference of the interface.

Nothing is loaded from elsewhere, and only the script and style stored here may run: the content
security policy lists their hashes.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib import resources
from typing import Any


@dataclass(frozen=True)
class Page:
    """A page and its content security policy."""

    html: str
    policy: str


@cache
def search_page() -> Page:
    """Build the search page from its three files."""
    here = resources.files("whiten.serve")
    html, style, script = ((here / f"page.{kind}").read_text("utf-8") for kind in _PARTS)
    html = html.replace("<style></style>", f"<style>\n{style}</style>")
    return _page(html.replace("<script></script>", f"<script>\n{script}</script>"))


_PARTS = ("html", "css", "js")


def reference_page(openapi: Mapping[str, Any]) -> Page:
    """Render the OpenAPI description as plain HTML, without scripts."""
    schemas = openapi["components"]["schemas"]
    sections = "".join(
        _operation(method, path, operation, schemas)
        for path, methods in openapi["paths"].items()
        for method, operation in methods.items()
    )
    title = f"{escape(openapi['info']['title'])} {escape(openapi['info']['version'])}"
    return _page(
        f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}: the interface</title><link rel="icon" href="data:,"><style>{_STYLE}</style></head>
<body><main><h1>{title}: the interface</h1>
<p>{escape(openapi["info"]["description"])} Refusals are JSON with a <code>detail</code> that says
why; 503 comes with <code>Retry-After</code>. The same for programs:
<a href="openapi.json">openapi.json</a>. Back to the <a href="./">search page</a>.</p>
{sections}</main></body></html>
"""
    )


_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0; }
main { margin: 0 auto; max-width: 56rem; padding: 1.5rem 1rem 4rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2rem 0 .25rem; }
h2 b { border: 1px solid; border-radius: 4px; font-size: .8rem; margin-right: .5em;
  padding: .1em .4em; }
table { border-collapse: collapse; margin-top: .5rem; width: 100%; }
td, th { border-bottom: 1px solid #8886; padding: .3rem .6rem .3rem 0; text-align: left;
  vertical-align: top; }
td code { overflow-wrap: normal; white-space: nowrap; }
"""


def _operation(
    method: str, path: str, operation: Mapping[str, Any], schemas: Mapping[str, Any]
) -> str:
    rows = [
        (p["name"], p["schema"], p.get("required", False), p.get("description", ""))
        for p in operation.get("parameters", [])
    ]
    for kind, body in operation.get("requestBody", {}).get("content", {}).items():
        schema = schemas[body["schema"]["$ref"].rpartition("/")[2]]
        for name, field in schema["properties"].items():
            is_required = name in schema.get("required", [])
            rows.append((name, field, is_required, field.get("description", "")))
        rows.insert(0, ("", {}, False, f"as {kind}"))
    answer = operation["responses"]["200"].get("content", {}).get("application/json", {})
    shape = answer.get("schema", {}).get("$ref", "").rpartition("/")[2]
    fields = ", ".join(schemas[shape]["properties"]) if shape else ""
    body = "".join(
        f"<tr><td><code>{escape(name)}</code></td><td>{_type(schema)}</td>"
        f"<td>{'needed. ' if needed else ''}{escape(text)}</td></tr>"
        for name, schema, needed, text in rows
    )
    return (
        f"<section><h2><b>{method.upper()}</b>{escape(path)}</h2>"
        f"<p>{escape(operation.get('summary', ''))}.{f' Answers {fields}.' if fields else ''}</p>"
        + (f"<table><tbody>{body}</tbody></table>" if body else "")
        + "</section>"
    )


def _type(schema: Mapping[str, Any]) -> str:
    one = next((s for s in schema.get("anyOf", []) if s.get("type") != "null"), schema)
    limits = [f"{sign} {one[key]:,g}" for key, sign in _LIMITS.items() if key in one]
    default = schema.get("default")
    said = [one.get("type", ""), *limits, *([f"default {default}"] if default else [])]
    if one.get("contentMediaType") or one.get("format") == "binary":
        said = ["file"]
    return escape(", ".join(filter(None, said)))


_LIMITS = {"minimum": "≥", "maximum": "≤"}


def _page(html: str) -> Page:
    policy = [
        "default-src 'none'",
        "connect-src 'self'",
        "img-src 'self' blob: data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
    for tag, kind in (("script", "script-src"), ("style", "style-src")):
        for text in re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL):
            digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
            policy.append(f"{kind} 'sha256-{digest}'")
    return Page(html, "; ".join(policy))
