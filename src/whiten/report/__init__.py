"""Plots, tables and pages; the only package that imports matplotlib.

Takes plain numbers and image paths; returns PNG, HTML and text.
"""
