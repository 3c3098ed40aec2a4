"""Exact search, ranks, similarities of sets, and re-ranking, on vectors in memory or mapped files.

Takes (queries, d) and (n, d) float32 arrays; returns indices, similarities and ranks.
"""
