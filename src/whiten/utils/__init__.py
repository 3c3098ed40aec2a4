"""Small modules that every package may use, one subject each.

Files, hashes, arrays, names, threads, memory, progress, devices and the validation of values.
Independent of images and models.
"""
