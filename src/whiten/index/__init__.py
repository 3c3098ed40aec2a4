"""Indexes of images: build, update and search; in a folder or in a vector database.

Takes images and an encoder; returns matches with ids, scores and metadata.
"""

from whiten.index.index import Index
from whiten.index.rows import Match
from whiten.index.synchronise import Changes

__all__ = ["Changes", "Index", "Match"]
