"""Labelled texts from files and from the hub."""

from __future__ import annotations

import contextlib
import difflib
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import DependencyError, InputError, first_line
from ..space.options import Task
from ..storage.silenced import silenced
from ..support.files import HUB
from ..support.untyped import Foreign
from .rows import FORMATS, Rows, read_rows
from .specs import ALIASES, MEANT, TaskSpec

_SHOWN = 20  # names at most that a message lists
_SPLIT_NAMES = {
    "validation": ("validation", "dev", "valid", "val"),
    "train": ("train", "training"),
    "test": ("test",),
}


@dataclass(frozen=True, slots=True)
class Examples:
    """Texts (or word lists), optional second texts, and labels where the data has them.

    Attributes:
        origin: the file or the part of a data set that they were read from; None where they were not.
    """

    texts: list[Foreign]
    pairs: list[str] | None = None
    labels: list[object] | None = None
    origin: str | None = field(default=None, compare=False)

    def __len__(self) -> int:
        return len(self.texts)

    def select(self, indices: Sequence[int]) -> Examples:
        """The examples at some indices, in that order."""
        return Examples(
            [self.texts[i] for i in indices],
            None if self.pairs is None else [self.pairs[i] for i in indices],
            None if self.labels is None else [self.labels[i] for i in indices],
            self.origin,
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
    rows: Rows
    if (name := hub_name(spec, options.data)) is not None:
        rows, origin = hub_rows(name, split), hub_origin(name, split)
    else:
        assert options.data is not None
        with file_errors(options.data):
            file = file_of(data_path(options.data), split)
            rows, origin = read_rows(file, spec), str(file.resolve())
    if len(rows) == 0:
        raise InputError(f"the {split!r} part of {options.data or spec.hub} is empty.")
    found = list(rows.column_names)
    names = {"texts": _column(found, options.text or spec.text, "--text COLUMN")}
    if second := options.text_pair or spec.text_pair:
        names["pairs"] = _column(found, second, "--text-pair COLUMN")
    if labelled:
        advice = " To prune without labels: --no-evaluate."
        names["labels"] = _column(found, options.label or spec.label, "--label COLUMN", advice)
    columns = {role: values_of(rows, name) for role, name in names.items()}
    of_texts = [role for role in columns if role != "labels"]
    kept = _with_texts([columns[role] for role in of_texts], origin)
    columns = {role: [values[row] for row in kept] for role, values in columns.items()}
    for role in of_texts:
        _check_texts(columns[role], kept, names[role], spec)
    labels = columns.get("labels")
    missing = next((row + 1 for row, value in zip(kept, labels or (), strict=False) if _missing(value)), None)
    if missing is not None:
        raise InputError(
            f"the label column {names['labels']!r} has empty cells (row {missing} is the first): fill them or drop "
            "those rows."
        )
    return Examples(columns["texts"], columns.get("pairs"), labels, origin)


def _with_texts(columns: Sequence[Sequence[object]], origin: str) -> list[int]:
    """The rows in which no text is missing; others are left out, and said.

    Raises:
        InputError: none is left.
    """
    rows = range(len(columns[0]))
    empty = [row for row in rows if any(_missing(values[row]) or _hollow(values[row]) for values in columns)]
    if len(empty) == len(columns[0]):
        raise InputError(f"no row of {origin} has a text.")
    if empty:
        warnings.warn(
            f"{len(empty)} of {len(columns[0])} rows of {origin} have no text and are left out (row {empty[0] + 1} "
            "is the first).",
            stacklevel=2,
        )
    gone = set(empty)
    return [row for row in rows if row not in gone]


def _hollow(value: object) -> bool:
    return isinstance(value, (str, list, tuple)) and not value


def _check_texts(values: Sequence[object], rows: Sequence[int], column: str, spec: TaskSpec) -> None:
    for row, value in zip(rows, values, strict=True):
        if spec.kind.tagged:
            fits = isinstance(value, list | tuple) and bool(value) and all(map(_is_text, value))
        else:
            fits = _is_text(value)
        if not fits:
            what = "lists of words" if spec.kind.tagged else "texts"
            raise InputError(f"the column {column!r} must hold {what}; row {row + 1} is {shown(value)}.")


def _is_text(value: object) -> bool:
    """Half of a surrogate pair, as JSON can write it, is no text that any tokenizer takes."""
    return isinstance(value, str) and (value.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in value))


def values_of(rows: Rows, column: str) -> list[Foreign]:
    """The values of a column, if they are plain ones.

    Raises:
        InputError: its table says that they are to be decoded (images, sounds), which may open any file.
    """
    feature = getattr(rows, "features", {}).get(column)
    if feature is not None and not _is_plain(feature):
        raise InputError(f"the column {column!r} holds no texts or numbers, but {type(feature).__name__}.")
    return list(rows[column])


