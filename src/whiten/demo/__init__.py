"""The demo: three real networks distilled on the bundled drawings.

Nothing enters but the bundled data; a run folder, a table and a report leave.
"""
