"""Groups by CleanVision, at its defaults: FOLDER."""

import contextlib
import json
import sys

from cleanvision import Imagelab

if __name__ == "__main__":  # it starts processes
    kinds = ("exact_duplicates", "near_duplicates")
    with contextlib.redirect_stdout(sys.stderr):
        lab = Imagelab(data_path=sys.argv[1])
        lab.find_issues({kind: {} for kind in kinds})
    groups = [group for kind in kinds for group in lab.info[kind].get("sets", [])]
    print(json.dumps({"groups": groups}))
