"""Storage kinds of an index: how the bytes of a stored vector become the vector that is searched.

Vectors enter; codes, and what these lose, leave. Nothing here knows where the codes are stored.
"""
