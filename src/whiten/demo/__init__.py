"""Demo: three real networks distilled on the bundled drawings.

Uses only bundled data; returns a run folder, a table and a report.
"""
