"""Embeddings on disk: Parquet shards with the fingerprint of their model.

Takes rows in any order, and survives a kill; returns blocks of rows and single rows.
"""
