"""Samples of tar shards as WebDataset and img2dataset write them: `KEY.jpg`, `KEY.json`, `KEY.txt`.

The id of an image is its path as if the shard were a folder, `photos-000.tar/000000001.jpg`.
"""

from __future__ import annotations

import json
import logging
import posixpath
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from whiten.datasets.collection import Item
from whiten.datasets.walking import is_left_out
from whiten.errors import counted
from whiten.media.formats import SUFFIXES, describe_unread, unread_kind
from whiten.media.video import VIDEO_SUFFIXES
from whiten.storage.blobs import open_blob
from whiten.storage.places import TAR, open_once
from whiten.storage.tar import Members, scan

_log = logging.getLogger(__name__)

GROUP = "group"
_JSON, _CLASS, _TEXT = ".json", ".cls", ".txt"


def key_of(name: str) -> str:
    """Return what the members of one sample share: the name up to the first dot of its file."""
    folder, file = posixpath.split(name)
    return posixpath.join(folder, file.partition(".")[0])


def tar_items(place: str, name: str) -> Iterator[Item]:
    """Yield the images of a shard; `NAME/` for one that is damaged, with the reason on reading.

    An image's group is the `group` of its JSON, or else its `.cls`, or else its folder in the tar.

    Args:
        place: path or URL of the shard.
        name: its name below the root of the collection.
    """
    blob = open_blob(place)
    members = scan(blob, lambda one: _is(one, _JSON) or _is(one, _CLASS))
    open_once(place, lambda _: members.without_contents(), TAR)  # for those who read the images
    names = members.names.names.to_pylist()
    groups = _groups(place, members)
    for one in names:
        if _is_image(one):
            group = groups.get(key_of(one)) or posixpath.dirname(one) or None
            yield Item(f"{name}/{one}", f"{place}/{one}", group)
    if members.problem:
        yield Item(f"{name}/", f"{place}/")
    _tell_unread(place, names, members.links)


def tar_columns(place: str, name: str, wanted: Callable[[str], bool]) -> Iterator[dict[str, Any]]:
    """Yield what JSON and `.txt` say of each wanted image of a shard, with its `id` and `path`.

    Args:
        wanted: called with an id.
    """
    members = scan(open_blob(place), lambda one: _is(one, _JSON) or _is(one, _TEXT))
    facts = {key_of(n): _facts(data) or {} for n, data in members.contents.items() if _is(n, _JSON)}
    for one, data in members.contents.items():
        if _is(one, _TEXT):
            text = data.decode("utf-8", "replace").strip()
            facts.setdefault(key_of(one), {}).setdefault("caption", text)
    for one in members.names.names.to_pylist():
        if _is_image(one) and wanted(f"{name}/{one}"):
            found = facts.get(key_of(one), {})
            yield {**found, "id": f"{name}/{one}", "path": f"{place}/{one}"}


def _groups(place: str, members: Members) -> dict[str, str]:
    groups: dict[str, str] = {}
    broken = 0
    for name, data in members.contents.items():
        if _is(name, _CLASS):
            groups.setdefault(key_of(name), data.decode("utf-8", "replace").strip())
        elif (facts := _facts(data)) is None:
            broken += 1
        elif (group := facts.get(GROUP)) not in (None, "") and group == group:  # NaN is missing
            groups[key_of(name)] = str(group)
    if broken:
        _log.warning("%s: not read: %s JSON members that are damaged", place, f"{broken:,}")
    return groups


def _facts(data: bytes) -> dict[str, Any] | None:
    """Return a JSON object; None if it is none.

    Halves of characters, which cut captions end with, become `?`: nothing could store them.
    """
    try:
        found = json.loads(data)
        if b"\\" in data:
            found = json.loads(json.dumps(found, ensure_ascii=False).encode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _is(name: str, suffix: str) -> bool:
    return name.lower().endswith(suffix)


def _is_image(name: str) -> bool:
    if posixpath.splitext(name)[1].lower() not in SUFFIXES:
        return False
    return not any(map(is_left_out, name.split("/")))


def _tell_unread(place: str, names: list[str], links: int) -> None:
    """Log what a shard holds that may be meant as images, and is not read."""
    suffixes = [posixpath.splitext(name)[1].lower() for name in names]
    kinds = Counter(kind for suffix in suffixes if (kind := unread_kind(suffix)) is not None)
    if kinds:
        _log.warning("%s: not read: %s", place, describe_unread(kinds))
    if videos := sum(suffix in VIDEO_SUFFIXES for suffix in suffixes):
        _log.warning(
            "%s: not read: %s, which are read from a folder", place, counted(videos, "video")
        )
    if links:
        _log.warning("%s: not read: %s to other members", place, counted(links, "link"))
    if not any(suffix in SUFFIXES for suffix in suffixes) and names:
        _log.warning("%s holds no image", place)
