"""A service that may be written, for the tests of its writes."""

from __future__ import annotations

import json
from typing import Any

from service import TestClient

TOKEN = "rose-17"
KNOWN = {"Authorization": f"Bearer {TOKEN}"}


def add(client: TestClient, image: bytes, **fields: Any) -> Any:
    if "metadata" in fields:
        fields["metadata"] = json.dumps(fields["metadata"])
    return client.post("/items", files={"image": ("photo.jpg", image)}, data=fields)


def total(client: TestClient) -> int:
    found: int = client.get("/items").json()["total"]
    return found


def best(client: TestClient, image: bytes, **options: object) -> tuple[str, float]:
    answer = client.post("/search", files={"image": ("x", image)}, data={"k": 1, **options})
    assert answer.status_code == 200, answer.text
    hits = answer.json()["hits"]
    return (hits[0]["id"], round(hits[0]["score"], 4)) if hits else ("", 0.0)
