"""Examples from files and from the hub."""

from __future__ import annotations

import contextlib
import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DependencyError, InputError, first_line, unknown
from ..quiet import quiet
from ..recipe import Task
from .specs import ALIASES, TaskSpec

FORMATS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
_SPLIT_NAMES = {
    "validation": ("validation", "dev", "valid", "val"),
    "train": ("train", "training"),
    "test": ("test",),
}


@dataclass(frozen=True, slots=True)
class Examples:
    """Texts (or word lists), optional second texts, and labels where the data has them."""

    texts: list[Any]
    pairs: list[str] | None = None
    labels: list[Any] | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def select(self, indices: Sequence[int]) -> Examples:
        """The examples at some indices, in that order."""
        return Examples(
            [self.texts[i] for i in indices],
            None if self.pairs is None else [self.pairs[i] for i in indices],
            None if self.labels is None else [self.labels[i] for i in indices],
        )


def load_examples(spec: TaskSpec, options: Task, part: str, *, labelled: bool) -> Examples:
    """Read one part of a data set.

    Args:
        options: `data` is a file, a folder with one file per part, or None for the task's set on the hub.
        part: "calibration" or "evaluation".
        labelled: whether labels must be there.

    Raises:
        InputError: missing or empty files, unknown columns, missing labels; says which are there.
    """
    split = spec.split(options, part)
    rows = hub_rows(spec, split) if options.data is None else local_rows(Path(options.data), split, spec)
    if len(rows) == 0:
        raise InputError(f"the {split!r} part of {options.data or spec.hub} is empty.")
    found = list(rows.column_names)
    texts = _texts(rows, _column(found, options.text or spec.text), spec)
    second = options.text_pair or spec.text_pair
    pairs = _texts(rows, _column(found, second), spec) if second else None
    if not labelled:
        return Examples(texts, pairs)
    label = _column(found, options.label or spec.label)
    labels = list(rows[label])
    if any(_missing(value) for value in labels):
        raise InputError(f"the label column {label!r} has empty cells: fill them or drop those rows.")
    return Examples(texts, pairs, labels)


def _texts(rows: Any, column: str, spec: TaskSpec) -> list[Any]:
    expected = (list, tuple) if spec.kind == "tokens" else (str,)
    values: list[Any] = list(rows[column])
    for row, value in enumerate(values):
        if not isinstance(value, expected):
            what = "lists of words" if spec.kind == "tokens" else "texts"
            raise InputError(f"the column {column!r} must hold {what}; row {row + 1} is {value!r:.40}.")
    return values


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _column(found: list[str], wanted: str) -> str:
    """The column of that name, or of a name that the data as first published used for it."""
    for name in (wanted, *ALIASES.get(wanted, ())):
        if name in found:
            return name
    raise InputError(unknown("column", wanted, found))


def local_rows(path: Path, split: str, spec: TaskSpec) -> Any:
    """A `datasets` table from a file, or from the file of one part in a folder."""
    if not path.exists():
        raise InputError(f"no such file or folder: {path}")
    file = path if path.is_file() else _part_of(path, split)
    if file.suffix not in FORMATS:
        raise InputError(f"cannot read {file}: expected one of {', '.join(FORMATS)}.")
    if file.stat().st_size == 0:
        raise InputError(f"{file} is empty.")
    if file.suffix == ".csv":
        _check_fields(file)
    datasets = _datasets()
    # Tab-separated files of GLUE hold stray quotation marks, which are plain text.
    reading: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if file.suffix == ".tsv" else {}
    if reading and spec.header and spec.text not in _first_line(file).split("\t"):
        reading["column_names"] = list(spec.header)
    try:
        loader = getattr(datasets.Dataset, f"from_{FORMATS[file.suffix]}")
        return loader(str(file), cache_dir=None, **reading)
    except Exception as error:
        raise InputError(f"cannot read {file}: {_root(error)}") from None


def _check_fields(file: Path) -> None:
    """Refuse a file with a comma in an unquoted text: readers would take what stands before it for a row number.

    Raises:
        InputError: the row with more fields than the header has.
    """
    with file.open(encoding="utf-8", errors="replace", newline="") as handle, contextlib.suppress(csv.Error):
        rows = csv.reader(handle)
        width = len(next(rows, []))
        for row in rows:
            if len(row) > width:
                raise InputError(
                    f"line {rows.line_num} of {file} has {len(row)} fields and the header {width}: put texts that "
                    "hold commas into quotation marks."
                )


def _first_line(file: Path) -> str:
    with file.open(encoding="utf-8", errors="replace") as handle:
        return handle.readline().rstrip("\n")


def part_names(split: str) -> list[str]:
    """Names under which a part of a data set may lie."""
    base, _, variant = split.partition("_")
    return [split, *(f"{name}_{variant}" if variant else name for name in _SPLIT_NAMES.get(base, (base,)))]


def _part_of(folder: Path, split: str) -> Path:
    for stem in part_names(split):
        for suffix in FORMATS:
            if (folder / f"{stem}{suffix}").is_file():
                return folder / f"{stem}{suffix}"
    raise InputError(f"{folder} holds no file for the part {split!r}: expected {split}{'|'.join(FORMATS)}.")


def hub_rows(spec: TaskSpec, split: str) -> Any:
    """A `datasets` table from the hub."""
    if spec.hub is None:
        raise InputError("say where the data is: --data FILE (csv, tsv, jsonl or parquet).")
    datasets = _datasets()
    try:
        with quiet():
            return datasets.load_dataset(*spec.hub, split=split)
    except Exception as error:
        raise InputError(
            f"the data set {spec.hub[0]!r} cannot be had from the hub ({_root(error)}). Pass --data FOLDER."
        ) from None


def _datasets() -> Any:
    try:
        import datasets
    except ImportError:
        raise DependencyError("reading data needs the package 'datasets': pip install 'optin[tasks]'") from None
    datasets.disable_progress_bars()
    return datasets


def _root(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)
