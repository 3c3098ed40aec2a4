"""Read tables of images as people have them: CSV in its usual forms, or Parquet.

A cell of a CSV is the text that Python's `csv` reads, and only an empty cell is missing. Headers
are stripped. Nothing is guessed: columns of text become numbers or dates in `whiten.index` only.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.compute as pc

from whiten.errors import ConfigError, one_line
from whiten.storage.blobs import BlobFile, open_blob
from whiten.utils.urls import as_path, as_url

_CHUNK = 65_536  # rows held as Python texts at once
_DELIMITERS = {".csv": ",;\t|", ".tsv": "\t,;|"}  # the likely ones first
_SUFFIXES = (*_DELIMITERS, ".parquet")
_BOMS = {  # UTF-32 first: its mark starts like that of UTF-16
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_UNNAMED = "Unnamed: "  # followed by the column's number, as pandas calls them


@dataclass(frozen=True)
class Table:
    """A table that was read.

    Attributes:
        columns: (n,) the columns; those of a CSV are text, null where a cell is empty.
        names: all column names of the file, also of columns that were not wanted.
        is_text: whether the columns hold the text of the file, as those of a CSV do.
    """

    columns: pa.Table
    names: list[str]
    is_text: bool


def is_table(path: Path) -> bool:
    """Return whether a path is a table: a file whose name ends in .csv, .tsv or .parquet."""
    return is_table_name(path.name) and (as_url(path) is not None or path.is_file())


def is_table_name(name: str) -> bool:
    """Return whether the name of a file is that of a table."""
    return os.path.splitext(name)[1].lower() in _SUFFIXES


def read_table(path: Path, keys: Sequence[str], wanted: Sequence[str] | None = None) -> Table:
    """Read a table.

    Args:
        path: CSV with commas, semicolons, tabs or bars, in UTF-8, or in UTF-16 or UTF-32 with a
            byte order mark; or Parquet.
        keys: columns of which the table must have one.
        wanted: columns to return, where there are such; by default all.

    Raises:
        ConfigError: the table cannot be read, has no key, two columns of one name, or a row with
            more cells than columns.
    """
    path = as_path(path)
    with _readable(path):
        if _is_parquet(path):
            return _read_parquet(path, keys, wanted)
        return _read_csv(path, keys, wanted)


def read_names(path: Path, keys: Sequence[str]) -> list[str]:
    """Return the column names of a table, without reading its rows.

    Args:
        keys: columns of which the table may have one, by which its delimiter is found.

    Raises:
        ConfigError: the table cannot be read.
    """
    path = as_path(path)
    with _readable(path):
        if _is_parquet(path):
            import pyarrow.parquet as pq

            return _named(pq.read_schema(_parquet_source(path)).names)
        delimiter, skipped = _dialect(path, keys)
        with _open(path) as file:
            return _named(next(_rows(file, delimiter, skipped, skip_space=True), []))


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() == ".parquet"


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Say what a table must be, if it cannot be read."""
    try:
        yield
    except (OSError, UnicodeError, csv.Error, pa.ArrowException) as error:
        raise ConfigError(
            f"cannot read {path} ({_reason(error)}): it must be CSV in UTF-8, or Parquet"
        ) from error


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError) and error.encoding == "utf-8":
        return f"byte 0x{error.object[error.start]:02x} is not UTF-8"
    return one_line(error)


def _require_key(path: Path, names: list[str], keys: Sequence[str]) -> None:
    if set(keys).isdisjoint(names):
        wanted = " or ".join(repr(key) for key in keys)
        hint = next((near for key in keys if (near := near_name(key, names))), None)
        remedy = "" if hint is None else f"; rename {hint!r} if it is meant"
        raise ConfigError(
            f"{path} has no column {wanted}, only {', '.join(map(repr, names[:20]))}{remedy}: it "
            "must say which image a row is of"
        )


