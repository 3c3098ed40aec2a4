"""Encoders and tasks -> retrieval metrics with intervals.

An encoder and a folder or a published benchmark enter; an `Evaluation` and report pages leave.
"""
