"""Runs: their options, the recipes that complete them, and their folders.

Takes a user's options; returns a complete `DistillSpec` and the paths of a run.
"""
