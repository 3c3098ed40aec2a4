"""Distil teachers into a student: pairs, fusion, losses and the training loop.

Takes images and a `DistillSpec`; returns a run folder with the student, its targets and its
metrics.
"""
