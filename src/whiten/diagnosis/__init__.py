"""Tell what teachers are worth on a person's own images, before hours are spent on a distillation.

Takes images and teachers; returns numbers, a verdict in words, and a page.
"""
