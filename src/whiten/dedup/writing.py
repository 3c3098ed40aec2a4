"""Write the results of a run: table, page and script, each atomically."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from whiten.dedup.finding import Deduplication, member_row
from whiten.dedup.page import groups_page
from whiten.dedup.script import deletion_script
from whiten.errors import ConfigError
from whiten.utils.files import write_atomically

TABLE, PAGE, SCRIPT = "groups.csv", "groups.html", "delete.sh"
COLUMNS = (
    "group", "id", "path", "keep", "kind", "copy_of", "similarity", "width", "height", "bytes",
    "detail", "compression", "reference",
)  # fmt: skip


def write_results(found: Deduplication, out: Path) -> list[Path]:
    """Write `groups.csv`, `groups.html` and `delete.sh` into a folder; return their paths."""
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / name for name in (TABLE, PAGE, SCRIPT)]
    write_table(found, paths[0])
    write_atomically(paths[1], groups_page(found, TABLE).encode("utf-8", "backslashreplace"))
    write_atomically(paths[2], deletion_script(found))
    return paths


def write_table(found: Deduplication, path: Path) -> None:
    """Write one row per member, as in `member_row`, in UTF-8.

    Raises:
        ConfigError: the file cannot be written.
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(member_row(group, m) for group in found.groups for m in group.members)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.getvalue().encode())
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(f"cannot write {path} ({reason}): name another file") from error
