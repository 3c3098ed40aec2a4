"""Everything that embeds: teachers by URI, students, exported students, released networks.

A URI or a folder enters; a `Teacher` leaves, which maps pixels to L2-normalised embeddings.
"""
