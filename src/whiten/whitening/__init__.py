"""PCA-whitening with a regularised spectrum, and the choice of its strength.

Takes streams of (n, D) embeddings; returns a `Whitener`, which maps them to (n, dim).
"""
