"""Indexes in a folder: segments, a manifest, and the search kinds over mapped vectors.

Takes blocks of rows; returns matches. A kill leaves the old state or the new one.
"""
