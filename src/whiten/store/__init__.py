"""Embeddings on disk: Parquet shards with the fingerprint of what made them.

Rows enter in any order and survive a kill; blocks of rows and single rows leave.
"""
