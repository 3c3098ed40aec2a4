"""Write the script that deletes copies, the only code that does, and only when the user runs it.

The script is POSIX shell; names are in single quotes, with all bytes and line breaks preserved.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from itertools import accumulate

from whiten.dedup.finding import Deduplication, Member
from whiten.errors import counted
from whiten.storage.places import is_plain
from whiten.utils.names import display_path
from whiten.utils.urls import absolute

_HEADER = """#!/bin/sh
# Deletes {copies} {what}{plural} of which another {what} is kept ({size:.1f} MB).
# Found by `whiten dedup` at a similarity of {threshold:.4f} or more, in {groups}.
#
#   sh delete.sh         says what it would delete, and deletes nothing
#   sh delete.sh --yes   deletes
#
# A copy is deleted only while both files are what they were when they were compared: each must have
# the content hash below, the kept one first. Whatever does not is left alone and named.
# Lines may be taken out.
set -eu

mode=dry
case "${{1-}}" in
    --yes) mode=delete ;;
    '') ;;
    *) printf 'usage: sh delete.sh [--yes]\\n' >&2; exit 2 ;;
esac

# BLAKE2b of 128 bits; that of nothing tells whether this b2sum can do it.
hash_by_b2sum() {{ b2sum -l 128 2>/dev/null | cut -c 1-32; }}
if [ "$(hash_by_b2sum < /dev/null)" = cae66941d9efbd404e4d88758ea67670 ]; then
    hash_of() {{ hash_by_b2sum < "$1"; }}
elif command -v python3 >/dev/null 2>&1; then
    hash_of() {{ python3 -c 'import hashlib, sys
digest = hashlib.blake2b(digest_size=16)
for part in iter(lambda: sys.stdin.buffer.read(1 << 20), b""):
    digest.update(part)
print(digest.hexdigest())' < "$1"; }}
else
    printf 'delete.sh needs b2sum (GNU coreutils) or python3 to compare files\\n' >&2; exit 2
fi

kept=''
kept_is_there=no
deleted=0
left=0

# keep HASH FILE: the copies after it are of this file.
keep() {{
    kept=$2
    kept_is_there=no
    if [ -f "$2" ] && [ -r "$2" ] && [ "$(hash_of "$2")" = "$1" ]; then kept_is_there=yes; fi
}}

# copy HASH FILE: whether the file may be deleted now.
copy() {{
    why=''
    if [ ! -f "$2" ]; then why='is not there'
    elif [ "$kept_is_there" = no ]; then why='stays, the kept file is gone or has changed'
    elif [ -L "$kept" ] && [ ! -L "$2" ]; then why='stays, the kept file is only a link'
    elif [ ! -L "$2" ] && [ "$2" -ef "$kept" ]; then why='stays, it is the kept file itself'
    elif [ ! -r "$2" ] || [ "$(hash_of "$2")" != "$1" ]; then why='stays, it has changed'
    fi
    if [ -n "$why" ]; then
        left=$((left + 1))
        printf '%s: %s\\n' "$2" "$why" >&2
        return 1
    fi
    deleted=$((deleted + 1))
    if [ "$mode" = dry ]; then
        printf 'would delete %s\\n' "$2"
        return 1
    fi
}}

"""

_FOOTER = """
if [ "$mode" = dry ]; then
    printf '%d would be deleted, %d left alone; add --yes to delete\\n' "$deleted" "$left"
else
    printf '%d deleted, %d left alone\\n' "$deleted" "$left"
fi
"""


def deletion_script(found: Deduplication) -> bytes:
    """Return the script's bytes; files of unknown content are left out."""
    copies = [member for member in found.copies if member.content_hash and is_plain(member.path)]
    header = _HEADER.format(
        copies=len(copies),
        what=found.what,
        plural="" if len(copies) == 1 else "s",
        size=sum(member.bytes for member in copies) / 1e6,
        threshold=found.threshold,
        groups=counted(len(found.groups), "group"),
    )
    lines = [header.encode()]
    for group in found.groups:
        lines.append(f"# group {group.number}\n".encode())
        is_usable = False
        for member in _links_first(group.members):
            if member.is_kept:
                is_usable = member.content_hash != ""
                if is_usable:
                    lines.append(b"keep %s %s\n" % _words(member))
            elif not is_plain(member.path):
                lines.append(b"# stays, it is inside a shard or under a URL: %s\n" % _shown(member))
            elif is_usable and member.content_hash:
                digest, name = _words(member)
                lines.append(b"copy %s %s && rm -- %s\n" % (digest, name, name))
    return b"".join([*lines, _FOOTER.encode()])


def _links_first(members: Sequence[Member]) -> list[Member]:
    """Return the copies of each kept file with links first, of a chain of links the last one first.

    A link whose target is gone is no copy any more, and would be left behind.
    """
    kept = accumulate(member.is_kept for member in members)
    order = [
        (number, not member.is_kept, -_links_on_the_way(member.path))
        for number, member in zip(kept, members, strict=True)
    ]
    return [members[row] for row in sorted(range(len(members)), key=order.__getitem__)]


def _links_on_the_way(path: str) -> int:
    """Return how many links lead from a path to its file; 0 if it is the file."""
    seen: set[str] = set()
    while os.path.islink(path) and path not in seen:  # noqa: PTH114
        seen.add(path)
        path = os.path.join(os.path.dirname(path), os.readlink(path))  # noqa: PTH115, PTH120
    return len(seen)


def _shown(member: Member) -> bytes:
    return json.dumps(display_path(member.path)).encode()


def _words(member: Member) -> tuple[bytes, bytes]:
    path = os.fsencode(absolute(member.path))
    return member.content_hash.encode(), quoted(path)


def quoted(name: bytes) -> bytes:
    """Quote bytes as one word of shell."""
    return b"'" + name.replace(b"'", b"'\\''") + b"'"