def near_name(name: str, names: Iterable[str]) -> str | None:
    """Return a column that may be meant by a name: `Path`, `paths` or `filename` by `path`."""
    usual = {
        "path": ("file", "filename", "filepath", "image", "imagepath", "imagename"),
        "group": ("label", "class", "category", "target", "groupid", "classid"),
    }
    plain = {other: re.sub(r"[\W_]", "", other).casefold() for other in names}
    for other, text in plain.items():
        if text.rstrip("s") == name or text in (*usual.get(name, ()), f"{name}s"):
            return other
    close = difflib.get_close_matches(name, plain.values(), n=1, cutoff=0.8)
    return next((other for other, text in plain.items() if text in close), None)


def _select(path: Path, names: list[str], wanted: Sequence[str] | None) -> list[int]:
    """Return the positions of the wanted columns; refuses two of one name among them."""
    taken = [n for n, name in enumerate(names) if wanted is None or name in wanted]
    counts = Counter(names[n] for n in taken)
    if twice := next((name for name, count in counts.items() if count > 1), None):
        raise ConfigError(f"{path} has two columns {twice!r}: rename one of them")
    return taken


def _named(headers: Sequence[str]) -> list[str]:
    """Strip headers, and give names of their own to columns without one."""
    names = [header.removeprefix("\ufeff").strip() for header in headers]
    for number, name in enumerate(names):
        if not name:
            name = f"{_UNNAMED}{number}"
            while name in names:
                name += ".1"
            names[number] = name
    return names


def _without_index(table: pa.Table, headers: Sequence[str], names: Sequence[str]) -> pa.Table:
    """Drop columns without a name that say nothing: empty ones, and rows numbered from 0, which is
    the index of a data frame."""
    for header, name in zip(headers, names, strict=True):
        if header.strip() or name not in table.schema.names:
            continue
        column = table[name]
        is_index = column.null_count == len(column)
        if not is_index and (pa.types.is_integer(column.type) or column.type == pa.large_string()):
            numbers = pa.array(range(len(table)), pa.int64()).cast(column.type, safe=False)
            is_index = pc.all(pc.equal(column, numbers).fill_null(False)).as_py()
        if is_index:
            table = table.drop_columns(name)
    return table


# --- CSV --------------------------------------------------------------------------------


def _read_csv(path: Path, keys: Sequence[str], wanted: Sequence[str] | None) -> Table:
    delimiter, skipped = _dialect(path, keys)
    with _open(path) as file:
        rows = _rows(file, delimiter, skipped)
        headers = next(rows, [])
        if not headers:
            raise ConfigError(f"cannot read {path}, it is empty: name the columns in its first row")
        if any("\0" in header for header in headers):
            raise ConfigError(f"cannot read {path}, it seems to be UTF-16: save it as UTF-8")
        names = read_names(path, keys)
        _require_key(path, names, keys)
        taken = _select(path, names, wanted)
        # In `path, "group"` the space belongs to the delimiter; in `path, group` if all rows have
        # one.
        spaced = _named(headers) != names
        if not spaced and len(headers) > 1 and all(h.startswith(" ") for h in headers[1:]):
            spaced = all(cell[:1] in ("", " ") for row in rows for cell in row[1:])
        file.seek(0)
        rows = _rows(file, delimiter, skipped, skip_space=spaced)
        headers = next(rows)
        schema = pa.schema([(names[n], pa.large_string()) for n in taken])
        parts = [
            pa.table([pa.array(cells, pa.large_string()) for cells in chunk], schema=schema)
            for chunk in _chunks(path, rows, taken, len(names))
        ]
    table = pa.concat_tables([schema.empty_table(), *parts])
    return Table(_without_index(table, headers, names), names, is_text=True)


def _open(path: Path) -> TextIO:
    if (url := as_url(path)) is not None:
        blob = open_blob(url)
        file: Any = io.BytesIO(blob.read(0, blob.stamp.size))
    else:
        file = path.open("rb")
    start = file.read(4)
    file.seek(0)
    encoding = next((name for mark, name in _BOMS.items() if start.startswith(mark)), "utf-8-sig")
    return io.TextIOWrapper(file, newline="", encoding=encoding)


