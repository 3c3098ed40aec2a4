"""Small modules that every package may use, each of one subject.

Files, hashes, arrays, names, threads, memory, progress, devices and the validation of values.
Nothing here knows of images or models.
"""
