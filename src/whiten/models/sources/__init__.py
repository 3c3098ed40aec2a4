"""Sources of models, one module per URI scheme, each with `open_uri` and `list_names`.

Takes a parsed URI; returns a `Teacher`.
"""
