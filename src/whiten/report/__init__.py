"""Plots, tables and pages; the only package that imports matplotlib.

Plain numbers and paths of images enter; PNG, HTML and text leave.
"""
