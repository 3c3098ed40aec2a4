"""Read image and video files as upright RGB pixels.

Takes bytes or a path; returns pixels of 8 bits per channel, or raises `ImageError` with the reason.
"""
