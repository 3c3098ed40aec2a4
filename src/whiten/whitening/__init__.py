"""PCA-whitening with a regularised spectrum, and the choice of its strength.

Streams of (n, D) embeddings enter; a `Whitener` leaves, which maps them to (n, dim).
"""
