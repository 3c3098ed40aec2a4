"""Read folders, tables and published benchmarks as items: id, path, group and time per image.

Takes a path; returns `Items`, and the ground truth of benchmarks that have one.
"""
