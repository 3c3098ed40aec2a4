"""One module per scheme of a URI; each has `open_uri` and `list_names`.

A parsed URI enters; a `Teacher` leaves.
"""
