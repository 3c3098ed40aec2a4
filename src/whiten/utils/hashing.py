"""Hash contents and facts, always blake2b of 128 bits as 32 hexadecimal digits."""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any


def content_hash(data: bytes) -> str:
    """Return 32 hexadecimal digits that identify a file's content."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def hash_file(path: str | os.PathLike[str]) -> str:
    """Hash a file's content as `content_hash` does; the file may be larger than memory."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def fingerprint(facts: Any) -> str:
    """Return 32 hexadecimal digits that change when `facts` (JSON-serialisable) change."""
    text = json.dumps(facts, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
