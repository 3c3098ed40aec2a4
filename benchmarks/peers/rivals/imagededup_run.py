"""Pairs by imagededup, at its defaults: FOLDER METHOD."""

import contextlib
import json
import sys

from imagededup import methods

if __name__ == "__main__":  # it starts processes
    folder, method = sys.argv[1:]
    with contextlib.redirect_stdout(sys.stderr):
        found = getattr(methods, method)().find_duplicates(image_dir=folder)
    pairs = [[name, other] for name, others in found.items() for other in others]
    print(json.dumps({"pairs": pairs}))
