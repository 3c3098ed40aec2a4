"""Items and models -> rows of embeddings, cached, resumable, whitened and fused.

A URI or a run enters `load`; an `Encoder` leaves, which is what all later packages embed with.
"""
