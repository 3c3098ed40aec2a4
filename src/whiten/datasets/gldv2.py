"""GLDv2-clean in its published layout, recognised by its list.

GLDv2-clean (Weyand et al., CVPR 2020; cleaned by Yokoo et al., 2020) lists the images of each
landmark in `train_clean.csv`, columns `landmark_id,images` with spaces between the images; image
`abcdef…` is stored in `train/a/b/c/abcdef….jpg`.
"""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from whiten.datasets.collection import Items
from whiten.errors import ConfigError, NoImagesError, one_line
from whiten.utils.names import name_codes, repeated

LANDMARKS = "train_clean.csv"
LANDMARKS_IN = (".", "meta", "metadata", "train")  # usual folders of the list
_LEVELS = 3  # of folders, each named by one character of the id
_ROW_BYTES = 1 << 24  # maximum; a landmark of 10,000 images takes a row of 170 kB


def landmark_list(root: Path) -> Path | None:
    """Find GLDv2-clean's list below its root, or next to its images; None if there is none."""
    places = [root / folder / LANDMARKS for folder in LANDMARKS_IN]
    if root.absolute().name == "train":  # without the list its folders would be taken for groups
        places.append(root.absolute().parent / LANDMARKS)
    return next((place for place in places if place.is_file()), None)


def landmark_images(root: Path) -> Path:
    """Return the folder that holds the three levels of folders: `train`, or the root itself."""
    return root / "train" if (root / "train").is_dir() else root


def read_landmarks(table: Path, images: Path) -> Items:
    """Read GLDv2-clean as columns, sorted by id; does not check that the files exist.

    Args:
        table: `train_clean.csv`.
        images: the folder that holds the three levels of folders.

    Returns:
        Ids as in the list; groups are the landmarks with at least two images.

    Raises:
        ConfigError: the list is damaged, or names an image twice.
        NoImagesError: the list names no image.
    """
    ids, landmarks = _read_list(table)
    if len(ids) == 0:
        raise NoImagesError(f"{table} lists no image: download it again")
    is_name = pc.match_substring_regex(ids, f"^[0-9A-Za-z_-]{{{_LEVELS},}}$")
    if (bad := pc.index(is_name, False).as_py()) >= 0:
        raise ConfigError(
            f"{table} lists {ids[bad].as_py()!r}, which is no image id: download it again"
        )
    codes = name_codes(landmarks)
    groups = pc.if_else(pa.array(repeated(codes)), landmarks, pa.scalar(None, pa.large_string()))
    items = Items(ids, _paths(ids, images), groups).sorted()
    if (name := items.first_twice()) is not None:
        raise ConfigError(f"{table} lists {name!r} twice: download it again")
    return items


def describe_landmarks(items: Items) -> str:
    """Describe the recognised data set in one line."""
    landmarks = len(items.groups.unique().drop_null())
    return f"GLDv2-clean: {len(items):,} images of {landmarks:,} landmarks"


def _read_list(table: Path) -> tuple[pa.Array, pa.Array]:
    """Read image ids and their landmarks."""
    from pyarrow import csv

    columns = {"landmark_id": pa.large_string(), "images": pa.large_string()}
    try:
        rows = csv.read_csv(
            table,
            read_options=csv.ReadOptions(block_size=_ROW_BYTES),
            convert_options=csv.ConvertOptions(
                column_types=columns, include_columns=list(columns), strings_can_be_null=False
            ),
        )
    except (OSError, pa.ArrowException, LookupError, ValueError) as error:
        raise ConfigError(
            f"cannot read {table} ({one_line(error)}): GLDv2-clean's list has the columns "
            "landmark_id,images; download it again, or rename it if this is another data set"
        ) from error
    lists = pc.split_pattern(rows["images"].combine_chunks(), " ")
    ids = lists.flatten()
    landmarks = rows["landmark_id"].combine_chunks().take(pc.list_parent_indices(lists))
    is_there = pc.not_equal(ids, "")
    return ids.filter(is_there), landmarks.filter(is_there)


def _paths(ids: pa.Array, images: Path) -> pa.Array:
    levels = [pc.utf8_slice_codeunits(ids, level, level + 1) for level in range(_LEVELS)]
    pieces = [part.cast(pa.large_binary()) for part in (*levels, ids)]
    start = pa.scalar(os.path.join(os.fsencode(images), b""), pa.large_binary())
    slash = pa.scalar(os.sep.encode(), pa.large_binary())
    below = pc.binary_join_element_wise(*pieces, slash)
    nothing = pa.scalar(b"", pa.large_binary())
    return pc.binary_join_element_wise(start, below, pa.scalar(b".jpg", pa.large_binary()), nothing)
