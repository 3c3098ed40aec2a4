"""Files of images and videos -> upright RGB pixels.

Bytes or a path enter; pixels of 8 bits per channel leave, or an `ImageError` with the reason.
"""