def _is_plain(feature: object) -> bool:
    inner = getattr(feature, "feature", None)
    return type(feature).__name__ in ("Value", "ClassLabel") or (inner is not None and _is_plain(inner))


def _missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _column(found: list[str], wanted: str, option: str, more: str = "") -> str:
    """The column of that name, or of a name that the data as first published or others use for it."""
    for name in (wanted, *ALIASES.get(wanted, ())):
        if name in found:
            return name
    meant = [name for name in found if name.lower() in MEANT.get(wanted, ())]
    if len(meant) == 1:
        warnings.warn(f"{wanted!r} is read from the column {meant[0]!r}; {option} says another.", stacklevel=2)
        return meant[0]
    near = difflib.get_close_matches(wanted, found, n=1)
    hint = f" Did you mean {near[0]!r:.60}?" if near else ""
    raise InputError(
        f"unknown column {wanted!r:.60}.{hint} Known: {listed(sorted(found))}. Say which with {option}.{more}"
    )


def listed(names: Sequence[object]) -> str:
    """Names for a message, and how many more there are."""
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(f"{name!s:.60}" for name in names[:_SHOWN]) + more


def shown(value: object) -> str:
    """The beginning of a value for a message, whatever it is."""
    try:
        return f"{value!r:.40}".encode("utf-8", "replace").decode()
    except (ValueError, RecursionError):  # an integer of thousands of digits, lists within lists
        return f"a value of the type {type(value).__name__}"


def data_path(data: str) -> Path:
    """The regular file or the folder of that name.

    Raises:
        InputError: there is none; pipes and devices are never opened.
    """
    try:
        path = Path(data).expanduser()
        kind = "file" if path.is_file() else "folder" if path.is_dir() else "other" if path.exists() else None
    except (OSError, ValueError, RuntimeError) as error:  # too long a name, NUL in it, a home that nobody has
        raise InputError(f"no such file or folder: {data:.100} ({first_line(error)})") from error
    if kind is None:
        raise InputError(f"no such file or folder: {path}")
    if kind == "other":
        raise InputError(f"{path} is a pipe or a device: pass a file or a folder.")
    return path


@contextlib.contextmanager
def file_errors(data: str) -> Iterator[None]:
    """One line for files that the system does not let us read, or that memory does not hold."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot read {error.filename or data}: {error.strerror or first_line(error)}.") from error
    except MemoryError as error:
        raise InputError(f"{data} does not fit into the memory: split it.") from error


def file_of(path: Path, split: str) -> Path:
    """The file itself, or in a folder that of one part.

    Raises:
        InputError: the folder has none.
    """
    if path.is_file():
        return path
    for stem in part_names(split):
        for suffix in FORMATS:
            if (path / f"{stem}{suffix}").is_file():
                return path / f"{stem}{suffix}"
    raise InputError(
        f"{path} holds no file for the part {split!r}: expected {split}{'|'.join(FORMATS)}. "
        "Is it a folder of images? Name the task: --task image-classification."
    )


def part_names(split: str) -> list[str]:
    """Names under which a part of a data set may lie."""
    base, _, variant = split.partition("_")
    return [split, *(f"{name}_{variant}" if variant else name for name in _SPLIT_NAMES.get(base, (base,)))]


def hub_name(spec: TaskSpec, data: str | None) -> tuple[str, ...] | None:
    """The set on the hub that is meant, and its configuration where it has several; None of a file or folder.

    Raises:
        InputError: nothing is named, and the task has no set of its own.
    """
    if data is None:
        if spec.hub is None:
            raise InputError("say where the data is: --data FILE (csv, tsv, jsonl, parquet or a text a line).")
        return spec.hub
    if not data.startswith(HUB):
        return None
    name, _, configuration = data.removeprefix(HUB).partition(":")
    if not name:
        raise InputError(f"{data!r} names no data set: write hub:OWNER/NAME or hub:OWNER/NAME:CONFIG.")
    return (name, configuration) if configuration else (name,)


def hub_rows(name: tuple[str, ...], split: str) -> Foreign:
    """A `datasets` table from the hub."""
    datasets = datasets_library()
    try:
        with silenced():
            return datasets.load_dataset(*name, split=split)
    except Exception as error:  # what the hub, the network and the library say has no common class but this
        raise InputError(
            f"the data set {name[0]!r} cannot be had from the hub ({_root(error)}). Pass --data FOLDER."
        ) from error


def hub_origin(name: tuple[str, ...], split: str) -> str:
    """What a part of a set on the hub is told by."""
    return "/".join((*name, split))


def datasets_library() -> Foreign:
    """The package `datasets`.

    Raises:
        DependencyError: it is not installed.
    """
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
