"""Folders, tables and published benchmarks -> items: id, path, group and time of every image.

A path enters; `Items` leave, and the ground truth of the benchmarks that have one.
"""
