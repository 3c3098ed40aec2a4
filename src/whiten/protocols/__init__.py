"""Benchmarks as tasks: who searches what, and which answers are right."""
