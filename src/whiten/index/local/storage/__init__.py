"""Storage kinds of an index: encode vectors in fewer bytes, search them, and measure the loss.

Takes vectors; returns codes and what they lose. Independent of where the codes are stored.
"""
