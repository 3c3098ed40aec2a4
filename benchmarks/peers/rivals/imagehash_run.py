"""Pairs by imagehash's perceptual hash, at most 10 of 64 bits apart: FOLDER."""

import json
import sys
from pathlib import Path

import imagehash
import numpy as np
from PIL import Image

MOST = 10  # bits, the default of imagededup for the same hash

paths = sorted(Path(sys.argv[1]).iterdir())
hashes = np.stack([imagehash.phash(Image.open(path)).hash.ravel() for path in paths])
apart = (hashes[:, None] != hashes[None]).sum(axis=2)
one, other = np.nonzero(np.triu(apart <= MOST, 1))
pairs = [[paths[i].name, paths[j].name] for i, j in zip(one, other, strict=True)]
print(json.dumps({"pairs": pairs}))
