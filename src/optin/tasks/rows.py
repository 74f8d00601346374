"""Rows of text files, as the files say them: CSV, tab-separated values, JSON, JSON lines, parquet, a text a line.

Nothing is guessed: a cell "NA" is a text. What a file claims is compared with its size before memory is taken for it.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..errors import DependencyError, InputError, first_line
from ..support.untyped import Figures, Json
from .specs import TaskSpec

FORMATS = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".txt")
COLUMNS = 4096  # of a table at most
ROWS = 2 * 10**7  # of a parquet file at most, whose rows may take no bytes at all
CELL = 1 << 24  # characters at most: more is a quotation mark that was never closed
# What is unpacked of a file: so many times its size, and so many bytes if that is less. Sets of images and texts
# shrink to a twentieth at best; what grows a thousandfold was made to fill the memory.
EXPANSION, SMALL = 200, 1 << 26
_INTEGER, _NUMBER = re.compile(r"[+-]?[0-9]{1,18}"), re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


class Rows(Protocol):
    """A table: its columns by name. Those of the package `datasets` are such tables too."""

    @property
    def column_names(self) -> Json:
        """Names of the columns."""

    def __len__(self) -> int: ...

    def __getitem__(self, name: str) -> Json: ...


@dataclass(frozen=True)
class Table:
    """Rows of a file of text: numbers where all cells of a column are numbers, None where a cell is missing."""

    column_names: list[str]
    rows: Sequence[Json]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, name: str) -> list[object]:
        return [row.get(name) for row in self.rows]


@dataclass(frozen=True)
class Cells:
    """Rows of separated values, whose cells know no types."""

    column_names: list[str]
    rows: Sequence[Sequence[str]]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, name: str) -> list[object]:
        place = self.column_names.index(name)
        return _typed([row[place] if place < len(row) else "" for row in self.rows])


class Parquet:
    """Rows of a parquet file; a column is read when it is asked for, and what the file says of its own use is not."""

    def __init__(self, file: Path) -> None:
        self._parquet, self._file = open_parquet(file), file
        self.column_names: list[str] = list(self._parquet.schema_arrow.names)

    def __len__(self) -> int:
        return int(self._parquet.metadata.num_rows)

    def __getitem__(self, name: str) -> list[object]:
        try:
            found: list[object] = self._parquet.read([name]).column(name).to_pylist()
        except Exception as error:  # pyarrow says of damaged pages what its many decoders say
            raise InputError(f"cannot read the column {name!r} of {self._file}: {first_line(error)}") from error
        return found


def read_rows(file: Path, spec: TaskSpec) -> Rows:
    """The rows of a file.

    Raises:
        InputError: a file of another kind, or one that is damaged; says which line.
        DependencyError: parquet without the package that reads it.
    """
    if file.suffix not in FORMATS:
        raise InputError(f"cannot read {file}: expected one of {', '.join(FORMATS)}.")
    if file.stat().st_size == 0:
        raise InputError(f"{file} is empty.")
    if file.suffix == ".parquet":
        return Parquet(file)
    _check_encoding(file)
    try:
        if file.suffix == ".txt":
            text = file.read_text(encoding="utf-8-sig")
            return Cells([spec.text], [[text]] if spec.kind.of_prose else [[line] for line in text.splitlines()])
        return _json(file) if file.suffix in (".json", ".jsonl") else _separated(file, spec)
    except UnicodeDecodeError as error:
        raise InputError(f"cannot read {file}: byte {error.start:,} is not UTF-8. Save it as UTF-8.") from error


def open_parquet(file: Path) -> Json:
    """A `pyarrow.parquet.ParquetFile` whose claims are possible.

    Raises:
        InputError: it is damaged, or claims more than a file of its size can hold.
        DependencyError: pyarrow is not installed.
    """
    try:
        from pyarrow import parquet
    except ImportError:
        raise DependencyError("parquet needs the package 'datasets': pip install 'optin[tasks]'") from None
    try:
        found = parquet.ParquetFile(file)
        metadata = found.metadata
        size = sum(metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups))
    except Exception as error:  # pyarrow's errors have no common class but this
        raise InputError(f"cannot read {file}: {first_line(error)}") from error
    if metadata.num_rows > ROWS or metadata.num_columns > COLUMNS:
        raise InputError(
            f"{file} claims {metadata.num_rows:,} rows and {metadata.num_columns:,} columns; "
            f"{ROWS:,} and {COLUMNS:,} are the most. Split it."
        )
    check_expansion(file, size)
    return found


def check_expansion(file: Path, size: int) -> None:
    """Refuse a file that claims to unpack to absurdly many bytes.

    Raises:
        InputError: says how many.
    """
    if not 0 <= size <= max(SMALL, EXPANSION * file.stat().st_size):
        raise InputError(f"{file} has {file.stat().st_size:,} bytes and claims to hold {size:,}: it is damaged.")


def _check_encoding(file: Path) -> None:
    with file.open("rb") as handle:
        start = handle.read(4096)
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InputError(f"{file} is UTF-16: save it as UTF-8.")
    if b"\0" in start:
        raise InputError(f"{file} holds NUL bytes and is no text: save it as UTF-8.")


def _separated(file: Path, spec: TaskSpec) -> Cells:
    # Tab-separated files of GLUE hold stray quotation marks, which are plain text.
    tabs = file.suffix == ".tsv"
    reading: Figures = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {"strict": True}
    if not tabs:
        reading["delimiter"] = _delimiter(file)
    header: list[str] = []
    rows: list[list[str]] = []
    with file.open(encoding="utf-8-sig", newline="") as handle, _long_cells():
        lines = csv.reader(handle, **reading)
        try:
            for row in filter(None, lines):
                if any("\0" in cell for cell in row):
                    raise InputError(f"line {lines.line_num} of {file} holds a NUL character and is no text.")
                if not header:
                    unnamed = tabs and spec.header and spec.text not in row
                    header = list(spec.header) if unnamed else row
                    _check_header(header, file)
                    if not unnamed:
                        continue
                if len(row) > len(header):
                    raise InputError(_too_wide(file, lines.line_num, len(row), len(header), tabs))
                rows.append(row)
        except csv.Error as error:
            raise InputError(
                f"line {lines.line_num} of {file}: {error}. Quotation marks come in pairs, and doubled within a text."
            ) from error
    if not rows:
        raise InputError(f"{file} holds no data, only a header.")
    return Cells(header, rows)


def _delimiter(file: Path) -> str:
    """What stands between the names of a header: a semicolon where spreadsheets write decimal commas."""
    with file.open(encoding="utf-8-sig", newline="") as handle:
        header = handle.readline(CELL)
    return ";" if header.count(";") > header.count(",") else ","


def _check_header(header: list[str], file: Path) -> None:
    if len(header) > COLUMNS:
        raise InputError(f"the header of {file} has {len(header):,} columns; {COLUMNS:,} are the most.")
    twice = next((name for name, count in Counter(header).items() if name and count > 1), None)
    if twice is not None:
        raise InputError(f"{file} has two columns {twice!r:.60}: rename one.")


def _too_wide(file: Path, line: int, fields: int, width: int, tabs: bool) -> str:
    """A comma in an unquoted text splits it, and all that follows moves."""
    advice = "take the tabs out of the texts." if tabs else "put texts that hold commas into quotation marks."
    return f"line {line} of {file} has {fields} fields and the header {width}: {advice}"


@contextlib.contextmanager
def _long_cells() -> Iterator[None]:
    """Texts of any length but the absurd; the limit is one of the whole process."""
    before = csv.field_size_limit(CELL)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _typed(cells: list[str]) -> list[object]:
    """Numbers where all cells are; an empty cell is missing."""
    for pattern, kind in ((_INTEGER, int), (_NUMBER, float)):
        if all(pattern.fullmatch(cell) for cell in cells if cell):
            return [kind(cell) if cell else None for cell in cells]
    return [cell or None for cell in cells]


def _json(file: Path) -> Table:
    text = file.read_text(encoding="utf-8-sig")
    if text.lstrip()[:1] == "[":
        rows = _parsed(text, file, 1)
    else:
        rows = [_parsed(line, file, place) for place, line in enumerate(text.split("\n"), 1) if line.strip()]
    names: dict[str, None] = {}
    for place, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise InputError(f"entry {place} of {file} is no object with names and values, but {type(row).__name__}.")
        names.update(dict.fromkeys(row))
        if len(names) > COLUMNS:
            raise InputError(f"{file} has more than {COLUMNS:,} columns.")
    return Table(list(names), rows)


def _parsed(text: str, file: Path, line: int) -> Json:
    try:
        return json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:  # integers of too many digits are no JSONDecodeError
        raise InputError(f"cannot read {file}, line {line}: {first_line(error)}") from error


def unique(pairs: list[tuple[str, object]]) -> Figures:
    """An object of JSON, whose names must differ: of two the last would win."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"the name {twice!r:.60} occurs twice")
    return found
