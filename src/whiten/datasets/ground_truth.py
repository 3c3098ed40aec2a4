"""Read the ground truth of revisited Oxford and Paris: `gnd_NAME.pkl` as published, or JSON.

Both hold `imlist` and `qimlist`, names of database and query images without suffix, and `gnd`: per
query the database indices that are `easy`, `hard` and `junk`, and `bbx`, the landmark's box in the
query, (left, top, right, bottom) in pixels of the image as stored (Radenović et al., CVPR 2018).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from whiten.datasets.restricted_pickle import read_numbers
from whiten.errors import ConfigError, one_line
from whiten.media.boxes import Box

LISTS = ("easy", "hard", "junk")


@dataclass(frozen=True)
class GroundTruth:
    """Names of gallery and query images, and the relevant images per query.

    Attributes:
        images: names of the n database images.
        queries: names of the q query images.
        lists: per query, database indices that are `easy`, `hard` and `junk`.
        boxes: per query, the landmark's box in pixels.
    """

    images: list[str]
    queries: list[str]
    lists: list[dict[str, list[int]]]
    boxes: list[Box]


def truth_file(folder: Path, name: str) -> Path | None:
    """Find `gnd_NAME.pkl` or `gnd_NAME.json` in a folder; None if there is neither."""
    files = [folder / f"gnd_{name}{ending}" for ending in (".pkl", ".json")]
    return next((file for file in files if file.is_file()), None)


def read_truth(file: Path) -> GroundTruth:
    """Read and check a ground truth.

    Raises:
        ConfigError: the file cannot be read, is damaged or inconsistent, or holds anything but
            plain containers and arrays of numbers.
    """
    try:
        data = file.read_bytes()
        facts = json.loads(data) if file.suffix == ".json" else read_numbers(data, str(file))
    except ConfigError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"cannot read {file} ({one_line(error)}): download it again") from error
    try:
        return _check(facts)
    except (TypeError, ValueError, KeyError, IndexError, OverflowError) as error:
        raise ConfigError(
            f"{file} is no ground truth of the revisited protocol ({one_line(error)}): it holds "
            "imlist, qimlist and gnd with easy, hard, junk and bbx; download it again"
        ) from error


def _check(facts: Any) -> GroundTruth:
    images, queries = _names(facts["imlist"]), _names(facts["qimlist"])
    truths = facts["gnd"]
    if not isinstance(truths, list | tuple) or len(truths) != len(queries):
        raise ValueError(f"gnd is not a list of {len(queries)} queries")
    if not queries or not images:
        raise ValueError("no images or no queries")
    lists = [{name: _indices(one, name, len(images)) for name in LISTS} for one in truths]
    for query, one in zip(queries, lists, strict=True):
        _refuse_junk_positives(query, one, images)
    return GroundTruth(images, queries, lists, [_box(one["bbx"]) for one in truths])


def _names(names: Any) -> list[str]:
    if isinstance(names, np.ndarray):
        names = names.tolist()
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise TypeError("a list of names is expected")
    for name in names:
        if not name or not set(name).isdisjoint("/\\\0"):  # a name must not lead to another folder
            raise ValueError(f"{name!r} is no image's name")
    if len(set(names)) < len(names):
        raise ValueError("an image is listed twice")
    return list(names)


def _indices(truth: Any, name: str, count: int) -> list[int]:
    values = truth[name]
    if isinstance(values, np.ndarray) and values.ndim == 1:
        values = values.tolist() if values.size else []  # an empty array may have any type
    if not isinstance(values, list | tuple) or not all(type(value) is int for value in values):
        raise TypeError(f"{name} is no list of indices")
    if values and not 0 <= min(values) <= max(values) < count:
        raise ValueError(f"{name} names images beyond the {count} of imlist")
    return list(values)


def _refuse_junk_positives(query: str, lists: dict[str, list[int]], images: list[str]) -> None:
    for name in ("easy", "hard"):
        if both := set(lists[name]) & set(lists["junk"]):
            raise ValueError(f"query {query!r}: image {images[min(both)]!r} is {name} and junk")


def _box(values: Any) -> Box:
    left, top, right, bottom = (float(value) for value in values)
    if not (np.isfinite([left, top, right, bottom]).all() and left < right and top < bottom):
        raise ValueError(f"bbx {values} is no box")
    return Box(left, top, right, bottom)
