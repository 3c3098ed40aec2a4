"""Sources of models, one module per URI scheme, each with `open_uri`, some with `list_names`.

Takes a parsed URI; returns a `Teacher`.
"""
