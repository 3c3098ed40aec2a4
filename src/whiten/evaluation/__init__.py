"""Evaluate encoders on retrieval tasks: metrics with confidence intervals.

Takes an encoder and a folder or a published benchmark; returns an `Evaluation` and report pages.
"""
