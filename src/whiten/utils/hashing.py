"""Hash contents and facts, always blake2b of 128 bits as 32 hexadecimal digits."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def content_hash(data: bytes) -> str:
    """Return 32 hexadecimal digits that identify a file's content."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def hash_file(path: Path) -> str:
    """Hash a file's content, read in pieces."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def fingerprint(facts: Any) -> str:
    """Return 32 hexadecimal digits that change when `facts` (JSON-serialisable) change."""
    text = json.dumps(facts, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
