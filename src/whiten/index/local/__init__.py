"""An index in a folder: segments, a manifest, and the kinds of search over mapped vectors.

Blocks of rows enter; matches leave. A kill leaves the old state or the new one.
"""
