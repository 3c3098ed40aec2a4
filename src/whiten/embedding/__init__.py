"""Embed items with models: cached, resumable, whitened and fused.

`load` takes a URI or a run and returns an `Encoder`, with which all higher packages embed.
"""
