"""Indexes: build one, change it, search it; in a folder or in a vector database."""

from whiten.index.index import Index
from whiten.index.rows import Match
from whiten.index.synchronise import Changes

__all__ = ["Changes", "Index", "Match"]
