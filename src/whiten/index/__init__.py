"""Indexes of images: build, update and search; in a folder or in a vector database.

Sources of images and an encoder enter; matches with ids, scores and metadata leave.
"""

from whiten.index.index import Index
from whiten.index.rows import Match
from whiten.index.synchronise import Changes

__all__ = ["Changes", "Index", "Match"]
