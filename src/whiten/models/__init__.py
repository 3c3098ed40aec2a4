"""Every model that embeds: teachers by URI, students, exported students, released networks.

Takes a URI or a folder; returns a `Teacher`, which maps pixels to L2-normalised embeddings.
"""