def _dialect(path: Path, keys: Sequence[str]) -> tuple[str, bool]:
    """Return the delimiter, and whether the first line only names it, as Excel's `sep=;`."""
    choices = _DELIMITERS.get(path.suffix.lower())
    if choices is None:
        raise ConfigError(
            f"{path} is no table: name a file whose name ends in {', '.join(_SUFFIXES)}"
        )
    with _open(path) as file:
        first = file.readline()
        if named := re.fullmatch("sep=(.)\r?\n?", first):
            return named[1], True
        headers: dict[str, list[str]] = {}
        for delimiter in choices:
            file.seek(0)
            with suppress(csv.Error):  # another one follows a name in quotes
                first_row = next(_rows(file, delimiter, False, skip_space=True), [])
                headers[delimiter] = _named(first_row)
    if not headers:
        return choices[0], False  # reading it gives the reason
    fitting = [one for one in headers if not set(keys).isdisjoint(headers[one])]
    # Of several, as for `path` and a tab, the one that divides the header the most.
    return max(fitting or headers, key=lambda delimiter: len(headers[delimiter])), False


def _rows(
    file: TextIO, delimiter: str, skip_first: bool, skip_space: bool = False
) -> Iterator[list[str]]:
    """Yield the rows that are not blank; a quote that never ends is an error."""
    if skip_first:
        file.readline()
    reader = csv.reader(file, delimiter=delimiter, skipinitialspace=skip_space, strict=True)
    try:
        for row in reader:
            if row:
                yield row
    except csv.Error as error:
        raise csv.Error(f"line {reader.line_num}: {error}") from error


def _chunks(
    path: Path, rows: Iterator[list[str]], taken: Sequence[int], count: int
) -> Iterator[list[list[str | None]]]:
    """Yield the cells of the taken columns; cells that a row lacks at its end are missing."""
    cells: list[list[str | None]] = [[] for _ in taken]
    for number, row in enumerate(rows, start=1):
        if len(row) > count and any(row[count:]):
            raise ConfigError(
                f"{path} has {len(row)} cells in row {number} and {count} columns: put text with "
                "the delimiter in quotes"
            )
        for column, n in zip(cells, taken, strict=True):
            column.append((row[n] or None) if n < len(row) else None)
        if number % _CHUNK == 0:
            yield cells
            cells = [[] for _ in taken]
    yield cells


# --- Parquet ----------------------------------------------------------------------------


def _parquet_source(path: Path) -> Any:
    if (url := as_url(path)) is None:
        return path
    return pa.PythonFile(BlobFile(open_blob(url)), "r")


def _read_parquet(path: Path, keys: Sequence[str], wanted: Sequence[str] | None) -> Table:
    import pyarrow.parquet as pq

    with pq.ParquetFile(_parquet_source(path)) as parquet:
        headers = parquet.schema_arrow.names
        taken = _select(path, _keyed(path, headers, keys), wanted)
        if len(set(headers)) == len(headers):
            found = parquet.read(columns=[headers[n] for n in taken])
            columns = [found.column(headers[n]) for n in taken]
        else:  # several have no name: columns can only be read by it
            columns = parquet.read().select(taken).columns
    return _of_columns(columns, headers, taken)


def arrow_table(table: pa.Table, name: Path, keys: Sequence[str]) -> Table:
    """Take an Arrow table as it would be read from Parquet.

    Args:
        name: what errors call it.
    """
    headers = table.schema.names
    taken = _select(name, _keyed(name, headers, keys), None)
    return _of_columns(table.columns, headers, taken)


def _keyed(path: Path, headers: Sequence[str], keys: Sequence[str]) -> list[str]:
    names = _named(headers)
    _require_key(path, names, keys)
    return names


def _of_columns(
    columns: Sequence[pa.ChunkedArray], headers: Sequence[str], taken: Sequence[int]
) -> Table:
    names = _named(headers)
    table = pa.table(columns, names=[names[n] for n in taken])
    return Table(_without_index(table, headers, names), names, is_text=False)
